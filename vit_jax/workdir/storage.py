"""File access for workdirs on a local disk or in a Google Cloud Storage bucket, gs://BUCKET/RUN.

Files in a bucket are written atomically and cannot be appended to. Buckets require the extra
`gcs`, which is imported only when a bucket is used.
"""

import errno
import functools
import json
import logging
import math
import os
import stat
import tempfile
from pathlib import Path

from vit_jax.errors import NoSpace, UserError, printable

INSTALL_HINT = "run make install EXTRA=gcs, or pip install gcsfs google-cloud-storage"
MAX_JSON_BYTES = 8 * 2**20  # of config.json or run.json; 100,000 class names have about 4 MB
MAX_JSON_DEPTH = 32
MAX_INTEGER_DIGITS = 18  # fits in 64 bits
# Errno values of a disk without space: full, over the quota, or beyond the file size limit.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROLES = "roles/storage.objectUser and roles/storage.legacyBucketReader"


def is_bucket(path):
    """Return whether a path has the form gs://BUCKET/RUN. Raises UserError for other URLs."""
    scheme, separator, rest = str(path).partition("://")
    if separator and (scheme != "gs" or not all(rest.strip("/").partition("/"))):
        raise UserError(f"{path} is neither a local directory nor of the form gs://BUCKET/RUN")
    return bool(separator)


def resolve(path):
    """Convert a string to an absolute `Path`, or to an `epath.Path` if it is in a bucket.

    Checks that the bucket is accessible.

    Raises:
      UserError: if the URL is invalid, credentials are missing, or the bucket is not accessible.
    """
    if not is_bucket(path):
        return Path(path).expanduser().absolute()
    _check_access(str(path).removeprefix("gs://").partition("/")[0])
    from etils import epath

    return epath.Path(path)


def check_workdir(path):
    """Check that a run can be stored in a directory. Leaves nothing, and does not import JAX.

    Args:
      path: --workdir, as a string; it may exist.

    Raises:
      UserError: if the path is empty, has characters that Orbax interprets as patterns or that
        are not printable, or is a file or in one.
    """
    if not str(path).strip():
        raise UserError("--workdir is empty; pass --workdir=DIR, such as runs/digits")
    in_bucket = is_bucket(path)
    absolute = str(path) if in_bucket else str(Path(path).expanduser().absolute())
    name = printable(absolute)
    if name != absolute:
        raise UserError(f"--workdir={name} has characters that are not printable; rename it")
    if patterns := [c for c in "*?[]" if c in absolute]:
        raise UserError(
            f"--workdir={name} contains {' '.join(patterns)}: checkpoints in such a directory "
            "cannot be restored; use a path without * ? [ ]"
        )
    if not in_bucket and not (parent := _existing_parent(absolute)).is_dir():
        what = f"{printable(parent)} is not a directory"
        raise UserError(f"--workdir={name}: {what}; pass another path")


def check_writable(path):
    """Raise UserError unless a workdir that passes `check_workdir` can be written.

    Leaves nothing.
    """
    if is_bucket(path):
        return
    directory = resolve(path)
    parent = _existing_parent(directory)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(
            f"--workdir={directory}: no permission to write in {printable(parent)}; pass another "
            "path"
        )
    try:  # in /proc, for example, the permissions do not tell
        os.rmdir(tempfile.mkdtemp(prefix=".vit_jax-", dir=parent))
    except OSError as error:
        if error.errno not in FULL:
            raise UserError(
                f"--workdir={directory} cannot be written: {error.strerror}; pass another path"
            ) from None


def _existing_parent(path):
    path = Path(path)
    return next(p for p in (path, *path.parents) if os.path.lexists(p))


def is_directory(path):
    """Return whether a path is a local directory or in a bucket, and not a file."""
    return is_bucket(path) or Path(path).is_dir()


