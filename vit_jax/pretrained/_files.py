"""Read safetensors files that may be damaged or hostile. Imports no JAX."""

import contextlib
import os
from typing import NamedTuple

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.workdir import storage

MAX_HEADER_BYTES = 16 << 20  # for comparison, the header of 20,000 tensors takes 2 MB
MAX_TENSORS = 20_000  # for comparison, a ViT of 48 blocks with LayerScale has 680
MAX_NAME_LENGTH = 256  # characters
FLOATS = ("F16", "BF16", "F32", "F64")
BATCH_COUNT = ".num_batches_tracked"  # integers of PyTorch's BatchNorm, which are not used
OTHER_FILES = {  # first bytes: what the file is
    b"PK\x03\x04": "a zip archive, such as a .pth or .npz file",
    b"\x80": "a pickle, such as an old .pth file",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUM": "a .npy file",
    b"<": "a web page",
    b"version ": "a Git LFS pointer",
}


class Shape(NamedTuple):
    """The shape of a tensor, read without its data."""

    shape: tuple


def read(path):
    """Read a safetensors file into a flat dict of numpy arrays, with floats as float32.

    Raises:
      UserError: if there is no such file, it is not a valid safetensors file, or a tensor has a
        dtype other than float16, bfloat16, float32 and float64, a size of 0, or values that are not
        finite in float32.
    """
    with _open(path) as (file, shapes), np.errstate(over="ignore"):
        tensors = {key: _float32(file.get_tensor(key)) for key in shapes}
    bad = {key: x.size - n for key, x in tensors.items() if (n := _count_finite(x)) < x.size}
    if bad:
        name, count = next(iter(bad.items()))
        more = f"; {len(bad) - 1} more tensors have such values" if len(bad) > 1 else ""
        raise UserError(
            f"{path}: {count:,} of {tensors[name].size:,} values of tensor '{name}' are NaN or "
            f"infinite{more}; use other weights"
        )
    return tensors


def read_shapes(path):
    """Read the header of a safetensors file as {name: `Shape`}. Raises UserError as `read`."""
    with _open(path) as (_, shapes):
        return shapes


@contextlib.contextmanager
def _open(path):
    """Open a safetensors file; yield it and {name: `Shape`}. The errors are those of `read`."""
    from safetensors import SafetensorError, safe_open

    name = os.path.basename(path)
    if not os.path.isfile(path):
        if os.path.exists(path):
            raise UserError(f"{path} is not a regular file; pass a .safetensors file")
        raise UserError(f"no file at {path}; pass a .safetensors file or the workdir of a run")
    if not name.endswith(".safetensors"):
        raise UserError(f"{name} is not a .safetensors file; convert the weights first")
    header = _read_header(path)
    try:
        # Each tensor has a brace, which has no other spelling; parsing 100,000 takes a second.
        if header.count(b"{") > 2 * MAX_TENSORS:
            raise UserError(f"more than {MAX_TENSORS:,} tensors; use other weights")
        shapes = _check_header(storage.parse_json(header))
        with safe_open(path, framework="numpy") as file:  # checks offsets and sizes
            yield file, shapes
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (SafetensorError, ValueError) as error:
        message = printable(error)[:MAX_NAME_LENGTH]
        raise UserError(f"{path} is truncated or not a safetensors file: {message}") from error


def _read_header(path):
    """Return the JSON text at the start of a safetensors file, as bytes."""
    with open(path, "rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if 0 < size <= min(MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
            return file.read(size)
    kind = next(
        (f" ({kind})" for magic, kind in OTHER_FILES.items() if start.startswith(magic)), ""
    )
    raise UserError(f"{path} is truncated or not a safetensors file{kind}; download it again")


def _check_header(header):
    """Check names, dtypes and shapes.

    Args:
      header: the parsed header, {name: {"dtype", "shape", "data_offsets"}}.

    Returns:
      {name: `Shape`}
    """
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    header.pop("__metadata__", None)
    if not header:
        raise UserError("the file has no tensors; download it again")
    if len(header) > MAX_TENSORS:
        raise UserError(f"more than {MAX_TENSORS:,} tensors; use other weights")
    for name, facts in header.items():
        if len(name) > MAX_NAME_LENGTH or not name.isprintable():
            short = printable(name)[:MAX_NAME_LENGTH]
            raise UserError(f"invalid name of a tensor: '{short}'; use other weights")
        if not isinstance(facts, dict) or not isinstance(facts.get("shape"), list):
            raise ValueError(f"tensor '{name}' has no shape")
        dtype, shape = facts.get("dtype"), facts["shape"]
        if dtype not in FLOATS and not (dtype == "I64" and name.endswith(BATCH_COUNT)):
            text = printable(dtype)[:MAX_NAME_LENGTH]
            raise UserError(
                f"tensor '{name}' has dtype {text}; only {', '.join(FLOATS)} are supported"
            )
        if not all(type(size) is int for size in shape) or min(shape, default=1) < 1:
            text = printable(shape)[:MAX_NAME_LENGTH]
            raise UserError(f"tensor '{name}' has shape {text}; sizes must be above 0")
    return {name: Shape(tuple(facts["shape"])) for name, facts in header.items()}


def _float32(x):
    """Convert floats to float32; the kind of bfloat16 is V."""
    return x.astype(np.float32, copy=False) if x.dtype.kind in "fV" else x


def _count_finite(x):
    return np.count_nonzero(np.isfinite(x))
