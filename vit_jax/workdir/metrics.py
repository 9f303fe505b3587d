"""Reader and writers of metrics.jsonl.

Each line is one row, a JSON object with the key `step` first. Non-finite values are null. On a
disk, complete lines are appended, and readers skip incomplete lines left by a crash or a full disk.
Objects in a bucket cannot be appended to, so metrics.jsonl is rewritten at every checkpoint and
once per minute.
"""

import errno
import json
import os
import time

from vit_jax.workdir import storage

FLUSH_SECONDS = 60  # interval between writes to a bucket, in addition to those at checkpoints


def open_writer(folder, start):
    """Open metrics.jsonl for a run that resumes from step `start`.

    Rows after `start`, which will be written again, are moved to metrics.discarded.jsonl; all rows
    if `start` is 0.

    Returns:
      A `FileWriter` on a disk, or a `BucketWriter` in a bucket.
    """
    path = folder / "metrics.jsonl"
    _discard(path, start)
    return BucketWriter(path) if storage.is_bucket(path) else FileWriter(path)


class FileWriter:
    """Writer of metrics.jsonl on a disk. Rows are stored as they are written."""

    due = False  # there is never anything to flush

    def __init__(self, path):
        self.file = open(path, "ab", buffering=0)

    def write(self, row):
        """Append a row. If the disk is full, remove the partial line and raise OSError."""
        line = _line(row)
        size = os.fstat(self.file.fileno()).st_size
        if self.file.write(line) != len(line):
            self.file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    def flush(self):
        pass

    def close(self):
        self.file.close()


class BucketWriter:
    """Writer of metrics.jsonl in a bucket. Rows are stored by `flush`."""

    def __init__(self, path):
        self.path = path
        self.data = bytearray(_read(path))
        self.saved = len(self.data)
        self.flushed = time.monotonic()

    @property
    def due(self):
        """Whether the rows should be flushed."""
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
    """Read the metrics of a run as a list of dicts; [] if there are none."""
    return [row for _, row in _lines(storage.resolve(workdir) / "metrics.jsonl") if row]


def _discard(path, start):
    """Move rows after step `start`, and incomplete lines, to metrics.discarded.jsonl."""
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
    """Return [(line, row)]; the row is None if the line is incomplete."""
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
