"""Profiles of training steps, for xprof and TensorBoard."""

import re
import tempfile
from pathlib import Path

from vit_jax.errors import UserError
from vit_jax.workdir import storage

DIRECTORY = "profile"


def parse(text):
    """Parse a range of steps.

    Args:
      text: "START:STOP", the first and the last step; "": none.

    Returns:
      The first and the last step; 0, 0 for none.

    Raises:
      UserError: if the text is not a range of steps.
    """
    if not text:
        return 0, 0
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise UserError(
            f"config.profile = {text!r} must be START:STOP, the first and the last training step "
            "to profile, such as 20:25"
        )
    return int(match[1]), int(match[2])


class Profile:
    """Writes a profile of some training steps to the directory "profile" of a workdir.

    Each process writes a file of its own.

    Args:
      workdir: directory of the run.
      steps: the first and the last step, from `parse`.
      say: function called with a line of text.
    """

    def __init__(self, workdir, steps, say):
        self.directory = storage.resolve(workdir) / DIRECTORY
        self.first, self.last = steps
        self.say = say
        self.started = False

    def begin(self, step):
        """Call this method before a step."""
        if step != self.first:
            return
        import jax

        # JAX writes to local disks only.
        self.local = tempfile.mkdtemp() if storage.is_bucket(self.directory) else self.directory
        options = jax.profiler.ProfileOptions()
        # A call of a Python function is an event; a million of them, the most that a trace has, are
        # reached after a few steps.
        options.python_tracer_level = 0
        jax.profiler.start_trace(str(self.local), profiler_options=options)
        self.started = True

    def annotate(self, step):
        """Return a context manager that marks a step in the profile."""
        import jax

        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step, outputs):
        """Call this method after a step, with arrays that it computes."""
        if self.started and step == self.last:
            import jax

            jax.block_until_ready(outputs)
            self.close()

    def close(self):
        """Write the profile of the steps so far, if it was begun."""
        if not self.started:
            return
        import jax

        self.started = False
        jax.profiler.stop_trace()
        if self.local != self.directory:
            for path in filter(Path.is_file, Path(self.local).rglob("*")):
                target = self.directory / str(path.relative_to(self.local))
                target.parent.mkdir(parents=True, exist_ok=True)
                storage.write_bytes(target, path.read_bytes())
        self.say(
            f"profile of steps {self.first:,} to {self.last:,}: tensorboard --logdir="
            f"{self.directory} or xprof {self.directory}"
        )
