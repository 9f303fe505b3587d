"""Logging of a run: metrics, loggers, the progress bar and run.json."""

import contextlib
import functools
import math
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from vit_jax import progress
from vit_jax.errors import UserError, printable
from vit_jax.schema import member
from vit_jax.workdir import metrics, storage
from vit_jax.workdir.metrics import read_metrics
from vit_jax.workdir.storage import write_json, write_text

__all__ = ["Log", "read_metrics", "write_json", "write_run_json", "write_text"]
PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets numpy pillow simplejpeg numba"
).split()
SECRET = r"(?i)^(--?[\w.-]*(?:key|token|secret|password)[\w.-]*=).*"  # flags to redact
REFRESH_SECONDS = 0.2  # minimum time between updates of the progress bar


class Log:
    """Metrics writer, loggers and progress display of a run. Use it as a context manager.

    On a terminal, a progress bar is updated in place; otherwise one line is printed per row.

    Args:
      workdir: an existing directory.
      total_steps: number of steps of the whole run; used to estimate the remaining time.
      start: step of the restored checkpoint, or 0. Rows after this step are moved to
        metrics.discarded.jsonl.
      steps_per_epoch: optimizer steps per epoch, to show the epoch; None: it is not shown.
      loggers: names of the loggers: modules of vit_jax/loggers.
      config: the ConfigDict of the run, for the loggers.
      primary: whether this process writes. In all other processes, the methods do nothing.
      stream: text stream for the progress; None: stdout.

    Raises:
      UserError: if a logger cannot be used.
    """

    def __init__(
        self,
        workdir,
        total_steps,
        *,
        start=0,
        steps_per_epoch=None,
        loggers=(),
        config=None,
        primary=True,
        stream=None,
    ):
        self.workdir = storage.resolve(workdir)
        self.total = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.console = progress.make_console(stream, quiet=not primary)
        self._interactive = progress.is_interactive(self.console)
        self._writer = None
        self._full = False  # whether rows could not be written
        self._loggers = {}
        self._bar = None
        self._start = start
        self._details = ""  # of the latest training row
        self._step_seconds = 0.0
        self._first = None  # step and time of the first training row
        self._last_refresh = 0.0
        self._printed = None  # step of the latest line about a training row
        if primary:
            self._loggers = {
                name: member("loggers", name).make(self.workdir, config, start) for name in loggers
            }
            self._writer = metrics.open_writer(self.workdir, start)

    def write(self, step, values):
        """Write a row of metrics.

        Args:
          step: number of completed optimizer steps.
          values: {name: value}, such as {"train/loss": 0.5}. JAX scalars are fetched to the host.

        If the disk is full, a warning is printed once, and the row is written later.
        """
        if self._writer is None:
            return
        step = int(step)
        values = {key: _to_python(value) for key, value in values.items()}
        self._writer.write({"step": step, "time": round(time.time(), 3)} | values)
        self._report_space()
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
        self._forward("write", step, numbers)
        if self._writer.due:
            self.flush()
        if "train/loss" in values:
            self._show_row(step, values)
        elif numbers:
            text = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
            self.info(f"step {step:,}/{self.total:,}  {text}")

    def image(self, step, tag, array):
        """Send an image to the loggers.

        Args:
          step: number of completed optimizer steps.
          tag: name of the image, such as "train/batch".
          array: uint8 [h, w, c] with 1, 3 or 4 channels.
        """
        self._forward("image", int(step), tag, array)

    def hparams(self, values, metrics):
        """Send the config and the final metrics to the loggers, to compare runs.

        Args:
          values: the flat config, {"optim.lr": 1e-3, ...}.
          metrics: {"eval/test/acc1": 0.98, ...}.
        """
        metrics = {key: _to_python(value) for key, value in metrics.items()}
        self._forward("hparams", values, {k: v for k, v in metrics.items() if v is not None})

    def flush(self):
        """Store all rows that were written so far.

        Call it before saving a checkpoint, so that the rows up to the checkpoint are never lost.

        Raises:
          NoSpace: if the disk is full and rows cannot be written. They are kept in memory.
        """
        if self._writer is not None:
            self._forward("flush")
            try:
                self._writer.flush()
            finally:
                self._report_space()

    def update_progress(self, step, values=None):
        """Update the progress display. Cheap enough to call after every step.

        Args:
          step: number of completed optimizer steps.
          values: metrics to show, named as for `write`; they are not stored. Without a terminal,
            they are printed, and a row of the same step is not.
        """
        if self._writer is None:
            return
        if values:
            self._show_row(step, {key: _to_python(value) for key, value in values.items()})
        elif self._interactive and time.monotonic() - self._last_refresh > REFRESH_SECONDS:
            self._refresh(step)

    @contextlib.contextmanager
    def status(self, text, done=None):
        """Show what the run is doing during a `with` block; see `vit_jax.progress.status`."""
        try:
            with progress.status(text, done, self.console):
                yield
        finally:
            if self._bar is not None:
                self._bar.refresh()  # without the spinner

    def info(self, text):
        """Print a line above the progress bar."""
        progress.print_line(self.console, text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            if self._bar is not None:
                self._bar.stop()
        finally:
            if self._writer is not None:
                self._writer.close()
                if rows := len(self._writer.pending):
                    self.info(
                        f"warning: the last {rows:,} rows of metrics are not on the disk, which is "
                        "full; rerun the same command to write them"
                    )
                else:
                    self._report_space()
            self._forward("close")

    def _report_space(self):
        """Print a line when the disk becomes full, and when the rows can be written again."""
        full = bool(self._writer.pending)
        if full != self._full:
            self._full = full
            path = printable(self.workdir / "metrics.jsonl")
            self.info(
                f"warning: no space left to write {path}; rows are kept in memory"
                if full
                else f"the rows kept in memory are written to {path}"
            )

    def _forward(self, method, *args):
        """Call a method of all loggers. Those that fail are not used any more."""
        for name, logger in list(self._loggers.items()):
            try:
                getattr(logger, method)(*args)
            except Exception as error:  # a logger never stops training
                del self._loggers[name]
                if method != "close":
                    with contextlib.suppress(Exception):
                        logger.close()
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self.info(
                    f"warning: the logger {name} failed and logs nothing more; metrics.jsonl is "
                    f"still written ({reason})"
                )

    def _show_row(self, step, values):
        """Show the metrics of a training row."""
        self._step_seconds = values.get("perf/step_ms", 0) / 1e3
        now = time.monotonic()
        # Include evaluation and checkpoints in the estimate, but not the initial compilation.
        if self._first is None:
            self._first = step, now
        elif step > self._first[0]:
            self._step_seconds = (now - self._first[1]) / (step - self._first[0])
        self._details = _describe(values)
        if self._interactive:
            self._refresh(step)
            return
        if step == self._printed:
            return
        self._printed = step
        parts = [f"step {step:,}/{self.total:,}", self._epoch(step), self._details]
        if remaining := self._remaining(step):
            parts.append(f"{remaining} left")
        self.info("  ".join(filter(None, parts)))

    def _refresh(self, step):
        """Redraw the progress bar."""
        if self._bar is None:
            self._bar = _Bar(self.console)
            self._bar.add_task("", total=self.total, completed=self._start, epoch="", left="")
            self._bar.start()
        remaining = self._remaining(step)
        fields = dict(epoch=self._epoch(step), left=f"{remaining} left" if remaining else "")
        self._bar.details = self._details
        self._bar.update(self._bar.task_ids[0], completed=int(step), **fields)
        self._bar.refresh()
        self._last_refresh = time.monotonic()

    def _epoch(self, step):
        """Return "epoch 3.1/30", or "" if the steps per epoch are not known."""
        if self.steps_per_epoch is None:
            return ""
        epochs = round(self.total / self.steps_per_epoch, 1)
        return f"epoch {step / self.steps_per_epoch:.1f}/{epochs:g}"

    def _remaining(self, step):
        """Return the estimated time to the last step, "0:12:34"; "" if it is not known."""
        seconds = round(self._step_seconds * (self.total - step))
        return str(timedelta(seconds=seconds)) if self._step_seconds else ""


class _Bar(Progress):
    """The progress bar, and a line with the latest metrics below it."""

    def __init__(self, console):
        self.details = ""
        columns = (
            TextColumn("step {task.completed:,}/{task.total:,}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f}%"),
            TextColumn("{task.fields[epoch]}"),
            TextColumn("{task.fields[left]}"),
        )
        options = dict(console=console, expand=True, auto_refresh=False, **progress.redirects())
        super().__init__(*columns, **options)

    def get_renderables(self):
        yield self.make_tasks_table(self.tasks)
        yield Text(self.details, no_wrap=True, overflow="ellipsis")


def _describe(values):
    """Format the main metrics of a training row."""
    formats = {
        "train/loss": lambda loss: f"loss {loss:.4f}",
        "train/acc1": lambda accuracy: f"acc {accuracy:.1%}",
        "sched/lr": lambda lr: f"lr {lr:.1e}",
        "perf/images_per_s": lambda speed: f"{speed:,.{0 if speed >= 100 else 1}f} images/s",
        "perf/mfu": lambda mfu: f"MFU {mfu:.1%}",
        "perf/data_wait_frac": lambda wait: f"data wait {wait:.0%}",
    }
    return "  ".join(f(values[key]) for key, f in formats.items() if values.get(key) is not None)


def write_run_json(workdir, *, step=0, mesh=None, **facts):
    """Write workdir/run.json: command, code revision, package versions, devices and start times.

    Call it in one process at every start of the run.

    Args:
      workdir: an existing directory.
      step: step from which this start resumes.
      mesh: jax.sharding.Mesh, or None.
      **facts: additional entries, such as num_classes. Entries from earlier starts are kept unless
        they are overwritten.

    Returns:
      Lines of text about a code revision or package versions that differ from the previous start.
    """
    import jax

    path = storage.resolve(workdir) / "run.json"
    lines = []
    try:
        run = storage.read_json(path)
        _check_run_json(path, run)
    except FileNotFoundError:
        run = {}
    except UserError as error:
        if not storage.is_bucket(path) and not path.is_file():
            raise
        run = {}
        lines.append(f"warning: {error}; it is replaced, and lists only the current start")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    devices = jax.devices()
    current = run | {
        "command": [re.sub(SECRET, r"\1***", arg) for arg in sys.argv],
        "code": _revision(),
        "python": platform.python_version(),
        "versions": {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES},
        "platform": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape) if mesh is not None else None,
        **facts,
        "starts": [*run.get("starts", []), {"time": now, "step": int(step)}],
    }
    write_json(path, current)
    return lines + _describe_changes(run, current)


