"""The rows of a run: metrics.jsonl, one JSON object per line, `step` first; not finite is null.

On a disk lines are appended whole, and a reader skips a line that was torn by a crash or a full
disk. Objects in a bucket cannot be appended to: there the rows are in metrics-STEP.jsonl, which has
the rows after STEP. Only the last of these files is written again, now and then.
"""

import errno
import json
import os
import re
import time

from vit_jax.workdir import storage

FLUSH_SECONDS = 60  # between two writes of an object, checkpoints aside
MAX_ROWS = 1000  # of one object


def rows_after(folder, start):
    """A writer of rows, `File` or `Objects`.

    Rows past step `start`, of a part of the run that is done again, are moved to
    metrics.discarded.jsonl; all rows where it is 0.
    """
    _discard(folder, start)
    return Objects(folder, start) if storage.is_address(folder) else File(folder)


class File:
    """metrics.jsonl on a disk: rows are there once written."""

    due = True  # to be flushed

    def __init__(self, folder):
        self.file = open(folder / "metrics.jsonl", "ab", buffering=0)

    def write(self, row):
        """Write a whole line at once. On a full disk, remove the part that was written."""
        line = _line(row)
        size = os.fstat(self.file.fileno()).st_size
        if self.file.write(line) != len(line):
            self.file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    def flush(self):
        pass

    def close(self):
        self.file.close()


class Objects:
    """metrics-STEP.jsonl in a bucket: rows are there after `flush`."""

    def __init__(self, folder, start):
        self.folder = folder
        self.unsaved = False
        self._begin(start)
        if self.path in files(folder):  # a run that has ended keeps the row of its last step
            self.rows = [text + b"\n" for text, _ in _lines(self.path)]

    def _begin(self, step):
        self.path = self.folder / f"metrics-{step:09}.jsonl"
        self.rows = []
        self.saved = time.monotonic()

    @property
    def due(self):
        """Whether it is time to flush."""
        return time.monotonic() - self.saved >= FLUSH_SECONDS or len(self.rows) >= MAX_ROWS

    def write(self, row):
        if len(self.rows) >= MAX_ROWS:
            self.flush()
            self._begin(row["step"] - 1)
        self.rows.append(_line(row))
        self.unsaved = True

    def flush(self):
        if self.unsaved:
            storage.write_bytes(self.path, b"".join(self.rows))
            self.saved = time.monotonic()
            self.unsaved = False

    def close(self):
        self.flush()


def read_metrics(workdir):
    """The rows of a run, as dicts; [] where there are none."""
    found = [row for path in files(storage.place(workdir)) for _, row in _lines(path) if row]
    return sorted(found, key=lambda row: row["step"])


def files(folder):
    """The files of rows in a folder, in order."""
    try:
        found = [p for p in folder.iterdir() if re.fullmatch(r"metrics(-\d+)?\.jsonl", p.name)]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda path: path.name.replace(".jsonl", ""))


def _discard(folder, start):
    """Move the rows past step `start`, and torn ones, out of the way."""
    discarded = folder / "metrics.discarded.jsonl"
    for path in files(folder):
        keep, drop = [], []
        for text, row in _lines(path):
            kept = row is not None and start and row["step"] <= start
            (keep if kept else drop).append(text + b"\n")
        if drop:
            before = discarded.read_bytes() if discarded.exists() else b""
            storage.write_bytes(discarded, before + b"".join(drop))
        if drop or not path.read_bytes().endswith(b"\n"):
            storage.write_bytes(path, b"".join(keep))


def _lines(path):
    """[(line, row or None where it is torn)]"""
    pairs = []
    for text in path.read_bytes().splitlines():
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        pairs.append((text, row if isinstance(row, dict) and "step" in row else None))
    return pairs


def _line(row):
    return (json.dumps(row, allow_nan=False) + "\n").encode()
