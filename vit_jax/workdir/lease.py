"""A lease on a workdir, where locks are not reliable: on network disks and in buckets.

The holder rewrites `.lease.json` every 30 s. Another process takes it over if it does not change
for 120 s, which it measures with its own clock: clocks of two machines are never compared.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path

from vit_jax.errors import UserError, WorkdirLost, printable
from vit_jax.workdir import storage

NAME = ".lease.json"
RENEW_SECONDS = 30.0
TAKEOVER_SECONDS = 120.0
RECORD_BYTES = 512  # constant, so that a renewal overwrites the record in place
MAX_BYTES = 1 << 16  # read at most
PUT_BACK_SECONDS = 1.0  # see DiskStore.remove


class Lease:
    """The lease on a workdir.

    Args:
      workdir: as the user typed it, for messages.
      store: as returned by `make_store`.
      renew_seconds: interval of renewals.
      takeover_seconds: a lease of another machine is taken over if it is unchanged for so long.
    """

    def __init__(self, workdir, store, renew_seconds, takeover_seconds):
        self.workdir = workdir
        self._store = store
        self._renew_seconds = renew_seconds
        self._takeover_seconds = takeover_seconds
        self._record = {"id": uuid.uuid4().hex} | make_record()
        self._renewals = 0
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self):
        """Take the lease and start to renew it.

        Raises:
          UserError: if it is held by a live process.
          OSError: if it cannot be read or written.
        """
        while True:
            self._renewed = time.monotonic()
            found = self._store.read()
            if found is None:
                if self._store.create(self._contents()):
                    break
                continue
            running = is_running(found)
            if running:
                raise in_use(self.workdir, found)
            if running is None:
                self._watch(found)
            self._store.remove(found)
        self._thread.start()

    def check(self, fresh=True):
        """Check that the lease is held.

        Args:
          fresh: renew it now; False: a renewal is enough after which nobody may have taken it over.

        Raises:
          WorkdirLost: if it is held by another process, if it was deleted, or if it could not be
            renewed for `takeover_seconds`.
        """
        if not fresh and time.monotonic() - self._renewed < self._takeover_seconds:
            return
        deadline = time.monotonic() + PUT_BACK_SECONDS
        while True:
            try:
                found = self._renew()
            except OSError as error:
                if time.monotonic() - self._renewed < self._takeover_seconds:
                    return  # nobody may have taken it over yet
                raise WorkdirLost(
                    f"the lease on {self.workdir} could not be renewed for "
                    f"{self._takeover_seconds:g} s ({_line(error)}); "
                    "rerun the same command to resume"
                ) from None
            if found is None:
                return
            if found:
                raise WorkdirLost(
                    f"{self.workdir} was taken over by {describe(found)}; wait for it to end, and "
                    "rerun the same command to resume"
                )
            if time.monotonic() > deadline:
                raise WorkdirLost(
                    f"the lease on {self.workdir} is gone: another process took it over and has "
                    "ended, or the directory was deleted, renamed or replaced; rerun the same "
                    "command to resume from what is there"
                )
            time.sleep(PUT_BACK_SECONDS / 10)

    def release(self):
        """Stop renewing the lease, and delete it unless it is held by another process."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._renew_seconds)
        with contextlib.suppress(OSError):
            found = self._store.read()
            if parse(found or b"").get("id") == self._record["id"]:
                self._store.remove(found)

    def _contents(self):
        record = self._record | {"renewed": self._renewals}
        return json.dumps(record).encode().ljust(RECORD_BYTES)

    def _watch(self, found):
        """Return if a lease stays unchanged or is deleted. Raises UserError if it is renewed."""
        print(
            f"waiting up to {self._takeover_seconds:g} s: {self.workdir} is, or was, trained by "
            f"{describe(found)}",
            file=sys.stderr,
            flush=True,
        )
        end = time.monotonic() + self._takeover_seconds
        while time.monotonic() < end:
            time.sleep(min(2.0, self._takeover_seconds / 20))
            with contextlib.suppress(OSError):  # temporary; a renewal changes the lease for good
                current = self._store.read()
                if current is None:
                    return
                if current != found:
                    raise in_use(self.workdir, current)

    def _renew(self):
        """Return None, or the lease if it is not ours: b"" if it was deleted. Raises OSError."""
        with self._mutex:
            start = time.monotonic()
            self._renewals += 1
            found = self._store.update(self._record["id"], self._contents())
            if found is None:
                self._renewed = start
            return found

    def _keep(self):
        """Renew the lease until it is released. `check` reports failures."""
        wait = self._renew_seconds
        while not self._stop.wait(wait):
            try:
                lost = self._renew() is not None
            except OSError:
                lost = True
            wait = self._renew_seconds / 6 if lost else self._renew_seconds


def make_store(directory):
    """Return the storage of the lease on a workdir, an absolute Path or an epath.Path."""
    path = directory / NAME
    return BucketStore(str(path)) if storage.is_bucket(path) else DiskStore(Path(path))


