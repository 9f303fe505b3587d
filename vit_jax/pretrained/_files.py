"""Read weight files that may be damaged or hostile. Imports no JAX.

A module per format has `open_tensors(path)`, a context manager that yields {name: shape} and a
function that reads a tensor by its name; floats may have any size. Errors are UserErrors.
"""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.pretrained import _npz, _safetensors, _torch, hub
from vit_jax.workdir import storage

FORMATS = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".pth": _torch,
    ".pt": _torch,
    ".bin": _torch,
}
INDEX = ".index.json"  # end of the file that lists the shards of a model
IN_DIRECTORY = (  # weight files that Hugging Face and timm write, in order of preference
    *("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
MAX_SHARDS = 1000


def locate(spec):
    """Return the path of a weight file or of a directory with one, and the set of weights.

    Args:
      spec: a path, or hf-hub:ORGANIZATION/NAME[@REVISION]; both may end in #SET, such as #student.
    """
    spec = str(spec)
    path, _, which = spec.rpartition("#")
    if not path or os.path.exists(spec):
        path, which = spec, ""
    return hub.download(path) if hub.is_hub(path) else Path(path).expanduser(), which


def is_run(spec):
    """Return whether a path is the workdir of a run: a directory or bucket without weight files."""
    if hub.is_hub(spec) or not storage.is_directory(spec):
        return False
    return storage.is_bucket(spec) or weight_file(spec) is None


def origin(spec):
    """Return what identifies weights, for run.json; reads the whole file.

    Args:
      spec: as in `locate`, or a workdir.

    Returns:
      {"spec": spec}; for weight files also {"sha256": {file name: digest}}, and for the Hugging
      Face Hub {"commit": commit}.
    """
    found = {"spec": str(spec)}
    if is_run(spec):
        return found
    if hub.is_hub(spec):
        found["commit"] = hub.commit(locate(spec)[0])
    digests = {}
    for path in _shards(spec):
        with open(path, "rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found | {"sha256": digests}


def weight_file(path):
    """Return the weight file of a directory such as Hugging Face writes; None if there is none."""
    return next((Path(path, x) for x in IN_DIRECTORY if Path(path, x).is_file()), None)


def read(spec, names=None):
    """Read tensors as {name in the file: float32 array}.

    Args:
      spec: a weight file, an index of shards, or a directory with either.
      names: names of the tensors; None: all.

    Raises:
      UserError: if there is no such file, it is not a valid weight file, or a tensor has a dtype
        other than float16, bfloat16, float32 and float64, a size of 0, or values that are not
        finite in float32.
    """
    tensors = {}
    wanted = None if names is None else set(names)
    for path in _shards(spec):
        with _open(path) as (shapes, get), np.errstate(over="ignore"):
            for name in shapes if wanted is None else shapes.keys() & wanted:
                tensors[name] = get(name).astype(np.float32, copy=False)
    _check_finite(spec, tensors)
    return tensors


def read_shapes(spec):
    """Read names and shapes as {name in the file: array of the shape}. Raises as `read`.

    The arrays have no data: they are views of one zero.
    """
    zero = np.zeros((), np.float32)
    shapes = {}
    for path in _shards(spec):
        with _open(path) as (found, _):
            if twice := shapes.keys() & found.keys():
                raise UserError(f"{path}: tensor '{min(twice)}' is in another shard too")
            shapes |= found
    return {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}


def concatenate(arrays):
    """Concatenate arrays along axis 0. Arrays from `read_shapes` take no memory."""
    arrays = list(arrays)
    if all(not any(x.strides) for x in arrays):
        if len({x.shape[1:] for x in arrays}) > 1:
            raise ValueError("shapes differ")
        return np.broadcast_to(arrays[0].flat[0], (sum(map(len, arrays)), *arrays[0].shape[1:]))
    return np.concatenate(arrays)


def _check_finite(spec, tensors):
    bad = {
        name: x.size - n
        for name, x in tensors.items()
        if (n := np.count_nonzero(np.isfinite(x))) < x.size
    }
    if bad:
        name, count = next(iter(bad.items()))
        more = f"; {len(bad) - 1} more tensors have such values" if len(bad) > 1 else ""
        raise UserError(
            f"{spec}: {count:,} of {tensors[name].size:,} values of tensor '{name}' are NaN or "
            f"infinite{more}; use other weights"
        )


@contextlib.contextmanager
def _open(path):
    """Open a weight file with the module of its format; see `open_tensors` there."""
    name = os.path.basename(path)
    if not os.path.isfile(path):
        if os.path.exists(path):
            raise UserError(f"{path} is not a regular file; pass a weight file")
        raise UserError(f"no file at {path}; pass a weight file or the workdir of a run")
    module = FORMATS.get(os.path.splitext(name)[1])
    if module is None:
        raise UserError(
            f"{name} is not a weight file: its name must end in {', '.join(FORMATS)} or {INDEX}"
        )
    with module.open_tensors(str(path)) as opened:
        yield opened


def _shards(spec):
    """Return the paths of the files that hold the weights."""
    path, _ = locate(spec)
    if path.is_dir():
        if (found := weight_file(path)) is None:
            raise UserError(f"{path} has no weight file: none of {', '.join(IN_DIRECTORY)}")
        path = found
    if not path.name.endswith(INDEX):
        return [path]
    index = storage.read_json(path).get("weight_map")
    files = list(index.values()) if isinstance(index, dict) else []
    if not files or not all(isinstance(x, str) and x == os.path.basename(x) for x in files):
        raise UserError(f"{path}: weight_map must map names of tensors to files beside it")
    files = set(files)
    if len(files) > MAX_SHARDS or any(x.endswith(INDEX) for x in files):
        raise UserError(f"{path}: weight_map has {len(files):,} files; use other weights")
    paths = [path.with_name(x) for x in sorted(files)]
    if missing := [printable(x.name) for x in paths if not x.is_file()]:
        raise UserError(f"{path}: missing shard {missing[0]}; download it")
    return paths
