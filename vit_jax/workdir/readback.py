"""Read back stored arrays block by block, without JAX devices."""

import math

import numpy as np
import tensorstore

from vit_jax.workdir import checksum
from vit_jax.workdir.manifest import Damaged

MAX_READ_BYTES = 64 << 20  # of an array at once


def owned_blocks(x):
    """Return the blocks of an array that this process writes: [(start, stop)] by axis."""
    return [
        tuple(
            (axis.start or 0, size if axis.stop is None else axis.stop)
            for axis, size in zip(shard.index, x.shape, strict=True)
        )
        for shard in x.addressable_shards
        if shard.replica_id == 0
    ]


def checksum_of(directory, name, array, blocks):
    """Return the checksum of blocks of a stored array.

    Args:
      directory: the checkpoint.
      name: such as "model/params/head/kernel".
      array: {"shape", "dtype"}.
      blocks: as returned by `owned_blocks`.
    """
    store = _open(directory, name, array)
    total = 0
    for block in blocks:
        for start, stop in _pieces(block, store.dtype.numpy_dtype.itemsize):
            values = store[tuple(map(slice, start, stop))].read().result()
            total += checksum.of_block(np.asarray(values), start, store.shape)
    return total % 2**32


def read(directory, name, array):
    """Return a stored array as a NumPy array; the arguments are those of `checksum_of`."""
    return np.asarray(_open(directory, name, array).read().result())


def _open(directory, name, array):
    item, _, path = name.partition("/")
    base = str(directory / item)
    base = f"{base}/" if "://" in base else f"file://{base}/"
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{path.replace('/', '.')}/"}
    store = tensorstore.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result()
    if list(store.shape) != array["shape"] or str(store.dtype.numpy_dtype) != array["dtype"]:
        raise Damaged(f"{name} was written as {store.dtype.name} {list(store.shape)}")
    return store


def _pieces(block, itemsize):
    """Divide a block along axis 0 into pieces of at most `MAX_READ_BYTES`: (start, stop)."""
    start, stop = tuple(a for a, _ in block), tuple(b for _, b in block)
    if not block:
        yield start, stop
        return
    row = itemsize * math.prod(b - a for a, b in block[1:])
    count = max(1, MAX_READ_BYTES // max(1, row))
    for i in range(start[0], stop[0], count):
        yield (i, *start[1:]), (min(i + count, stop[0]), *stop[1:])
