"""Start, stop and compare real training commands.

Every process runs on one CPU core: XLA on a CPU rounds differently with another number of threads.
Control runs and the compilation cache are shared by all cases of a process.
"""

import atexit
import contextlib
import functools
import hashlib
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests import ROOT
from vit_jax.workdir import log

TOTAL_STEPS = 60
CHECKPOINT_EVERY = 5
TIMEOUT_S = 600
POLL_S = 0.001
OVERRIDES = {
    "total_steps": TOTAL_STEPS,
    "checkpoint_every": CHECKPOINT_EVERY,
    "eval_every": 20,
    "log_every": 1,  # rows show how many steps a killed process has done
    "optim.warmup": 5,
    "model.depth": 1,
    "model.drop_path": 0.1,
    "loggers": "()",
    "log_images": 0,
}
DIGITS = {"augment.erase": 0.25, "augment.mixup": 0.2}
DINO = {"objective.out_dim": 64, "objective.hidden_dim": 32, "objective.bottleneck_dim": 16}
# Recipes with overrides. Those of injected.py have the fault of the environment variable FAULT.
RECIPES = {
    "digits": ("configs/digits.py", DIGITS),
    "DINO digits": ("configs/dino_digits.py", DINO),
    "injected digits": ("tests/faults/injected.py:digits", DIGITS),
    "injected DINO digits": ("tests/faults/injected.py:dino_digits", DINO),
}
PLAIN = ("digits", "DINO digits")


@functools.cache
def shared_folder():
    """Return a directory that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="faults-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def train_command(recipe, workdir, **overrides):
    """Return the training command of a tiny model.

    Args:
      recipe: a key of `RECIPES`.
      workdir: directory of the run.
      **overrides: config keys with "__" for ".".
    """
    path, values = RECIPES[recipe]
    values = OVERRIDES | values
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    command = [sys.executable, "-m", "vit_jax.train", f"--config={path}", f"--workdir={workdir}"]
    return command + [f"--config.{key}={value}" for key, value in values.items()]


@contextlib.contextmanager
def one_core():
    """Run this thread, and the processes that it starts, on one CPU core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class Process:
    """A command that is running, with its output in a file.

    Args:
      command: list of arguments.
      output: path of the file, which is replaced.
      **environment: environment variables to set.
    """

    def __init__(self, command, output, **environment):
        defaults = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(shared_folder() / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        self.command = command
        self.output = Path(output)
        self.start = time.monotonic()
        with open(output, "wb") as file, one_core():
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | defaults | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def text(self):
        """Return the output so far."""
        return self.output.read_text(errors="replace")

    def ended(self):
        return self.process.poll() is not None

    def wait_until(self, condition):
        """Wait until condition() is true. Returns False if the process ends before."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if self.ended():
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"nothing happened in {TIMEOUT_S} s\n{self.text()}")
            time.sleep(POLL_S)
        return True

    def cpu_seconds(self):
        """Return the CPU time so far, which other load of the machine does not change."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return math.inf
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def send(self, number):
        self.process.send_signal(number)

    def kill(self):
        """Send SIGKILL and wait. Returns whether the process was still running."""
        self.process.kill()
        return self.process.wait() == -signal.SIGKILL

    def wait(self):
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {TIMEOUT_S} s\n{self.text()}") from None

    def check(self, code):
        """Wait for the end; the exit code is `code`, and no traceback is printed."""
        actual = self.wait()
        text = self.text()
        assert actual == code, f"exit code {actual} instead of {code}\n{text}"
        assert "Traceback" not in text, f"a traceback was printed\n{text}"
        return text


def train(recipe, workdir, **overrides):
    """Train to the end and return the output."""
    command = train_command(recipe, workdir, **overrides)
    return Process(command, Path(workdir).with_suffix(".txt")).check(0)


@functools.cache
def control(recipe, **overrides):
    """Return the workdir of an uninterrupted run, trained once per process."""
    workdir = Path(tempfile.mkdtemp(dir=shared_folder(), prefix="control-")) / "run"
    train(recipe, workdir, **overrides)
    return workdir


def complete_steps(workdir):
    """Return the sorted steps of the complete checkpoints."""
    names = os.listdir(workdir / "checkpoints") if (workdir / "checkpoints").exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def unfinished(workdir):
    """Return the names of unfinished checkpoints and deletions, such as 20.saving."""
    names = os.listdir(workdir / "checkpoints") if (workdir / "checkpoints").exists() else []
    return sorted(name for name in names if re.match(r"\d+\.(?!damaged)", name))


def rows(workdir):
    """Return the rows of metrics.jsonl without timings."""
    result = []
    for row in log.read_metrics(workdir):
        result.append({k: v for k, v in row.items() if not k.startswith(("perf/", "time"))})
    return result


def resumed_from(text):
    """Return the step from which a command resumed, from its output; 0 if it started anew."""
    match = re.search(r"resuming from step ([\d,]+)", text)
    return int(match[1].replace(",", "")) if match else 0


def read_arrays(checkpoint):
    """Read all arrays of a checkpoint as {name: NumPy array}, without the library.

    Args:
      checkpoint: path of a directory checkpoints/<step>.
    """
    import jax
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax misses a file that it does not need
    arrays = {}
    for item in ("model", "optimizer"):
        reader = ocp.PyTreeCheckpointer()
        tree = reader.metadata(checkpoint / item).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        values = reader.restore(checkpoint / item, restore_args=as_numpy)
        for path, value in jax.tree_util.tree_leaves_with_path(values):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            arrays[f"{item}/{name}"] = np.asarray(value)
    return arrays


def digests(arrays):
    """Return {path: SHA-256 of dtype, shape and bytes}."""
    return {
        path: hashlib.sha256(repr((x.dtype.name, x.shape)).encode() + x.tobytes()).hexdigest()
        for path, x in arrays.items()
    }


@functools.cache
def control_digests(workdir, step):
    """Return the digests of a checkpoint of a control run."""
    return digests(read_arrays(workdir / f"checkpoints/{step}"))


def assert_equal_runs(workdir, expected, output=""):
    """Check that a run ended as the control run: all arrays and metrics, and no temporary files.

    Args:
      workdir: directory of the run.
      expected: workdir of the control run.
      output: text of the last command, for the message.
    """
    step = complete_steps(workdir)[-1]
    assert step == complete_steps(expected)[-1], f"the last checkpoint is {step}\n{output}"
    actual = digests(read_arrays(workdir / f"checkpoints/{step}"))
    wanted = control_digests(expected, step)
    names = [name for name in wanted | actual if actual.get(name) != wanted.get(name)]
    assert not names, f"{len(names)} of {len(wanted)} arrays differ: {names[:3]}\n{output}"
    assert rows(workdir) == rows(expected), f"the rows of metrics.jsonl differ\n{output}"
    assert not unfinished(workdir), f"left in checkpoints: {unfinished(workdir)}"


def finite(arrays):
    """Return whether all floating-point arrays of a checkpoint are finite."""
    return all(np.isfinite(x).all() for x in arrays.values() if x.dtype.kind == "f")