@functools.cache
def _check_access(bucket):
    """Query the bucket once, as Orbax does later. Raises UserError with instructions."""
    try:
        import fsspec
        import gcsfs  # noqa: F401  used by epath through fsspec
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
    except ImportError as error:
        raise UserError(f"gs://{bucket} needs the package {error.name}; {INSTALL_HINT}") from None
    os.environ.setdefault("EPATH_USE_TF", "false")  # use fsspec even if TensorFlow is installed
    # TensorStore and other processes also write to the bucket, so cached listings may be stale.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    logging.getLogger("google.auth").setLevel(logging.ERROR)  # the errors below are sufficient
    try:
        storage.Client().get_bucket(bucket, timeout=20, retry=None)
        return
    except GoogleAuthError as error:
        problem = (
            f"no credentials ({_line(error).partition('. ')[0]}); run gcloud auth "
            "application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
        )
    except (GoogleAPIError, OSError) as error:  # OSError: network failure or unknown project
        problem = f"request failed: {_line(error)[:200]}"
        code = getattr(error, "code", None)
        if code == 404:
            problem = (
                "the bucket does not exist; create it with "
                f"gcloud storage buckets create gs://{bucket}"
            )
        elif code in (401, 403):
            problem = f"permission denied; the credentials need {ROLES}"
    raise UserError(f"cannot access gs://{bucket}: {problem}")


def full_disk(error):
    """Return the exception about a full disk among an exception and its causes, or None."""
    while error is not None:
        if isinstance(error, NoSpace) or getattr(error, "errno", None) in FULL:
            return error
        if "No space left" in str(error) or "quota exceeded" in str(error).lower():
            return error
        error = error.__cause__ or error.__context__
    return None


def no_space(path):
    """Return the `NoSpace` exception for a file that cannot be written."""
    return NoSpace(
        f"no space left to write {printable(path)}; free some space and rerun the same command"
    )


def read_bytes(path, max_bytes=None):
    """Read a file. Unlike `Path.read_bytes`, it does not block on a named pipe.

    Args:
      path: local path, or `epath.Path` in a bucket.
      max_bytes: maximum size of the file; None: any.

    Raises:
      FileNotFoundError: if the file does not exist.
      UserError: if it is not a regular file, or too large.
      OSError: if it cannot be read.
    """
    if "://" in str(path):
        data = path.read_bytes()
    else:
        try:
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except NotADirectoryError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise UserError(f"{printable(path)} is not a regular file; restore it from a copy")
        with open(number, "rb") as file:
            data = file.read(-1 if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(data) > max_bytes:
        raise UserError(
            f"{printable(path)} is larger than {max_bytes / 2**20:g} MiB; restore it from a copy"
        )
    return data


def read_json(path):
    """Read a file with a JSON object, such as config.json or run.json. Nothing is executed.

    Numbers are finite, and integers fit in 64 bits.

    Args:
      path: local path, or `epath.Path` in a bucket.

    Returns:
      A dict.

    Raises:
      FileNotFoundError: if the file does not exist.
      UserError: if it cannot be read, is too large, nested too deeply, or not a JSON object. The
        message is one line with the file, the cause and the fix.
    """
    try:
        value = parse_json(read_bytes(path, MAX_JSON_BYTES))
        if isinstance(value, dict):
            return value
        problem = "not a JSON object"
    except (FileNotFoundError, UserError):
        raise
    except OSError as error:
        problem = error.strerror or _line(error)
    except ValueError as error:
        problem = _line(error)
    raise UserError(f"{printable(path)} cannot be read ({problem}); restore it from a copy")


def parse_json(data):
    """Parse JSON from bytes, with finite numbers and limited nesting. Raises ValueError."""
    try:
        value = json.loads(
            data.decode(), parse_constant=_number, parse_float=_number, parse_int=_integer
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [item for group in level for item in _items(group)]
    if level:
        raise ValueError(f"nested more than {MAX_JSON_DEPTH} levels deep")
    return value


def _items(value):
    """Return the items of a list or the values of a dict; () for other values."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _number(text):
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:MAX_INTEGER_DIGITS]} is not finite")
    return number


def _integer(text):
    if len(text.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise ValueError(f"the integer {text[:MAX_INTEGER_DIGITS]}... has too many digits")
    return int(text)


def write_json(path, value):
    """Write a value as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    """Write a text file atomically: readers get either the old or the new contents."""
    write_bytes(path, text.encode())


def write_bytes(path, data):
    """Write a binary file atomically, like `write_text`. Raises NoSpace if the disk is full."""
    if "://" in str(path):
        return _put(path, data)
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in FULL:
            raise no_space(path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path):
    """Make renamings in a local directory durable, so that they survive a loss of power."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _put(path, data):
    """Write an object in a bucket."""
    try:
        path.write_bytes(data)
    except OSError as error:
        if not str(error).startswith("Forbidden"):  # gcsfs raises plain OSErrors
            raise
        raise PermissionError(errno.EACCES, f"access denied; needs {ROLES}", str(path)) from error


def _line(error):
    """Return the message of an exception on one line."""
    return " ".join(str(error).split())
