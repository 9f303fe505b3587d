"""The directory of a run: a path of this machine, or an address in a bucket, gs://BUCKET/RUN.

A file in a bucket is written whole or not at all, and cannot be appended to. Buckets need the
extra `gcs`, which is imported only for an address.
"""

import errno
import functools
import json
import logging
import os
from pathlib import Path

from vit_jax.errors import UserError

INSTALL = "make install EXTRA=gcs, or: pip install gcsfs google-cloud-storage"
ROLES = "roles/storage.objectUser and roles/storage.legacyBucketReader"


def is_bucket(text):
    """Whether text is gs://BUCKET/RUN, not a path. Raises UserError for other addresses."""
    scheme, mark, rest = str(text).partition("://")
    if mark and (scheme != "gs" or not all(rest.strip("/").partition("/"))):
        raise UserError(f"{text} is neither a folder nor of the form gs://BUCKET/RUN")
    return bool(mark)


def resolve(text):
    """The directory as an absolute `Path`, or as an `epath.Path` of a bucket that answers.

    Raises:
      UserError: for an address of another form, missing credentials, a missing bucket.
    """
    if not is_bucket(text):
        return Path(text).expanduser().absolute()
    _reach(str(text).removeprefix("gs://").partition("/")[0])
    from etils import epath

    return epath.Path(text)


def is_directory(text):
    """Whether text is a directory or an address, not a file."""
    return is_bucket(text) or Path(text).is_dir()


@functools.cache
def _reach(bucket):
    """Ask for the bucket, once, as Orbax will do. Raises UserError with the remedy."""
    try:
        import fsspec
        import gcsfs  # noqa: F401  epath finds it by fsspec
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
    except ImportError as error:
        raise UserError(f"gs://{bucket} needs the package {error.name}: {INSTALL}") from None
    os.environ.setdefault("EPATH_USE_TF", "false")  # fsspec, should TensorFlow be there too
    # TensorStore and other processes write as well, so what was listed before may be old.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    logging.getLogger("google.auth").setLevel(logging.ERROR)  # what we say is enough
    try:
        storage.Client().get_bucket(bucket, timeout=20, retry=None)
        return
    except GoogleAuthError as error:
        wrong = (
            f"no credentials ({_line(error).partition('. ')[0]}); gcloud auth application-default "
            "login, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
        )
    except (GoogleAPIError, OSError) as error:  # OSError: the network, or an unknown project
        wrong = f"it does not answer: {_line(error)[:200]}"
        code = getattr(error, "code", None)
        if code == 404:
            wrong = f"there is no such bucket; gcloud storage buckets create gs://{bucket}"
        elif code in (401, 403):
            wrong = f"these credentials may not look at it; they need {ROLES}"
    raise UserError(f"cannot use gs://{bucket}: {wrong}")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    """Write a file atomically: a reader finds the old one or the whole new one."""
    write_bytes(path, text.encode())


def write_bytes(path, data):
    """Write a file atomically, as `write_text`."""
    if "://" in str(path):
        return _put(path, data)
    part = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _put(path, data):
    """Write an object of a bucket."""
    try:
        path.write_bytes(data)
    except OSError as error:
        if not str(error).startswith("Forbidden"):  # gcsfs has no type for it
            raise
        raise PermissionError(errno.EACCES, f"writing is forbidden ({ROLES})", str(path)) from error


def _line(error):
    return " ".join(str(error).split())
