"""Reader and writers of metrics.jsonl.

Each line is one row, a JSON object with the key `step` first. Non-finite values are null. Readers
skip lines that are not rows, such as incomplete lines left by a crash; see `parse_row`.

On a disk, complete lines are appended. If the disk is full, rows are kept in memory until they can
be written. Objects in a bucket cannot be appended to, so metrics.jsonl is rewritten at every
checkpoint and once per minute.
"""

import json
import os
import time

from vit_jax.workdir import storage

FLUSH_SECONDS = 60  # interval between writes to a bucket, in addition to those at checkpoints
MAX_ROW_BYTES = 2**20
MAX_VALUE = 3.5e38  # metrics are float32; the axes of figures overflow above 1e300


def open_writer(folder, start):
    """Open metrics.jsonl for a run that resumes from step `start`.

    Rows after `start`, which will be written again, and lines that are not rows are moved to
    metrics.discarded.jsonl; all lines if `start` is 0.

    Returns:
      A `FileWriter` on a disk, or a `BucketWriter` in a bucket.

    Raises:
      UserError: if metrics.jsonl is not a regular file.
      NoSpace: if the disk is full and lines have to be moved.
    """
    path = folder / "metrics.jsonl"
    _discard(path, start)
    return BucketWriter(path) if storage.is_bucket(path) else FileWriter(path)


class FileWriter:
    """Writer of metrics.jsonl on a disk.

    Rows are stored as they are written. While the disk is full, they stay in memory, in order.

    Attributes:
      pending: lines of the rows that are not in the file.
    """

    due = False  # `write` stores the rows

    def __init__(self, path):
        self.path = path
        self.file = open(path, "ab", buffering=0)
        self.pending = []

    def write(self, row):
        """Append a row, after those that could not be written before."""
        self.pending.append(_line(row))
        self._store()

    def flush(self):
        """Store all rows on the disk. Raises NoSpace if some of them cannot be written."""
        self._store()
        try:
            if not self.pending:
                os.fsync(self.file.fileno())
                return
        except OSError as error:
            if error.errno not in storage.FULL:
                raise
        raise storage.no_space(self.path)

    def close(self):
        """Close the file. `pending` has the rows that could not be written."""
        self._store()
        self.file.close()

    def _store(self):
        """Write the pending rows until the disk is full. Never leaves a partial line."""
        while self.pending:
            line = self.pending[0]
            size = os.fstat(self.file.fileno()).st_size
            try:
                complete = self.file.write(line) == len(line)
            except OSError as error:
                if error.errno not in storage.FULL:
                    raise
                complete = False
            if not complete:
                self.file.truncate(size)
                return
            del self.pending[0]


class BucketWriter:
    """Writer of metrics.jsonl in a bucket. Rows are stored by `flush`."""

    pending = ()

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


def parse_row(line):
    """Parse a line of metrics.jsonl.

    Args:
      line: bytes, without the newline.

    Returns:
      The row, a dict of float32 numbers or None by name, with an integer "step" of at least 0; None
      if the line is not such a row.
    """
    if len(line) > MAX_ROW_BYTES:
        return None
    try:
        row = storage.parse_json(line)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    if type(step) is not int or step < 0:
        return None
    return row if all(map(_is_value, row.values())) else None


def _is_value(x):
    return x is None or (isinstance(x, (int, float)) and abs(x) <= MAX_VALUE)


def _discard(path, start):
    """Move rows after step `start`, and lines that are not rows, to metrics.discarded.jsonl."""
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
    """Return [(line, row)]; the row is None if the line is not a row, see `parse_row`."""
    return [(line, parse_row(line)) for line in _read(path).splitlines()]


def _read(path):
    """Return the contents of a file; b"" if it does not exist."""
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return b""


def _line(row):
    return (json.dumps(row, allow_nan=False) + "\n").encode()