def _describe_changes(old, new):
    """Return lines about the code revision and the package versions that changed."""
    lines = []
    before, after = ((x.get("code") or {}).get("revision") for x in (old, new))
    if before and after and before != after:
        lines.append(f"note: code revision {after[:10]}; the previous start was {before[:10]}")
    for name, version in old.get("versions", {}).items():
        current = new["versions"].get(name)
        if current != version:
            lines.append(f"note: {name} {current}; the previous start had {version}")
    return lines


def read_run_json(workdir):
    """Return the contents of workdir/run.json.

    The entries "data" (with "num_classes" and "class_names") and "steps_per_epoch" are present. The
    other entries of `write_run_json` may be missing, but are of the right types.

    Raises:
      UserError: if the file is missing or malformed.
    """
    path = storage.resolve(workdir) / "run.json"
    try:
        run = storage.read_json(path)
    except FileNotFoundError:
        raise UserError(
            f"{printable(path)} does not exist; train the model first, or restore it from a copy"
        ) from None
    _check_run_json(path, run)
    for group, key in (("data", "num_classes"), ("data", "class_names"), ("", "steps_per_epoch")):
        if key not in (run.get(group, {}) if group else run):
            raise _invalid_run_json(path, ".".join(filter(None, (group, key))))
    return run


