"""One trainer per workdir: a lock on a local disk, a lease on a network disk or in a bucket."""

import contextlib
import errno
import fcntl
import json
import os
import re
import time

from vit_jax.errors import UserError, WorkdirLost
from vit_jax.workdir import lease, storage

LOCK = ".lock"
LOCK_SECONDS = 1.0  # check_free may hold the lock for an instant
NETWORK_DISKS = r"nfs4?|cifs|smb3|smbfs|lustre|gpfs|ceph|beegfs|afs|9p|fuse(\..*)?"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def check_free(workdir):
    """Check that no live process on this machine trains in a workdir. Creates nothing.

    A lease of another machine is not checked: `Owner` waits to see whether it is renewed.

    Args:
      workdir: directory of the run, as a string or path; it may not exist.

    Raises:
      UserError: if a process trains in it. The message names the process.
    """
    directory = storage.resolve(workdir)
    with _file_errors(directory):
        if not uses_lease(directory):
            try:
                fd = os.open(directory / LOCK, os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError):
                return
            try:
                if not _lock(fd, fcntl.LOCK_SH):
                    time.sleep(0.1)  # it may have just been acquired, and not been written yet
                    raise lease.in_use(workdir, os.pread(fd, lease.MAX_BYTES, 0))
                return
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            finally:
                os.close(fd)
        found = lease.make_store(directory).read()
    if found is not None and lease.is_running(found):
        raise lease.in_use(workdir, found)


class Owner:
    """The right to train in a workdir. Use it as a context manager.

    On a local disk it is a lock of the operating system, which ends with this process however it
    ends. Elsewhere it is a lease; see `lease.py`.

    Args:
      workdir: directory of the run, which exists, or gs://BUCKET/RUN.
      renew_seconds: interval of the renewals of a lease.
      takeover_seconds: a lease of another machine is taken over if it is unchanged for so long.

    Raises:
      UserError: on entry, if another process trains in the workdir, or if it cannot be written.
    """

    def __init__(
        self,
        workdir,
        *,
        renew_seconds=lease.RENEW_SECONDS,
        takeover_seconds=lease.TAKEOVER_SECONDS,
    ):
        self.workdir = workdir
        self._directory = storage.resolve(workdir)
        self._times = renew_seconds, takeover_seconds
        self._fd = None
        self._lease = None

    def __enter__(self):
        with _file_errors(self._directory):
            if not uses_lease(self._directory):
                self._fd = _acquire_lock(self.workdir, self._directory / LOCK)
            if self._fd is None:
                store = lease.make_store(self._directory)
                self._lease = lease.Lease(self.workdir, store, *self._times)
                self._lease.acquire()
        return self

    def __exit__(self, *_):
        if self._fd is not None:
            os.close(self._fd)  # the file remains: if it were deleted, two processes could lock it
            self._fd = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def check(self, fresh=True):
        """Check that this process still owns the workdir. Call it before each write to it.

        Args:
          fresh: renew a lease now, for checkpoints; False: without access to its storage unless it
            was not renewed for long, for frequent writes.

        Raises:
          WorkdirLost: if the workdir was deleted, renamed or replaced, or if another process has
            taken it over.
        """
        if self._lease is not None:
            self._lease.check(fresh)
        elif not _is_same_file(self._fd, self._directory / LOCK):
            what = "replaced, or its .lock was deleted," if self._directory.is_dir() else "deleted"
            raise WorkdirLost(
                f"{self.workdir} was {what} or renamed while training; put it back and rerun the "
                "same command to resume, or rerun it to start again"
            )


def uses_lease(directory):
    """Return whether a workdir is in a bucket or on a network disk."""
    if storage.is_bucket(directory):
        return True
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = file.read()
    except OSError:  # not Linux
        return False
    filesystem = _filesystem(os.path.realpath(directory), mounts)
    return re.fullmatch(NETWORK_DISKS, filesystem) is not None


def _filesystem(path, mounts):
    """Return the type of the file system of an absolute path, given /proc/self/mountinfo."""
    best = ("", "")
    for line in mounts.splitlines():
        mount, _, filesystem = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), mount.split()[4])
        # The last mount at a directory hides the earlier ones.
        if os.path.commonpath([path, point]) == point and len(point) >= len(best[0]):
            best = point, filesystem.split()[0]
    return best[1]


def _acquire_lock(workdir, path):
    """Return the file descriptor of the lock, or None if the file system has no locks.

    Python opens files so that a process that this one starts does not inherit them: such a process
    would hold the lock after the end of this one.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(fd, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise lease.in_use(workdir, os.pread(fd, lease.MAX_BYTES, 0))
            elif _is_same_file(fd, path):
                with contextlib.suppress(OSError):  # only messages need the contents
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, json.dumps(lease.make_record()).encode(), 0)
                owned, fd = fd, None
                return owned
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            raise
        finally:
            if fd is not None:
                os.close(fd)
        time.sleep(LOCK_SECONDS / 20)


def _lock(fd, operation):
    """Lock a file without waiting. Returns False if another process has locked it."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _is_same_file(fd, path):
    """Return whether a path refers to an open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


@contextlib.contextmanager
def _file_errors(directory):
    """Convert OSErrors, except those of a full disk, to a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in storage.FULL:
            raise
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write in {directory}: {reason}; make it writable, or pass another --workdir"
        ) from error
