"""Read .npz files that may be damaged or hostile. Arrays of objects are pickles: they are refused.

Imports no JAX.
"""

import contextlib
import io
import math
import tokenize
import zipfile
import zlib

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import _names

MAX_DIRECTORY_BYTES = 1 << 20  # of the list of members; 2,000 tensors take 0.2 MB
FREE_BYTES = 16 << 20  # below this size, any expansion is allowed
MAX_EXPANSION = 16  # size of the arrays / size of the file; compressed float weights have about 1.1
CHUNK_BYTES = 1 << 20
SUFFIX = ".npy"
BFLOAT16 = np.dtype("V2")  # NumPy writes JAX's bfloat16 as two bytes of no type


class _BoundedFile(io.FileIO):
    """A file whose reads are limited, because a zip archive states the size of its directory."""

    def read(self, size=-1):
        data = super().read(size if 0 <= size <= MAX_DIRECTORY_BYTES else MAX_DIRECTORY_BYTES + 1)
        if len(data) > MAX_DIRECTORY_BYTES:
            raise UserError("the list of its members is too large; use other weights")
        return data


@contextlib.contextmanager
def open_archive(path):
    """Open a zip archive and check that its members are not larger than the file allows."""
    with _BoundedFile(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                total = sum(x.file_size for x in members)
                if total > max(MAX_EXPANSION * _size(file), FREE_BYTES):
                    raise UserError(
                        f"{total:,} bytes of data in a file of {_size(file):,} bytes; use other "
                        "weights"
                    )
                yield archive
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (
            *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, SyntaxError, OSError),
            *(NotImplementedError, RuntimeError, tokenize.TokenError, OverflowError, TypeError),
        ) as error:
            what = _names.shorten(error)
            raise UserError(f"{path} is truncated or not a valid archive: {what}") from None


def _size(file):
    position = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(position)
    return size


@contextlib.contextmanager
def open_tensors(path):
    """Open a file; yield {name: shape} and a function that reads a tensor, as in `_files`."""
    with open_archive(path) as archive:
        members = {x.filename.removesuffix(SUFFIX): x for x in archive.infolist() if not x.is_dir()}
        _names.check(members)
        members = {name: x for name, x in members.items() if not _names.is_unused(name)}
        shapes = {}
        for name, member in members.items():
            with archive.open(member) as file:
                shapes[name] = _header(file, member.file_size, name)[0]

        def get(name):
            with archive.open(members[name]) as file:
                shape, fortran, dtype = _header(file, members[name].file_size, name)
                x = np.empty(shape, dtype, order="F" if fortran else "C")
                data = memoryview(x.reshape(-1, order="A").view(np.uint8))
                for start in range(0, len(data), CHUNK_BYTES):
                    chunk = data[start : start + CHUNK_BYTES]
                    chunk[:] = file.read(len(chunk))  # checks the CRC at the end
            return _float32_from_bfloat16(x) if dtype == BFLOAT16 else x

        yield shapes, get


def _header(file, size, name):
    """Read and check the header of an array; return its shape, whether it is Fortran, its dtype."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise UserError(f"array '{name}' has version {version} of the .npy format; use other files")
    if dtype.hasobject:
        raise UserError(
            f"array '{name}' holds Python objects, which may run code; use other weights"
        )
    if dtype.kind != "f" and dtype != BFLOAT16 or dtype.itemsize > 8:
        text = _names.shorten(dtype)
        raise UserError(f"array '{name}' has dtype {text}; only floats are supported")
    if min(shape, default=1) < 1:
        raise UserError(f"array '{name}' has shape {list(shape)}; sizes must be above 0")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise UserError(
            f"array '{name}' states shape {_names.shorten(list(shape))}, which is not the size of "
            "its data; download it again"
        )
    return shape, fortran, dtype


def _float32_from_bfloat16(x):
    return (x.view("<u2").astype(np.uint32) << 16).view(np.float32)