class DiskStore:
    """A lease in a file, created and removed atomically. All methods raise OSError."""

    def __init__(self, path):
        self._path = path

    def read(self):
        """Return the contents of the lease, or None if there is none."""
        try:
            return _read(self._path)
        except FileNotFoundError:
            if self._path.is_symlink():  # its target is missing
                raise
            return None

    def create(self, contents):
        """Create the lease. Returns False if there is one."""
        try:
            fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(fd, contents)
            os.fsync(fd)
        except OSError:
            self._path.unlink()
            raise
        finally:
            os.close(fd)
        return True

    def update(self, holder, contents):
        """Overwrite the lease if its "id" is `holder`.

        If another process moves the lease between reading and writing, its own lease is a new
        file, and the old one is written.

        Returns:
          None; or the contents of the lease of another holder; b"" if there is no lease.
        """
        try:
            fd = os.open(self._path, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        try:
            found = os.read(fd, MAX_BYTES)
            if parse(found).get("id") != holder:
                return found
            os.pwrite(fd, contents, 0)
            os.fsync(fd)
            return None
        finally:
            os.close(fd)

    def remove(self, contents):
        """Delete the lease. Returns False if its contents differ or there is none."""
        if self.read() != contents:
            return False
        aside = self._path.with_name(f"{NAME}.{uuid.uuid4().hex}")
        try:
            os.rename(self._path, aside)  # succeeds in one process alone
        except FileNotFoundError:
            return False
        found = _read(aside)
        if found != contents:  # changed since it was read: put it back
            try:
                os.link(aside, self._path)
            except FileExistsError:
                pass  # its holder finds that it has lost the lease
            except OSError:  # file system without links
                self.create(found)
        os.unlink(aside)
        return found == contents


class BucketStore:
    """A lease in a bucket, with the methods of DiskStore. Writes require an object generation."""

    def __init__(self, url):
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage import Client
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._conflict = exceptions.PreconditionFailed
        self._changed = (exceptions.NotFound, exceptions.PreconditionFailed)
        self._errors = (exceptions.GoogleAPIError, GoogleAuthError)
        bucket, _, self._name = url.removeprefix("gs://").partition("/")
        self._bucket = Client().bucket(bucket)
        self._options = dict(timeout=20, retry=DEFAULT_RETRY.with_timeout(20))

    def read(self):
        return self._read()[0]

    def create(self, contents):
        return self._write(contents, 0)

    def update(self, holder, contents):
        found, generation = self._read()
        if parse(found or b"").get("id") == holder and self._write(contents, generation):
            return None
        return self.read() or b""

    def remove(self, contents):
        found, generation = self._read()
        if found != contents:
            return False
        with self._os_errors():
            try:
                blob = self._bucket.blob(self._name)
                blob.delete(if_generation_match=generation, **self._options)
            except self._changed:
                return False
        return True

    def _read(self):
        """Return (contents, generation), or (None, 0) if there is no lease."""
        with self._os_errors():
            while True:
                blob = self._bucket.get_blob(self._name, **self._options)
                if blob is None:
                    return None, 0
                with contextlib.suppress(*self._changed):  # renewed in between
                    options = dict(if_generation_match=blob.generation, **self._options)
                    return blob.download_as_bytes(end=MAX_BYTES, **options), blob.generation

    def _write(self, contents, generation):
        """Write the lease. Returns False if its generation has changed."""
        with self._os_errors():
            try:
                blob = self._bucket.blob(self._name)
                blob.cache_control = "no-store"
                options = dict(if_generation_match=generation, **self._options)
                blob.upload_from_string(contents, "application/json", **options)
                return True
            except self._conflict:
                # A request whose response is lost has been carried out all the same.
                return self._read()[0] == contents

    @contextlib.contextmanager
    def _os_errors(self):
        try:
            yield
        except self._errors as error:
            raise OSError(errno.EIO, _line(error), self._name) from error


def in_use(workdir, contents):
    """Return the UserError for a workdir, given the contents of its lock or lease."""
    return UserError(
        f"{workdir} is being trained by {describe(contents)}; wait for it to end, or pass another "
        "--workdir"
    )


def describe(contents):
    """Return "process PID on HOST since TIME" from the contents of a lock or lease."""
    record = parse(contents)
    if not record:
        return "another process"
    host, since = (printable(record[name])[:64] for name in ("host", "since"))
    return f"process {record['pid']} on {host} since {since}"


def parse(contents):
    """Return the record in a lock or lease, as of `make_record`; {} if it is malformed."""
    try:
        record = json.loads(contents)
        valid = all(isinstance(record[name], str) for name in ("host", "since"))
        valid = valid and type(record["pid"]) is int and 0 < record["pid"] < 1 << 31
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return record if valid else {}


def make_record():
    """Return the record of this process."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "machine": _machine(),
        "start": _start_time("self"),
    }


def is_running(contents):
    """Return whether the holder of a lease runs; None if that cannot be known on this machine."""
    record = parse(contents)
    if record.get("machine") is None or record["machine"] != _machine():
        return None
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        pass
    start, recorded = _start_time(record["pid"]), record.get("start")
    return None if start is None or recorded is None else start == recorded


def _machine():
    """Return what identifies the process table of this machine or container; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers count pids on their own
    except OSError:
        return None


def _start_time(pid):
    """Return the start of a process in ticks since boot, -1 if it has ended; None if unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if state in "ZX" else int(fields[18])


def _read(path):
    with open(path, "rb") as file:
        return file.read(MAX_BYTES)


def _line(error):
    return " ".join(str(error).split())[:200]
