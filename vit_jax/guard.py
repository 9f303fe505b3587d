"""Protects a training run: saves what is unsaved when it is interrupted, and counts bad steps."""

import contextlib
import functools
import shlex
import sys
from pathlib import Path

from vit_jax import forward
from vit_jax.errors import Diverged, NoSpace, Preempted, UserError


class Guard:
    """Saves what is unsaved when training is interrupted or fails.

    Args:
      checkpoints: the `Checkpoints` of the run.
      logger: the `Log` of the run.
      stop: the `StopSignal`.
      start: step that training begins with; it needs no saving.
      describe: exception -> exit code and message; None, None for a bug.
    """

    def __init__(self, checkpoints, logger, stop, start, describe):
        self.checkpoints = checkpoints
        self.logger = logger
        self.stop = stop
        self.start = start
        self.describe = describe

    @contextlib.contextmanager
    def unsaved(self, step, state, *, pending=False):
        """Protect a state during a `with` block that does not change it and that may block.

        If a signal arrives, another thread saves the state and ends the process. If the block
        fails, the state is saved before the exception is raised.

        Args:
          step: number of completed optimizer steps.
          state: the `TrainState`.
          pending: whether the block is an evaluation, which a resumed run then repeats.
        """
        save = functools.partial(self.save, step, state, now=True, pending=pending)
        try:
            with self.stop.react(lambda: self._leave(save)), interruptible(self.stop):
                yield
        except Interrupted:
            save()
            raise Preempted(self.checkpoints.preempted()) from None
        except Exception as error:
            if self.stop.multiprocess:  # the others do not save
                raise
            save()
            if isinstance(error, UserError) or not _lost_worker(error):
                raise
            raise Preempted(
                f"a process that loads data was killed, perhaps because memory was short; "
                f"{self.checkpoints.preempted().removeprefix('preempted: ')}"
            ) from error

    def save(self, step, state, scores=(), *, now=False, pending=False):
        """Save a checkpoint after the rows up to it; now: return when it is verified.

        Without these rows on disk, it is not saved: a resumed run would not write them again.
        """
        if step == self.start or step == self.checkpoints.saved:
            return
        try:
            self.logger.flush()
        except NoSpace as error:
            if now or self.stop.multiprocess:
                raise
            self.logger.info(
                f"warning: could not save the checkpoint of step {step:,} "
                f"({str(error).partition(';')[0]}); trying again at the next one"
            )
            return
        save = self.checkpoints.save_now if now else self.checkpoints.save
        save(step, state, scores, pending=pending)

    def check(self):
        """Check that the workdir is still there, before a row is written to it."""
        if self.checkpoints.owner is not None:
            self.checkpoints.owner.check(fresh=False)

    def _leave(self, save):
        """Save and end the process, in a thread."""
        try:
            save()
        except Exception as error:
            code, message = self.describe(error)
            self.stop.exit(f"error: {message or repr(error)}", code or 1)
        self.stop.exit(self.checkpoints.preempted())


class Interrupted(Exception):
    """An evaluation was interrupted by a signal, in all processes."""


@contextlib.contextmanager
def interruptible(stop):
    """With several processes, poll after every batch that is evaluated in a `with` block.

    Raises:
      Interrupted: in all processes, at the same batch.
    """
    if not stop.multiprocess:  # a thread reacts
        yield
        return

    def poll():
        if stop():
            raise Interrupted

    with forward.polling(poll):
        yield


def _lost_worker(error):
    """Return whether an exception is about a data-loading process that was killed."""
    text = str(error).lower()
    return any(words in text for words in ("worker process", "was terminated", "exit code", "died"))


class SkippedSteps:
    """Reports the training steps that were skipped, and stops if there are too many.

    Args:
      run: the `Run`.
      state: the `TrainState` that training begins with.
    """

    def __init__(self, run, state):
        self.limit = run.config.max_bad_steps
        self.total = int(state.bad.total)

    def metrics(self):
        """Return the metrics for a row; none if no step was skipped."""
        return {"train/bad_steps": self.total} if self.total else {}

    def check(self, step, state, metrics, checkpoints, logger):
        """Warn of steps that were skipped since the last call.

        Returns:
          Number of steps at the end that were skipped in a row.

        Raises:
          Diverged: if the last `max_bad_steps` steps were skipped.
        """
        total, in_a_row, first = map(int, state.bad)
        new, self.total = total - self.total, total
        if in_a_row >= self.limit:
            names = ("loss", "grad_norm", "update_norm")
            values = ", ".join(f"{name} {float(metrics[name]):g}" for name in names)
            saved = checkpoints.saved
            latest = f"the latest checkpoint is step {saved:,}" if saved else "no checkpoint yet"
            raise Diverged(
                f"the steps from {first:,} to {step:,} were not finite ({values} at step "
                f"{step:,}); {latest}. Lower optim.lr, lengthen optim.warmup or set optim.clip=1, "
                f"and use a new workdir.\nTo reproduce step {first:,}: {_reproduce()}"
            )
        if new:
            steps = f"step {first:,}" if new == 1 else f"{new:,} steps, the latest from {first:,}"
            logger.info(
                f"step {step:,}  warning: {steps}: the loss, gradients or updates were not finite; "
                "skipped"
            )
        return in_a_row


def _reproduce():
    """Return the command that stops at the first bad step after the latest checkpoint."""
    keys = "--config.log_every=1 --config.max_bad_steps=1"
    if Path(sys.argv[0]).name != "train.py":
        return f"train it with {keys}"
    return f"python -m vit_jax.train {shlex.join(sys.argv[1:])} {keys}"
