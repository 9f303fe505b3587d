"""The rows of a run: metrics.jsonl, one JSON object a line, `step` first; not finite is null.

On a disk lines are appended whole, and a reader passes over a line that was torn by a crash or a
full disk. An object in a bucket cannot be appended to: there the rows lie in metrics-STEP.jsonl,
the rows after STEP, of which the last is written again now and then, and the others never.
"""

import errno
import json
import os
import re
import time

from vit_jax.workdir import storage

SECONDS, MOST = 60, 1000  # between two writes of an object, but for checkpoints; rows in one


def rows_after(folder, start):
    """Where to write a run's rows. Those past step `start`, of a part of the run that is now done
    again, are moved to metrics.discarded.jsonl (all rows where it is 0)."""
    _discard(folder, start)
    return Objects(folder, start) if storage.is_address(folder) else File(folder)


class File:
    """metrics.jsonl on a disk: what is written is there."""

    due = True

    def __init__(self, folder):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self.file = os.open(folder / "metrics.jsonl", flags, 0o644)

    def write(self, row):
        """One write for a whole line; what a full disk left of it is taken back."""
        line, size = _line(row), os.fstat(self.file).st_size
        if os.write(self.file, line) != len(line):
            os.ftruncate(self.file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    def flush(self):
        pass

    def close(self):
        os.close(self.file)


class Objects:
    """metrics-STEP.jsonl in a bucket: what is written is there after `flush`."""

    def __init__(self, folder, start):
        self.folder, self.rows, self.unsaved = folder, [], False
        self._begin(start)
        if self.path in files(folder):  # a run that has ended keeps the row of its last step
            self.rows = [text + b"\n" for text, _ in _lines(self.path)]

    def _begin(self, step):
        self.path, self.rows = self.folder / f"metrics-{step:09}.jsonl", []
        self.saved = time.monotonic()

    @property
    def due(self):
        """Whether it is time to flush."""
        return time.monotonic() - self.saved >= SECONDS or len(self.rows) >= MOST

    def write(self, row):
        if len(self.rows) >= MOST:
            self.flush()
            self._begin(row["step"] - 1)
        self.rows.append(_line(row))
        self.unsaved = True

    def flush(self):
        if self.unsaved:
            storage.write_bytes(self.path, b"".join(self.rows))
            self.saved, self.unsaved = time.monotonic(), False

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
    """Moves the rows past step `start`, and torn ones, out of the way."""
    for path in files(folder):
        keep, drop = [], []
        for text, row in _lines(path):
            kept = row is not None and start and row["step"] <= start
            (keep if kept else drop).append(text + b"\n")
        if not drop and (not keep or path.read_bytes().endswith(b"\n")):
            continue
        _append(folder / "metrics.discarded.jsonl", b"".join(drop))
        storage.write_bytes(path, b"".join(keep))


def _append(path, data):
    if storage.is_address(path):
        before = path.read_bytes() if path.exists() else b""
        return storage.write_bytes(path, before + data)
    with open(path, "ab") as file:
        file.write(data)


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
