"""Logging of a run: metrics, TensorBoard events, the progress line and run.json."""

import json
import math
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from vit_jax.workdir import metrics, storage
from vit_jax.workdir.metrics import read_metrics
from vit_jax.workdir.storage import write_json, write_text

__all__ = ["Log", "read_metrics", "write_json", "write_run_json", "write_text"]
PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets numpy pillow simplejpeg numba"
).split()
SECRET = r"(?i)^(--?[\w.-]*(?:key|token|secret|password)[\w.-]*=).*"  # flags to redact
REFRESH_SECONDS = 0.2  # minimum time between updates of the progress line


class Log:
    """Metrics writer and progress display of a run. Use it as a context manager.

    Args:
      workdir: an existing directory.
      total_steps: number of steps of the whole run; used to estimate the remaining time.
      start: step of the restored checkpoint, or 0. Rows after this step are moved to
        metrics.discarded.jsonl.
      primary: whether this process writes. In all other processes, the methods do nothing.
      stream: text stream for the progress; None: stdout. On a terminal, the progress line is
        updated in place; otherwise one line is printed per row.
    """

    def __init__(self, workdir, total_steps, *, start=0, primary=True, stream=None):
        self.workdir = storage.resolve(workdir)
        self.total = total_steps
        self.console = Console(file=stream or sys.stdout, quiet=not primary, force_jupyter=False)
        self._writer = None
        self._live = None
        self._text = ""
        self._last_refresh = 0.0
        self._previous = None  # step and time of the previous training row
        if primary:
            self._writer = metrics.open_writer(self.workdir, start)
            self._open_tensorboard(start)

    def write(self, step, values):
        """Write a row of metrics.

        Args:
          step: number of completed optimizer steps.
          values: {name: value}, such as {"train/loss": 0.5}. JAX scalars are fetched to the host.

        Raises:
          OSError: ENOSPC if the disk is full. The file is left without a partial line.
        """
        if self._writer is None:
            return
        row = {"step": int(step)} | {key: _to_python(value) for key, value in values.items()}
        self._writer.write(row)
        numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, (int, float))}
        values = [{"tag": k, "simple_value": v} for k, v in numbers.items()]
        self._write_event(row["step"], summary={"value": values})
        if self._writer.due:
            self.flush()
        if "train/loss" not in row:
            text = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
            self.info(f"step {row['step']:,}/{self.total:,}  {text}")
            return
        self._text = self._describe(row)
        if self.console.file.isatty():
            self._show(row["step"])
        else:
            self.info(f"step {row['step']:,}/{self.total:,}  {self._text}")

    def flush(self):
        """Store all rows that were written so far.

        Call it before saving a checkpoint, so that the rows up to the checkpoint are never lost.
        On a disk, rows are stored as they are written.
        """
        if self._writer is not None:
            self._writer.flush()
            self._tensorboard.flush()

    def update_progress(self, step):
        """Update the progress line on a terminal. Cheap enough to call after every step."""
        due = time.monotonic() - self._last_refresh > REFRESH_SECONDS
        if due and self._writer is not None and self.console.file.isatty():
            self._show(step)

    def info(self, text):
        """Print a line above the progress line."""
        self.console.print(Text(text), soft_wrap=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._live is not None:
            self._live.stop()
        if self._writer is not None:
            self._writer.close()
            self._tensorboard.close()

    def _show(self, step):
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        line = Text(f"step {step:,}/{self.total:,}  {self._text}", no_wrap=True, overflow="crop")
        self._live.update(line, refresh=True)
        self._last_refresh = time.monotonic()

    def _describe(self, row):
        """Format the main metrics of a training row for the progress line."""
        step_seconds = row.get("perf/step_ms", 0) / 1e3
        now = time.monotonic()
        # Include evaluation and checkpoints in the estimate, but not the initial compilation.
        if self._previous:
            step, before = self._previous
            step_seconds = (now - before) / max(row["step"] - step, 1)
        self._previous = row["step"], now
        parts = [f"loss {row['train/loss']:.4f}"]
        if (accuracy := row.get("train/acc1")) is not None:
            parts.append(f"acc {accuracy:.1%}")
        if (throughput := row.get("perf/images_per_s")) is not None:
            parts.append(f"{throughput:,.{0 if throughput >= 100 else 1}f} images/s")
        if step_seconds:
            seconds = round(step_seconds * (self.total - row["step"]))
            parts.append(f"{timedelta(seconds=seconds)} left")
        if (wait := row.get("perf/data_wait_frac")) is not None:
            parts.append(f"data wait {wait:.0%}")
        return "  ".join(parts)

    def _open_tensorboard(self, start):
        # Not SummaryWriter: its thread dies if the disk is full, and its queue then blocks forever.
        from tensorboardX.event_file_writer import EventsWriter

        if not storage.is_bucket(self.workdir):
            (self.workdir / "tb").mkdir(exist_ok=True)
        # File names have a resolution of one second; without the suffix, a quick restart would
        # overwrite the previous file.
        suffix = f".{time.time_ns()}"
        self._tensorboard = EventsWriter(str(self.workdir / "tb" / "events"), suffix)
        # TensorBoard hides events of earlier starts from this step onwards.
        self._write_event(start + 1 if start else 0, session_log={"status": "START"})

    def _write_event(self, step, **content):
        from tensorboardX.proto.event_pb2 import Event

        self._tensorboard.write_event(Event(wall_time=time.time(), step=step, **content))


def write_run_json(workdir, *, step=0, mesh=None, **facts):
    """Write workdir/run.json: command, code revision, package versions, devices and start times.

    Call it in one process at every start of the run.

    Args:
      workdir: an existing directory.
      step: step from which this start resumes.
      mesh: jax.sharding.Mesh, or None.
      **facts: additional entries, such as num_classes. Entries from earlier starts are kept unless
        they are overwritten.
    """
    import jax

    path = storage.resolve(workdir) / "run.json"
    try:
        run = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        run = {}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    devices = jax.devices()
    run |= {
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
    write_json(path, run)


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
