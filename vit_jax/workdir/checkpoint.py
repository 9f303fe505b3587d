"""The training state on disk, with Orbax: saved in the background, newest and best kept.

workdir/checkpoints/<step>/ has two items: `model` (params and extra), all that evaluation and
prediction read, and `optimizer` (step and opt_state), which resuming needs too.
"""

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vit_jax.workdir import storage


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
        self.folder = storage.place(workdir) / "checkpoints"
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
