"""Build the data, model, objective, optimizer and mesh of a run from its config."""

import dataclasses
import functools

import jax
import numpy as np

from vit_jax import batch, evaluators, models, objectives, optim, pretrained
from vit_jax.devices import chips, memory, placement, sharding
from vit_jax.errors import UserError
from vit_jax.flops import count_flops
from vit_jax.plan import Plan
from vit_jax.step import init_state, make_train_step


class Run:
    """The components of a training run. The training state is not allocated before `init`.

    Args:
      config: a checked config.
      devices: JAX devices of the mesh; None: all.
      plan: the `Plan` of the config; None: create it.

    Attributes:
      plan: the `Plan`, with the data and the durations in steps.
      source: the training split.
      total: number of optimizer steps of the whole run.
      steps_per_epoch: optimizer steps per epoch of the training split; may be fractional.
      attention: a line of text about the attention kernel that was chosen; None if there is no
        choice.
      teacher: the frozen teacher, a `pretrained.Teacher`; None if there is none.
      abstract: the TrainState as a tree of ShapeDtypeStructs with shardings.

    Raises:
      UserError: if the data, mesh or devices do not fit the config.
    """

    def __init__(self, config, devices=None, plan=None):
        self.config = config
        self.plan = plan or Plan(config)
        self.source = self.plan.sources["train"]
        self.steps_per_epoch = self.plan.steps_per_epoch
        self.total = self.plan.total
        self.mesh = sharding.make_mesh(config.mesh, devices)
        platform = self.mesh.devices.flat[0].platform
        needed = {"cudnn": "gpu", "pallas": "tpu"}.get(config.model.attn, platform)
        if needed != platform:
            raise UserError(
                f"config.model.attn = '{config.model.attn}' needs a {needed.upper()}, not "
                f"{platform}; set it to 'auto'"
            )
        sharding.check_batch_size(
            "batch_size / accum_steps =", config.batch_size // config.accum_steps, self.mesh
        )
        if config.evaluators:
            evaluators.check_batch_size(config, self.mesh)
        model, self.attention = models.prove_attention(self.plan.model, platform)
        self.model = models.build(model)
        self.teacher = pretrained.load_teacher(config, platform)
        self.objective = self._make_objective(self.model)
        tx, self.schedule = optim.make(config, self.steps_per_epoch)
        self.init_rng, self.train_rng = _make_keys(np.uint32(config.seed))

        def init(rng, pretrained_weights):
            model = self.model._replace(
                init=lambda rng: _overlay(self.model.init(rng), pretrained_weights),
                stats=lambda: _overlay(self.model.stats(), pretrained_weights),
            )
            return init_state(self._make_objective(model), tx, rng)

        self.abstract = sharding.abstract_state(init, self.mesh, self.init_rng, {})
        state_sharding = jax.tree.map(lambda x: x.sharding, self.abstract)
        batch_sharding = sharding.batch_sharding(self.mesh)
        replicated = sharding.replicated(self.mesh)
        self._init = jax.jit(init, out_shardings=state_sharding)
        constants_sharding = tuple(jax.tree.map(lambda x: x.sharding, self._abstract_constants))
        self._step = jax.jit(
            make_train_step(self.objective, tx, config.accum_steps),
            in_shardings=(state_sharding, batch_sharding, replicated, *constants_sharding),
            out_shardings=(state_sharding, replicated),
            donate_argnums=0,
        )
        self._exclusive = None
        self._evaluate = {}

    def _make_objective(self, model):
        """Create the objective for a `models.Model`."""
        objective = objectives.make(model, self.config, self.steps_per_epoch)
        if self.teacher is None:
            return objective
        return objective._replace(flops=lambda: objective.flops() + self.teacher.flops)

    @functools.cached_property
    def _abstract_constants(self):
        """The further arguments of the training step as ShapeDtypeStructs with shardings."""
        if self.teacher is None:
            return ()
        return (sharding.abstract_state(lambda: self.teacher.constants, self.mesh),)

    @functools.cached_property
    def _constants(self):
        """The further arguments of the training step, on the devices."""
        if self.teacher is None:
            return ()
        shardings = jax.tree.map(lambda x: x.sharding, self._abstract_constants)
        place_teacher = jax.jit(lambda constants: (constants,), out_shardings=shardings)
        return place_teacher(self.teacher.constants)

    def init(self, log=lambda _: None):
        """Initialize the sharded TrainState, at random or from config.model_init.

        Args:
          log: function called with a line of text about the pretrained weights, if there are any.
        """
        c = self.config
        weights = {}
        if c.model_init:
            weights, fresh = pretrained.init_params(c.model_init, self.model.module, c.model)
            parts = f"; randomly initialized: {', '.join(fresh)}" if fresh else ""
            log(f"starting from the weights of {c.model_init}{parts}")
        return self._init(self.init_rng, weights)

    def batches(self, start):
        """Iterate over global batches start, start + 1, ..., ahead on the devices.

        Returns:
          A generator, see `placement.ahead`. Close it with .close().
        """
        place = functools.partial(placement.to_devices, sharding=sharding.batch_sharding(self.mesh))
        batches = batch.from_config(self.source, self.config, start)
        return placement.ahead(batches, place, placement.num_ahead(batches))

    def step(self, state, rows):
        """Run one training step.

        Args:
          state: TrainState. It is donated: use the returned one afterwards.
          rows: a global batch, as returned by `batches`, or this process's rows of it in NumPy.

        Returns:
          The new TrainState, and the metrics as a dict of scalars.
        """
        rows = placement.to_devices(rows, sharding.batch_sharding(self.mesh))
        with jax.set_mesh(self.mesh):
            if self._exclusive is None:
                arguments = (state, rows, self.train_rng, *self._constants)
                compiled = self._step.lower(*arguments).compile()  # JAX keeps it
                memory.trim()
                platform = self.mesh.devices.flat[0].platform
                self._exclusive = memory.exclusive(compiled, platform)
            if self._exclusive:
                jax.block_until_ready(state.step)
            return self._step(state, rows, self.train_rng, *self._constants)

    def lower(self, rows):
        """Lower the training step for the mesh. Its devices do not have to be available.

        Args:
          rows: tree of arrays or ShapeDtypeStructs with the shapes and dtypes of a global batch.

        Returns:
          jax.stages.Lowered.
        """
        placement = sharding.batch_sharding(self.mesh)
        rows = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement), rows
        )
        replicated = sharding.replicated(self.mesh)
        rng = jax.ShapeDtypeStruct(self.train_rng.shape, self.train_rng.dtype, sharding=replicated)
        with jax.set_mesh(self.mesh):
            return self._step.lower(self.abstract, rows, rng, *self._abstract_constants)

    def lr(self, step):
        """Return the learning rate of optimizer step `step`, counted from 0."""
        return float(self.schedule(step))

    def weights(self, state):
        """Return the weights to evaluate: the parameters, their EMA, or DINO's teacher."""
        return self.objective.weights(state.params, state.extra)

    @functools.partial(jax.profiler.annotate_function, name="evaluate")
    def evaluate(self, split, weights):
        """Run all evaluators on a split.

        Args:
          split: "val" or "test".
          weights: as returned by `weights`.

        Returns:
          The metrics, {"eval/val/acc1": ...}.
        """
        if split not in self._evaluate:
            self._evaluate[split] = evaluators.make(
                self.config.evaluators, self.model, self.config, split, self.mesh
            )
        scores = self._evaluate[split](weights)
        return {f"eval/{split}/{key}": x for key, x in scores.items()}

    def metadata(self):
        """Return the entries of run.json about the data and the model."""
        model = dataclasses.asdict(self.model.module.config)
        facts = {
            "data": self.plan.identity,
            "attention": self.attention,
            "model": model | {"parameters": self.parameters},
            "steps_per_epoch": self.steps_per_epoch,
        }
        if self.plan.model_init:
            facts["model_init"] = pretrained.origin(self.plan.model_init)
        if self.teacher:
            facts["teacher"] = {"sha256": self.teacher.digest}
        return facts

    def check_teacher(self, recorded):
        """Raise UserError if the teacher is not that of the run.json `recorded`."""
        if self.teacher and recorded.get("teacher") != {"sha256": self.teacher.digest}:
            raise UserError(
                "the weights of the teacher are not those that the run was started with; restore "
                "them or pass another --workdir"
            )

    @property
    def peak_images_per_s(self):
        """Throughput of training at the peak FLOP/s of the devices; None if it is not known."""
        chip = chips.chip_of(self.mesh.devices.flat[0])
        return chip and self.mesh.size * chip.peak * 1e12 / self.objective.flops()

    def describe(self):
        """Return the model and the devices as a line of text."""
        flops = count_flops(self.model.module.config)
        kind = self.mesh.devices.flat[0].device_kind
        return (
            f"model: {self.config.model.variant}, {self.parameters:,} parameters, "
            f"{flops / 1e9:.3g} GFLOPs per image; {self.mesh.size} x {kind}"
        )

    @property
    def parameters(self):
        """Number of trainable parameters."""
        return sum(x.size for x in jax.tree.leaves(self.abstract.params))


@jax.jit
def _make_keys(seed):
    """Return the random keys of initialization and of training."""
    return tuple(jax.random.split(jax.random.key(seed)))


def _overlay(tree, replacements):
    """Replace leaves of a nested dict with those of `replacements`, which may have only some."""
    if not isinstance(tree, dict):
        return replacements
    return {k: _overlay(v, replacements[k]) if k in replacements else v for k, v in tree.items()}
