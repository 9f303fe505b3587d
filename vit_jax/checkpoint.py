"""The training state on disk, with Orbax: saved in the background, newest and best kept.

workdir/checkpoints/<step>/ has two items: `model` (params and extra), all that evaluation and
prediction read, and `optimizer` (step and opt_state), which resuming needs too.
"""

import json

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vit_jax import folders, models, objectives, sharding
from vit_jax.cli import UserError, load_config


class Checkpoints:
    """The checkpoints of one workdir. `metric` says what is best; larger is better.

    write=False: to read those of a run that may be going on, and to remove nothing.
    """

    def __init__(self, workdir, *, keep=2, metric="eval/val/acc1", write=True):
        self.metric = metric
        newest = preservation_policy.LatestN(keep)
        best = preservation_policy.BestN(
            get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy([newest, best]),
            best_fn=self._score,
            best_mode="max",
            cleanup_tmp_directories=write,
            enable_async_checkpointing=True,
        )
        self.folder = folders.place(workdir) / "checkpoints"
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def _score(self, metrics):
        return metrics[self.metric]

    def save(self, step, state, metrics=None):
        """Returns as soon as the state is copied; it is on disk after `wait`, or the next save.

        metrics: the evaluation of this very state, if there was one.
        """
        if step in self.manager.all_steps():
            return
        metrics = metrics if metrics and self.metric in metrics else None
        items = ocp.args.Composite(
            model=ocp.args.StandardSave({"params": state.params, "extra": state.extra}),
            optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
        )
        if not self.manager.save(step, args=items, metrics=metrics, force=True):
            raise RuntimeError(f"the checkpoint of step {step} was not taken")

    def latest(self):
        return self.manager.latest_step()

    def best(self):
        """(step, metric) of the best evaluated checkpoint, the later of equals; or None."""
        scored = [
            (metrics[self.metric], step)
            for step in self.manager.all_steps()
            if (metrics := self._metrics(step)) is not None
        ]
        return max(scored)[::-1] if scored else None

    def _metrics(self, step):
        metrics = self.manager.metrics(step)
        return metrics if metrics and self.metric in metrics else None

    def restore(self, abstract, step=None):
        """The state of a step (None: the newest), placed as `abstract` says, a TrainState of
        ShapeDtypeStructs with shardings."""
        step = self.latest() if step is None else step
        items = ocp.args.Composite(
            model=ocp.args.StandardRestore({"params": abstract.params, "extra": abstract.extra}),
            optimizer=ocp.args.StandardRestore(
                {"step": abstract.step, "opt_state": abstract.opt_state}
            ),
        )
        found = self.manager.restore(step, args=items)
        return abstract._replace(**found["model"], **found["optimizer"])

    def restore_model(self, params, extra, step):
        """(params, extra) alone, placed as the two trees of ShapeDtypeStructs say."""
        items = ocp.args.Composite(
            model=ocp.args.StandardRestore({"params": params, "extra": extra})
        )
        found = self.manager.restore(step, args=items)["model"]
        return found["params"], found["extra"]

    def wait(self):
        """Until everything that was saved is on disk. Raises what went wrong on the way."""
        self.manager.wait_until_finished()

    def close(self):
        self.manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def pick(checkpoints, which):
    """ "best", "latest" or a step -> the step. Where nothing was evaluated, best is latest."""
    steps = checkpoints.manager.all_steps()
    if not steps:
        raise UserError(f"there is no checkpoint in {checkpoints.folder}; train first")
    best = checkpoints.best()
    named = {"latest": max(steps), "best": best[0] if best else max(steps)}
    step = named.get(str(which), which)
    try:
        if int(step) in steps:
            return int(step)
    except ValueError:
        pass
    some = ", ".join(map(str, sorted(steps)))
    raise UserError(f"no checkpoint '{which}' in {checkpoints.folder}; say best, latest, {some}")


def load_weights(workdir, which="best", raw=False):
    """A run's model and the weights that the objective says to use.

    -> (config, run, model, weights, step): the config, run.json, `models.Model`, the weights on one
    device, and the step they are from. raw=True: the trained parameters, not their average.
    """
    config = load_config(workdir)
    path = folders.place(workdir) / "run.json"
    try:
        run = json.loads(path.read_text())
        num_classes, steps_per_epoch = run["data"]["num_classes"], run["steps_per_epoch"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not the record of a run ({error}); train first") from error
    model = models.build(num_classes, **config.model)
    objective = objectives.make(model, config, steps_per_epoch)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params, extra = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        jax.eval_shape(objective.init, jax.random.key(0)),
    )
    with Checkpoints(workdir, metric=config.best_metric, write=False) as checkpoints:
        step = pick(checkpoints, which)
        params, extra = checkpoints.restore_model(params, extra, step)
    weights = (objective.raw if raw else objective.weights)(params, extra)
    return config, run, model, weights, step


def load_model(workdir, which="best", raw=False):
    """A run's model with its weights, to call: model(images) -> named outputs."""
    _, _, model, params, _ = load_weights(workdir, which, raw)
    return model.bind(params)


def abstract_state(make_state, mesh):
    """make_state() -> TrainState, as ShapeDtypeStructs with the shardings of the mesh."""
    state = jax.eval_shape(make_state)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        sharding.state_shardings(state, mesh),
    )
