"""Checkpointing with Orbax. Saves asynchronously and keeps the latest and the best checkpoints.

workdir/checkpoints/<step>/ has two items: `model` (params and extra), which is sufficient for
evaluation and inference, and `optimizer` (step and opt_state), which is also needed to resume.
"""

import math

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vit_jax.errors import UserError, printable
from vit_jax.workdir import storage

# Files of a complete checkpoint. Orbax does not raise an error if it cannot write the manifests.
FILES = [
    f"{item}/{name}" for item in ("model", "optimizer") for name in ("_METADATA", "manifest.ocdbt")
]


class Checkpoints:
    """The checkpoints of a run. Use it as a context manager.

    Nothing is created before the first save.

    Args:
      workdir: directory of the run.
      keep: number of latest checkpoints to keep, in addition to the best one.
      metric: name of the metric that determines the best checkpoint; larger is better.
      write: False to read the checkpoints of a run that may still be training; the temporary
        directories of unfinished checkpoints are then not removed.
    """

    def __init__(self, workdir, *, keep=2, metric="eval/val/acc1", write=True):
        def score(metrics):
            return metrics.get(metric, -math.inf)

        self.metric = metric
        self.folder = storage.resolve(workdir) / "checkpoints"
        best = preservation_policy.BestN(
            get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(keep), best]
            ),
            best_fn=score,
            best_mode="max",
            create=False,
            cleanup_tmp_directories=write and self.folder.exists(),
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self._unverified = None  # step of the latest save

    def save(self, step, state, metrics=()):
        """Save a TrainState asynchronously. Does nothing if there is a checkpoint of this step.

        Returns once the state is copied. The checkpoint is on disk after `wait` or the next save.

        Args:
          step: number of completed optimizer steps.
          state: the `TrainState`.
          metrics: evaluation metrics of this state, as a dict; () if it was not evaluated.

        Raises:
          UserError: if the previous checkpoint is not on disk.
        """
        if step in self.manager.all_steps():
            return
        self.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        items = ocp.args.Composite(
            model=ocp.args.StandardSave({"params": state.params, "extra": state.extra}),
            optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
        )
        # Without metrics, Orbax would warn at every save.
        metrics = metrics if self.metric in metrics else {}
        if not self.manager.save(step, args=items, metrics=metrics, force=True):
            raise RuntimeError(f"failed to save the checkpoint at step {step}")
        self._unverified = step

    def latest(self):
        """Return the step of the latest checkpoint, or None."""
        return self.manager.latest_step()

    def best(self):
        """Return (step, metric) of the best checkpoint, the later one in a tie, or None."""
        step = self.manager.best_step()
        metrics = {} if step is None else self.manager.metrics(step) or {}
        return (step, metrics[self.metric]) if self.metric in metrics else None

    def restore(self, abstract):
        """Restore the latest TrainState.

        Args:
          abstract: a TrainState of ShapeDtypeStructs with the target shardings.
        """
        step = self.latest()
        params, extra = self.restore_model(abstract.params, abstract.extra, step)
        optimizer = {"step": abstract.step, "opt_state": abstract.opt_state}
        items = ocp.args.Composite(optimizer=ocp.args.StandardRestore(optimizer))
        restored = self.manager.restore(step, args=items)["optimizer"]
        return abstract._replace(params=params, extra=extra, **restored)

    def restore_model(self, params, extra, step):
        """Restore the model of the checkpoint at `step`, without the optimizer state.

        Args:
          params: pytree of ShapeDtypeStructs with the target shardings.
          extra: pytree of ShapeDtypeStructs with the target shardings.
          step: step of the checkpoint.

        Returns:
          params, extra.
        """
        model = {"params": params, "extra": extra}
        items = ocp.args.Composite(model=ocp.args.StandardRestore(model))
        restored = self.manager.restore(step, args=items)["model"]
        return restored["params"], restored["extra"]

    def wait(self):
        """Wait until all checkpoints are on disk. Raises errors of the background save.

        Raises:
          UserError: if the latest checkpoint is not on disk although saving it succeeded.
        """
        self.manager.wait_until_finished()
        step, self._unverified = self._unverified, None
        if step is None or jax.process_index():
            return
        self.manager.reload()  # what a resumed run will find
        paths = [self.folder / str(step) / name for name in FILES]
        if step not in self.manager.all_steps() or not all(path.exists() for path in paths):
            raise UserError(
                f"the checkpoint of step {step:,} is incomplete or not in "
                f"{printable(self.folder)}; was the directory moved or removed while training?"
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.manager.close()
