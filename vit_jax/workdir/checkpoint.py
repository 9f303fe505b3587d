"""The training state on disk, with Orbax: saved in the background, latest and best kept.

workdir/checkpoints/<step>/ has two items: `model` (params and extra), all that evaluation and
prediction read, and `optimizer` (step and opt_state), which resuming needs too.
"""

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vit_jax.workdir import storage


class Checkpoints:
    """The checkpoints of one workdir; a context manager.

    Args:
      workdir: directory of the run.
      keep: how many of the latest checkpoints stay, beside the best one.
      metric: the metric of the best checkpoint; larger is better.
      write: False to read those of a run that may be in progress, and to remove nothing.
    """

    def __init__(self, workdir, *, keep=2, metric="eval/val/acc1", write=True):
        def score(metrics):
            return metrics[metric]

        self.metric = metric
        best = preservation_policy.BestN(
            get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(keep), best]
            ),
            best_fn=score,
            best_mode="max",
            cleanup_tmp_directories=write,
        )
        self.folder = storage.resolve(workdir) / "checkpoints"
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step, state, metrics=()):
        """Save a TrainState, unless that step is saved already.

        Returns as soon as the state is copied; it is on disk after `wait`, or the next save.

        Args:
          step: optimizer steps done.
          state: `TrainState`.
          metrics: the evaluation of this very state, as a dict; () where there was none.
        """
        if step in self.manager.all_steps():
            return
        items = ocp.args.Composite(
            model=ocp.args.StandardSave({"params": state.params, "extra": state.extra}),
            optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
        )
        metrics = metrics if self.metric in metrics else None
        if not self.manager.save(step, args=items, metrics=metrics, force=True):
            raise RuntimeError(f"the checkpoint of step {step} was not taken")

    def latest(self):
        """The latest step, or None."""
        return self.manager.latest_step()

    def best(self):
        """(step, metric) of the best evaluated checkpoint, the later of equals; or None."""
        step = self.manager.best_step()
        return None if step is None else (step, self.manager.metrics(step)[self.metric])

    def restore(self, abstract):
        """The latest TrainState, placed as `abstract` says, of ShapeDtypeStructs with shardings."""
        step = self.latest()
        params, extra = self.restore_model(abstract.params, abstract.extra, step)
        optimizer = {"step": abstract.step, "opt_state": abstract.opt_state}
        items = ocp.args.Composite(optimizer=ocp.args.StandardRestore(optimizer))
        found = self.manager.restore(step, args=items)["optimizer"]
        return abstract._replace(params=params, extra=extra, **found)

    def restore_model(self, params, extra, step):
        """(params, extra) alone, placed as the two trees of ShapeDtypeStructs say."""
        model = {"params": params, "extra": extra}
        items = ocp.args.Composite(model=ocp.args.StandardRestore(model))
        found = self.manager.restore(step, args=items)["model"]
        return found["params"], found["extra"]

    def wait(self):
        """Return once everything that was saved is on disk. Raises what went wrong."""
        self.manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.manager.close()
