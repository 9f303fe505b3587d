"""Read safetensors files that may be damaged or hostile. Imports no JAX."""

import contextlib
import os

from vit_jax.errors import UserError, printable
from vit_jax.pretrained import _names
from vit_jax.workdir import storage

MAX_HEADER_BYTES = 16 << 20  # for comparison, the header of 20,000 tensors takes 2 MB
FLOATS = ("F16", "BF16", "F32", "F64")
KEY = "vit_jax"  # of the metadata
OTHER_FILES = {  # first bytes: what the file is
    b"PK\x03\x04": "a zip archive, such as a .pth or .npz file",
    b"\x80": "a pickle, such as an old .pth file",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUM": "a .npy file",
    b"<": "a web page",
    b"version ": "a Git LFS pointer",
}


@contextlib.contextmanager
def open_tensors(path):
    """Open a file; yield {name: shape} and a function that reads a tensor, as in `_files`."""
    from safetensors import SafetensorError, safe_open

    header = _read_header(path)
    try:
        # Each tensor has a brace, which has no other spelling; parsing 100,000 takes a second.
        if header.count(b"{") > 2 * _names.MAX_TENSORS:
            raise UserError(f"more than {_names.MAX_TENSORS:,} tensors; use other weights")
        shapes = _check_header(storage.parse_json(header))
        with safe_open(path, framework="numpy") as file:  # checks offsets and sizes
            yield shapes, file.get_tensor
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (SafetensorError, ValueError) as error:
        message = _names.shorten(error)
        raise UserError(f"{path} is truncated or not a safetensors file: {message}") from error


def metadata(path):
    """Return {"vit_jax": value} if the metadata of a file has such a JSON text, otherwise {}.

    Args:
      path: a file that `open_tensors` accepts; other formats and directories have no metadata.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    text = (storage.parse_json(_read_header(path)).get("__metadata__") or {}).get(KEY)
    try:
        return {} if text is None else {KEY: storage.parse_json(text.encode())}
    except ValueError as error:
        raise UserError(f"{path}: invalid metadata: {_names.shorten(error)}") from None


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
      {name: shape}
    """
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    header.pop("__metadata__", None)
    _names.check(header)
    for name, facts in header.items():
        if not isinstance(facts, dict) or not isinstance(facts.get("shape"), list):
            raise ValueError(f"tensor '{name}' has no shape")
        dtype, shape = facts.get("dtype"), facts["shape"]
        if dtype not in FLOATS and not _names.is_unused(name):
            text = _names.shorten(dtype)
            raise UserError(
                f"tensor '{name}' has dtype {text}; only {', '.join(FLOATS)} are supported"
            )
        if not all(type(size) is int for size in shape) or min(shape, default=1) < 1:
            text = printable(shape)[: _names.MAX_NAME_LENGTH]
            raise UserError(f"tensor '{name}' has shape {text}; sizes must be above 0")
    return {
        name: tuple(facts["shape"]) for name, facts in header.items() if not _names.is_unused(name)
    }
