"""What a run says: its rows (metrics.py), TensorBoard, the progress line, run.json."""

import json
import math
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vit_jax.workdir import metrics, storage
from vit_jax.workdir.metrics import read_metrics
from vit_jax.workdir.storage import write_json, write_text

__all__ = ["Log", "read_metrics", "write_json", "write_run_json", "write_text"]
PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets numpy pillow"
PACKAGES = [*PACKAGES.split(), "simplejpeg", "numba"]
SECRET = r"(?i)^(--?[\w.-]*(?:key|token|secret|password)[\w.-]*=).*"  # a flag not to write down


class Log:
    """The log of one (re)start of a run; a context manager.

    workdir: exists. total_steps: of the whole run, for the time that is left. start: the step
    that was restored; rows past it are moved to metrics.discarded.jsonl. primary: whether this
    process is the one that writes; the others' calls do nothing. stream: where the progress line
    goes; in place on a terminal, else one line a row.
    """

    def __init__(self, workdir, total_steps, *, start=0, primary=True, stream=None):
        self.workdir, self.total, self.start = storage.place(workdir), total_steps, start
        self.stream = stream or sys.stdout
        self._rows = self._tensorboard = self._live = None
        self._text, self._shown, self._mark = "", 0.0, None
        if primary:
            self._rows = metrics.rows_after(self.workdir, start)

    def write(self, step, values):
        """A row: {"train/loss": number, ...} after `step` optimizer steps. Fetches JAX scalars.

        Raises OSError (ENOSPC) where the disk is full; the file then still ends in a whole line.
        """
        if self._rows is None:
            return
        row = {"step": int(step)} | {key: _plain(value) for key, value in values.items()}
        self._rows.write(row)
        numbers = [(k, v) for k, v in row.items() if k != "step" and isinstance(v, (int, float))]
        self._write_tensorboard(row["step"], numbers)
        if self._rows.due:
            self.flush()
        if training := "train/loss" in row:
            text = self._text = self._describe(row)
        else:
            text = "  ".join(f"{k} {v:.4g}" for k, v in numbers)
        if training and self.stream.isatty():
            self._show(row["step"])
        else:
            self.say(f"step {row['step']:,}/{self.total:,}  {text}")

    def flush(self):
        """Until all rows are there. Only in a bucket they may not be; call it before a checkpoint
        is taken, which stands for the rows up to it."""
        if self._rows is not None:
            self._rows.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def tick(self, step):
        """Moves the progress line on a terminal. Cheap: call it after every step."""
        if self._rows is not None and self.stream.isatty() and time.monotonic() - self._shown > 0.2:
            self._show(step)

    def say(self, text):
        """A line of its own, above the progress line."""
        if self._rows is None:
            return
        if self._live is None:
            print(text, file=self.stream, flush=True)
        else:
            self._live.console.print(text, highlight=False, markup=False)

    def close(self):
        """Ends the progress line, closes the files. More calls do nothing."""
        if self._live is not None:
            self._live.stop()
        if self._rows is not None:
            self._rows.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._rows = self._tensorboard = self._live = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _show(self, step):
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        line = Text(f"step {step:,}/{self.total:,}  {self._text}", no_wrap=True, overflow="crop")
        if self._live is None:
            self._live = Live(line, console=Console(file=self.stream), auto_refresh=False)
            self._live.start()
        self._live.update(line, refresh=True)
        self._shown = time.monotonic()

    def _describe(self, row):
        """What a person watches of a training row."""
        pace, now = row.get("perf/step_ms", 0) / 1e3, time.monotonic()
        if self._mark is not None:  # pauses count too, but not the compilation before the first row
            pace = (now - self._mark[1]) / max(row["step"] - self._mark[0], 1)
        self._mark = (row["step"], now)
        left = timedelta(seconds=round(pace * (self.total - row["step"])))
        loss, accuracy = row["train/loss"], row.get("train/acc1")
        speed, wait = row.get("perf/images_per_s"), row.get("perf/data_wait_frac")
        words = [f"loss {'not finite' if loss is None else format(loss, '.4f')}"]
        words += [f"acc {accuracy:.1%}"] if accuracy is not None else []
        words += [f"{speed:,.{0 if speed >= 100 else 1}f} images/s"] if speed is not None else []
        words += [f"{left} left"] if pace else []
        words += [f"data wait {wait:.0%}"] if wait is not None else []
        return "  ".join(words)

    def _write_tensorboard(self, step, numbers):
        # Not SummaryWriter: its thread dies on a full disk, and then its queue blocks for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        now = time.time()
        if self._tensorboard is None:
            if not storage.is_address(self.workdir):
                (self.workdir / "tb").mkdir(exist_ok=True)
            # Names hold seconds only: without more, a quick restart would overwrite a file.
            prefix, suffix = str(self.workdir / "tb" / "events"), f".{time.time_ns()}"
            self._tensorboard = EventsWriter(prefix, suffix)
            # TensorBoard hides what an earlier start wrote from this step on.
            again, mark = self.start + 1 if self.start else 0, SessionLog(status=SessionLog.START)
            self._tensorboard.write_event(Event(wall_time=now, step=again, session_log=mark))
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in numbers])
        self._tensorboard.write_event(Event(wall_time=now, step=step, summary=summary))


def write_run_json(workdir, *, step=0, mesh=None, **facts):
    """Writes workdir/run.json: what ran, on what, when. Call it in one process, at every start.

    step: the step that this start goes on from. mesh: jax.sharding.Mesh. facts: what the caller
    knows, such as num_classes and class_names; facts of earlier starts stay unless given anew.
    """
    from importlib import metadata

    import jax

    path = storage.place(workdir) / "run.json"
    try:
        run = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        run = {}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    devices = jax.devices()
    run |= {
        "command": [re.sub(SECRET, r"\1***", word) for word in sys.argv],
        "code": _revision(),
        "python": sys.version.split()[0],
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

    def git(*words):
        command = ["git", "-C", str(root), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()) != root:
            return None
        changed = bool(git("status", "--porcelain", "--untracked-files=no").strip())
        return {"revision": git("rev-parse", "HEAD").strip(), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None
