"""The rows of a run: metrics.jsonl, one JSON object per line, `step` first; not finite is null.

On a disk lines are appended whole, and a reader skips a line that was torn by a crash or a full
disk. An object in a bucket cannot be appended to: it is written again at each checkpoint and every
minute.
"""

import errno
import json
import os
import time

from vit_jax.workdir import storage

FLUSH_SECONDS = 60  # between two writes of an object, checkpoints aside


def rows_after(folder, start):
    """A writer of rows, `File` or `Object`.

    Rows past step `start`, of a part of the run that is done again, are moved to
    metrics.discarded.jsonl; all rows where it is 0.
    """
    path = folder / "metrics.jsonl"
    _discard(path, start)
    return Object(path) if storage.is_bucket(path) else File(path)


class File:
    """metrics.jsonl on a disk: rows are there once written."""

    due = False  # for a flush

    def __init__(self, path):
        self.file = open(path, "ab", buffering=0)

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


class Object:
    """metrics.jsonl in a bucket: rows are there after `flush`."""

    def __init__(self, path):
        self.path = path
        self.data = bytearray(_read(path))
        self.saved = len(self.data)
        self.flushed = time.monotonic()

    @property
    def due(self):
        """Whether it is time for a flush."""
        return time.monotonic() - self.flushed >= FLUSH_SECONDS

    def write(self, row):
        self.data += _line(row)

    def flush(self):
        if self.saved < len(self.data):
            storage.write_bytes(self.path, bytes(self.data))
            self.saved = len(self.data)
            self.flushed = time.monotonic()

    def close(self):
        self.flush()


def read_metrics(workdir):
    """The rows of a run, as dicts; [] where there are none."""
    return [row for _, row in _lines(storage.resolve(workdir) / "metrics.jsonl") if row]


def _discard(path, start):
    """Move the rows past step `start`, and torn ones, out of the way."""
    keep, drop = [], []
    for line, row in _lines(path):
        kept = row is not None and start and row["step"] <= start
        (keep if kept else drop).append(line + b"\n")
    if drop:
        discarded = path.with_name("metrics.discarded.jsonl")
        storage.write_bytes(discarded, _read(discarded) + b"".join(drop))
    if keep or drop:
        storage.write_bytes(path, b"".join(keep))


def _lines(path):
    """[(line, row or None where it is torn)]"""
    pairs = []
    for line in _read(path).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        pairs.append((line, row if isinstance(row, dict) and "step" in row else None))
    return pairs


def _read(path):
    return path.read_bytes() if path.exists() else b""


def _line(row):
    return (json.dumps(row, allow_nan=False) + "\n").encode()
