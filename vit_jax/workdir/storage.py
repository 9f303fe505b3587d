"""File access for workdirs on a local disk or in a Google Cloud Storage bucket, gs://BUCKET/RUN.

Files in a bucket are written atomically and cannot be appended to. Buckets require the extra
`gcs`, which is imported only when a bucket is used.
"""

import errno
import functools
import json
import logging
import os
from pathlib import Path

from vit_jax.errors import UserError, printable

INSTALL_HINT = "run make install EXTRA=gcs, or pip install gcsfs google-cloud-storage"
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
    """Check that a run can be stored in a directory. Creates nothing, and does not import JAX.

    Args:
      path: --workdir, as a string; it may exist.

    Raises:
      UserError: if the path is empty, has characters that Orbax interprets as patterns or that
        are not printable, is a file or in one, or if the directory cannot be written.
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
    if in_bucket:
        return
    directory = Path(absolute)
    parent = next(p for p in (directory, *directory.parents) if os.path.lexists(p))
    if not parent.is_dir():
        what = f"{printable(parent)} is not a directory"
        raise UserError(f"--workdir={name}: {what}; pass another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={name}: no permission to write in {printable(parent)}")


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


def write_json(path, value):
    """Write a value as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    """Write a text file atomically: readers get either the old or the new contents."""
    write_bytes(path, text.encode())


def write_bytes(path, data):
    """Write a binary file atomically, like `write_text`."""
    if "://" in str(path):
        return _put(path, data)
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