def update_run_json(workdir, **facts):
    """Set entries of workdir/run.json. Raises UserError if the file is missing or malformed."""
    write_json(storage.resolve(workdir) / "run.json", read_run_json(workdir) | facts)


def _check_run_json(path, run):
    """Raise UserError if an entry of a run.json has the wrong type. Entries may be missing."""
    for key, fits in RUN_JSON.items():
        group = run
        *parents, leaf = key.split(".")
        for parent in parents:
            group = group.get(parent, {})
        if leaf in group and not fits(group[leaf]):
            raise _invalid_run_json(path, key)


def _invalid_run_json(path, key):
    return UserError(f"{printable(path)} has no valid value for {key!r}; restore it from a copy")


def _is_count(value, minimum=0):
    return type(value) is int and value >= minimum


def _is_dict_of(kind):
    return lambda value: isinstance(value, dict) and all(type(x) is kind for x in value.values())


def _is_list_of(kind):
    return lambda value: isinstance(value, list) and all(type(x) is kind for x in value)


def _is_split(value):
    fits = isinstance(value, dict) and _is_count(value.get("images"))
    return fits and type(value.get("fingerprint")) is str


def _is_start(value):
    return (
        isinstance(value, dict) and type(value.get("time")) is str and _is_count(value.get("step"))
    )


def _is_revision(value):
    if value is None:
        return True
    fits = isinstance(value, dict) and type(value.get("revision")) is str
    return fits and type(value.get("changed")) is bool


# Checks of the entries of run.json, groups before their keys.
RUN_JSON = {
    "command": _is_list_of(str),
    "code": _is_revision,
    "python": lambda value: type(value) is str,
    "versions": _is_dict_of(str),
    "platform": lambda value: type(value) is str,
    "devices": _is_list_of(str),
    "processes": functools.partial(_is_count, minimum=1),
    "mesh": lambda value: value is None or _is_dict_of(int)(value),
    "model": lambda value: isinstance(value, dict),
    "steps_per_epoch": lambda value: type(value) in (int, float) and value > 0,
    "starts": lambda value: isinstance(value, list) and all(map(_is_start, value)),
    "data": lambda value: isinstance(value, dict),
    "data.num_classes": functools.partial(_is_count, minimum=1),
    "data.class_names": _is_list_of(str),
    "data.train_images": functools.partial(_is_count, minimum=1),
    "data.splits": lambda value: isinstance(value, dict) and all(map(_is_split, value.values())),
}


def _to_python(value):
    """Convert a NumPy or JAX scalar to a Python number; None if it is not finite."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _revision():
    """Return {"revision": commit, "changed": whether tracked files were modified}.

    Returns None outside of a git checkout, or if git fails.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*args):
        command = ["git", "-C", str(root), *args]
        options = dict(capture_output=True, text=True, check=True, timeout=20)
        return subprocess.run(command, **options).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"revision": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None
