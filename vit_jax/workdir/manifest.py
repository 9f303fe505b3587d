"""The manifest of a checkpoint, by which it is verified. Imports no JAX.

checkpoints/<step>/manifest.json is written last, after the other files were read back. It holds

* the step, the metrics, and whether an evaluation that was due is still pending;
* the shape, dtype and checksum (see `checksum.py`) of every array;
* the size and SHA-256 of every file;
* the config, the identity of the data, the code revision and the package versions;
* its own SHA-256.

An interrupted save leaves `<step>.saving`, and an interrupted deletion `<step>.deleting`. In a
bucket, which has no atomic renaming, it leaves a directory without a manifest.
"""

import hashlib
import json
import re

from vit_jax.errors import UserError
from vit_jax.workdir import storage

NAME = "manifest.json"
FORMAT = 1
PARTS = "parts"  # directory in which processes exchange checksums during a save
SAVING, DELETING, DAMAGED = ".saving", ".deleting", ".damaged"
TEMPORARY = re.compile(r"\d+(\.saving|\.deleting)(\.orbax-checkpoint-tmp.*)?")
MAX_BYTES = 64 << 20
KEYS = ("format", "step", "metrics", "pending", "arrays", "files", "config", "data", "sha256")


class Damaged(UserError):
    """A checkpoint does not verify. The message is one line: the file and what is wrong."""


def steps(folder):
    """Return the steps of the checkpoints in workdir/checkpoints, in order.

    Only names as this library writes them count: "10", but not "010", "10 (copy)" or "10.damaged".
    """
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir()]
    return sorted(int(name) for name in names if re.fullmatch(r"[1-9]\d*", name))


def read(directory, step):
    """Read and check the manifest of a checkpoint.

    Args:
      directory: the checkpoint.
      step: the step that the name of the directory says.

    Returns:
      The manifest, a dict.

    Raises:
      Damaged: if it is missing or damaged, or belongs to another step.
    """
    path = directory / NAME
    try:
        manifest = json.loads(storage.read_bytes(path, MAX_BYTES))
    except FileNotFoundError:
        files = "the directory is empty" if not _any(directory) else f"{NAME} is missing"
        raise Damaged(files) from None
    except (OSError, UserError, ValueError, RecursionError) as error:
        raise Damaged(f"{NAME} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(manifest, dict) or manifest.get("sha256") != _digest(manifest):
        raise Damaged(f"{NAME} does not match its SHA-256")
    if manifest["format"] != FORMAT or not set(KEYS) <= manifest.keys():
        raise Damaged(f"{NAME} has format {manifest['format']}, this version reads {FORMAT}")
    if manifest["step"] != step:
        raise Damaged(f"it is the checkpoint of step {manifest['step']:,}")
    return manifest


def check(directory, step, *, items=None, everything=True):
    """Compare the files of a checkpoint with its manifest. Additional files are ignored.

    Args:
      directory: the checkpoint.
      step: the step that the name of the directory says.
      items: names of the items to check, such as ("model",); None: all.
      everything: read all files; False: of the files with arrays, only compare the sizes.

    Returns:
      The manifest.

    Raises:
      Damaged: if a file is missing or has other contents. The message names it.
    """
    manifest = read(directory, step)
    for name, expected in manifest["files"].items():
        item, separator, _ = name.partition("/")
        if not separator or items is None or item in items:
            _check_file(directory, name, expected, everything or "/d/" not in name)
    return manifest


def _check_file(directory, name, expected, contents):
    path = directory / name
    try:
        size = _size(path)
        if size != expected["size"]:
            raise Damaged(f"{name} has {size:,} bytes instead of {expected['size']:,}")
        if contents and describe(path) != expected:
            raise Damaged(f"{name} has other contents than when it was saved")
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        raise Damaged(f"{name} cannot be read: {error.strerror or error}") from None


def write(directory, **facts):
    """Write the manifest of a checkpoint, atomically; see `KEYS`."""
    manifest = {"format": FORMAT, **facts}
    manifest["sha256"] = _digest(manifest)
    storage.write_text(directory / NAME, json.dumps(manifest) + "\n")


def list_files(directory):
    """Return the names of the files that Orbax has written to a checkpoint, relative to it."""
    names = []
    folders = [directory]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                if path.name != PARTS:
                    folders.append(path)
            else:
                names.append(str(path.relative_to(directory)))
    return sorted(name for name in names if name != NAME and not name.startswith("."))


def describe(path):
    """Return {"size", "sha256"} of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": sha256}


def _size(path):
    stat = path.stat()
    return stat.length if hasattr(stat, "length") else stat.st_size  # of epath, of pathlib


def _any(directory):
    return directory.is_dir() and next(iter(directory.iterdir()), None) is not None


def _digest(manifest):
    facts = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
