"""What a run records and prints: metrics, TensorBoard events, the progress line, run.json."""

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
PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets numpy pillow"
PACKAGES = [*PACKAGES.split(), "simplejpeg", "numba"]
SECRET = r"(?i)^(--?[\w.-]*(?:key|token|secret|password)[\w.-]*=).*"  # flags to leave out
REFRESH_SECONDS = 0.2  # of the progress line


class Log:
    """The log of one (re)start of a run; a context manager.

    Args:
      workdir: an existing directory.
      total_steps: of the whole run, for the remaining time.
      start: the step that was restored; later rows are moved to metrics.discarded.jsonl.
      primary: whether this process writes; in the others every method does nothing.
      stream: where the progress goes: in place on a terminal, else one line per row.
    """

    def __init__(self, workdir, total_steps, *, start=0, primary=True, stream=None):
        self.workdir = storage.resolve(workdir)
        self.total = total_steps
        self.console = Console(file=stream or sys.stdout, quiet=not primary, force_jupyter=False)
        self._rows = None
        self._live = None
        self._text = ""
        self._shown = 0.0
        self._previous = None  # step and time of the previous training row
        if primary:
            self._rows = metrics.rows_after(self.workdir, start)
            self._open_tensorboard(start)

    def write(self, step, values):
        """Write a row: {"train/loss": number, ...} after `step` optimizer steps.

        Fetches JAX scalars. Raises OSError (ENOSPC) where the disk is full; the file still ends in
        a whole line then.
        """
        if self._rows is None:
            return
        row = {"step": int(step)} | {key: _plain(value) for key, value in values.items()}
        self._rows.write(row)
        numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, (int, float))}
        values = [{"tag": k, "simple_value": v} for k, v in numbers.items()]
        self._write_event(row["step"], summary={"value": values})
        if self._rows.due:
            self.flush()
        if "train/loss" not in row:
            text = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
            self.say(f"step {row['step']:,}/{self.total:,}  {text}")
            return
        self._text = self._describe(row)
        if self.console.file.isatty():
            self._show(row["step"])
        else:
            self.say(f"step {row['step']:,}/{self.total:,}  {self._text}")

    def flush(self):
        """Return once all rows are stored.

        Call it before a checkpoint, which stands for the rows up to it. On a disk they already are.
        """
        if self._rows is not None:
            self._rows.flush()
            self._tensorboard.flush()

    def tick(self, step):
        """Move the progress line on a terminal. Cheap: call it after every step."""
        due = time.monotonic() - self._shown > REFRESH_SECONDS
        if due and self._rows is not None and self.console.file.isatty():
            self._show(step)

    def say(self, text):
        """Print a line, above the progress line."""
        self.console.print(Text(text), soft_wrap=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._live is not None:
            self._live.stop()
        if self._rows is not None:
            self._rows.close()
            self._tensorboard.close()

    def _show(self, step):
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        line = Text(f"step {step:,}/{self.total:,}  {self._text}", no_wrap=True, overflow="crop")
        self._live.update(line, refresh=True)
        self._shown = time.monotonic()

    def _describe(self, row):
        """The numbers of a training row that a person watches."""
        pace = row.get("perf/step_ms", 0) / 1e3
        now = time.monotonic()
        if self._previous:  # pauses count too, but not the compilation before the first row
            step, before = self._previous
            pace = (now - before) / max(row["step"] - step, 1)
        self._previous = row["step"], now
        words = [f"loss {row['train/loss']:.4f}"]
        if (accuracy := row.get("train/acc1")) is not None:
            words.append(f"acc {accuracy:.1%}")
        if (speed := row.get("perf/images_per_s")) is not None:
            words.append(f"{speed:,.{0 if speed >= 100 else 1}f} images/s")
        if pace:
            words.append(f"{timedelta(seconds=round(pace * (self.total - row['step'])))} left")
        if (wait := row.get("perf/data_wait_frac")) is not None:
            words.append(f"data wait {wait:.0%}")
        return "  ".join(words)

    def _open_tensorboard(self, start):
        # Not SummaryWriter: its thread dies on a full disk, and then its queue blocks forever.
        from tensorboardX.event_file_writer import EventsWriter

        if not storage.is_bucket(self.workdir):
            (self.workdir / "tb").mkdir(exist_ok=True)
        # Names hold seconds only: without a suffix a quick restart would overwrite a file.
        suffix = f".{time.time_ns()}"
        self._tensorboard = EventsWriter(str(self.workdir / "tb" / "events"), suffix)
        # TensorBoard hides events of earlier starts from this step on.
        self._write_event(start + 1 if start else 0, session_log={"status": "START"})

    def _write_event(self, step, **content):
        from tensorboardX.proto.event_pb2 import Event

        self._tensorboard.write_event(Event(wall_time=time.time(), step=step, **content))


def write_run_json(workdir, *, step=0, mesh=None, **facts):
    """Write workdir/run.json: what ran, on what, when. Call it in one process, at every start.

    Args:
      workdir: an existing directory.
      step: the step that this start resumes from.
      mesh: jax.sharding.Mesh, or None.
      **facts: more entries, such as num_classes; those of earlier starts stay unless given again.
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
        "command": [re.sub(SECRET, r"\1***", word) for word in sys.argv],
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


def _plain(value):
    """A number of any library as Python's; None where it is not finite."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _revision():
    """{"revision": commit, "changed": whether files differ from it}; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words):
        command = ["git", "-C", str(root), *words]
        options = dict(capture_output=True, text=True, check=True, timeout=20)
        return subprocess.run(command, **options).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"revision": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None
