"""The data, model, objective, optimizer and mesh of a config."""

import dataclasses

import jax

from vit_jax import (
    batch,
    data,
    evaluators,
    models,
    objectives,
    optim,
    pretrained,
    variants,
)
from vit_jax.config import steps
from vit_jax.devices import sharding
from vit_jax.errors import UserError
from vit_jax.flops import count_flops
from vit_jax.step import init_state, make_train_step


class Run:
    """Everything that training needs, built from a config. Nothing is allocated until `init`.

    Args:
      config: a checked config.
      devices: devices of the mesh; None: all.

    Attributes:
      total: optimizer steps of the whole run.
      abstract: the TrainState as shapes with shardings.
    """

    def __init__(self, config, devices=None):
        self.config = config
        self.mesh = sharding.make_mesh(config.mesh, devices)
        platform = self.mesh.devices.flat[0].platform
        if config.model.attn == "cudnn" and platform != "gpu":
            raise UserError(f"config.model.attn = 'cudnn' needs a GPU, not {platform}; set 'auto'")
        sharding.check_batch_size(
            "batch_size / accum_steps =", config.batch_size // config.accum_steps, self.mesh
        )
        self.source = data.make(config, config.data.train)
        self.steps_per_epoch = len(self.source) / config.batch_size
        self.total = self.steps("total_steps")
        keys = ("log_every", "eval_every", "checkpoint_every")
        self.every = {key: self.steps(key) for key in keys}
        self.model = models.build(variants.from_config(config.model, self.source.num_classes))
        self.objective = objectives.make(self.model, config, self.steps_per_epoch)
        tx, self.schedule = optim.make(config, self.steps_per_epoch)
        self.init_rng, self.train_rng = jax.random.split(jax.random.key(config.seed))

        def init(rng, begin):
            model = self.model._replace(
                init=lambda rng: _overlay(self.model.init(rng), begin),
                stats=lambda: _overlay(self.model.stats(), begin),
            )
            objective = objectives.make(model, config, self.steps_per_epoch)
            return init_state(objective, tx, rng)

        self.abstract = sharding.abstract_state(lambda: init(self.init_rng, {}), self.mesh)
        state = jax.tree.map(lambda x: x.sharding, self.abstract)
        over_data, everywhere = sharding.batch_sharding(self.mesh), sharding.replicated(self.mesh)
        self._init = jax.jit(init, out_shardings=state)
        self._step = jax.jit(
            make_train_step(self.objective, tx, config.accum_steps),
            in_shardings=(state, over_data, everywhere),
            out_shardings=(state, everywhere),
            donate_argnums=0,
        )
        self._evaluate = {}

    def steps(self, key):
        return steps(self.config[key], self.steps_per_epoch)

    def due(self, step, key):
        """Whether what is done every config[key] is due after `step` steps."""
        every = self.every[key]
        return step == self.total or every > 0 and step % every == 0

    def init(self, say=lambda _: None):
        """The sharded TrainState of step 0: random, or with the weights of config.model_init."""
        c, begin = self.config, {}
        if c.model_init:
            begin, fresh = pretrained.init_params(c.model_init, self.model.module, c.model)
            new = f"; new: {', '.join(fresh)}" if fresh else ""
            say(f"beginning with the weights of {c.model_init}{new}")
        return self._init(self.init_rng, begin)

    def batches(self, start):
        """Global batches start, start + 1, ...: this process's rows, as numpy arrays."""
        return batch.from_config(self.source, self.config, start)

    def step(self, state, rows):
        """(state, this process's rows) -> (state, metrics). The state passed in is used up."""
        rows = batch.to_devices(rows, sharding.batch_sharding(self.mesh))
        with jax.set_mesh(self.mesh):
            return self._step(state, rows, self.train_rng)

    def lower(self, rows):
        """Lower the training step for the mesh, whose devices need not be available.

        rows: shapes and dtypes of a global batch, a tree.
        """
        place = sharding.batch_sharding(self.mesh)
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), rows)
        with jax.set_mesh(self.mesh):
            return self._step.lower(self.abstract, rows, self.train_rng)

    def lr(self, step):
        return float(self.schedule(step))

    def weights(self, state):
        return self.objective.weights(state.params, state.extra)

    def evaluate(self, split, weights):
        """All evaluators on a split -> {"eval/val/acc1": ...}."""
        if split not in self._evaluate:
            self._evaluate[split] = evaluators.make(
                self.config.evaluators, self.model, self.config, split, self.mesh
            )
        scores = self._evaluate[split](weights)
        return {f"eval/{split}/{key}": x for key, x in scores.items()}

    def facts(self):
        """The entries of run.json about data and model."""
        model = dataclasses.asdict(self.model.module.config)
        return {
            "data": {
                "num_classes": self.source.num_classes,
                "class_names": list(self.source.class_names),
                "train_images": len(self.source),
            },
            "model": model | {"parameters": self.parameters},
            "steps_per_epoch": self.steps_per_epoch,
        }

    def describe(self):
        """Two lines for a person."""
        c, count = self.config, self.mesh.size
        flops = count_flops(self.model.module.config)
        kind = jax.devices()[0].device_kind
        return (
            f"{c.model.variant}: {self.parameters:,} parameters, {flops / 1e9:.3g} GFLOPs per "
            f"image; {count} x {kind}\n{len(self.source):,} images of {self.source.num_classes} "
            f"classes, {self.total:,} steps of {c.batch_size} = "
            f"{self.total / self.steps_per_epoch:.3g} epochs"
        )

    @property
    def parameters(self):
        """Number of trainable parameters."""
        return sum(x.size for x in jax.tree.leaves(self.abstract.params))


def _overlay(tree, over):
    """Nested dicts, with the leaves of `over` in place of the tree's."""
    if not isinstance(tree, dict):
        return over
    return {k: _overlay(v, over[k]) if k in over else v for k, v in tree.items()}
