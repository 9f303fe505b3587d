"""Checksums of arrays that do not depend on how the arrays are sharded.

The checksum of an array is the sum, modulo 2^32, of a hash of every element and its index:
hash(bits XOR index * 0x9E3779B9), with the finalizer of MurmurHash3, a bijection of 32-bit words. A
change of a single element therefore always changes the checksum. The checksums of disjoint blocks
of an array add up to that of the array, so that every process can check the blocks that it owns.
"""

import math

import numpy as np

GOLDEN = 0x9E3779B9
BUFFER_ELEMENTS = 1 << 14  # of a NumPy buffer, so that it stays in the cache


def of_tree(tree):
    """Compute the checksums of arrays on their devices.

    Args:
      tree: tree of JAX arrays with elements of at most 32 bits, sharded in any way.

    Returns:
      sums: checksums of the leaves, uint32 [n].
      finite: whether all elements of each leaf are finite, bool [n].
    """
    import jax

    leaves = jax.tree.leaves(tree)
    mesh = getattr(leaves[0].sharding, "mesh", None)
    sums, finite = _program(mesh)(leaves)
    return np.asarray(sums), np.asarray(finite)


def _program(mesh):
    """Return the compiled checksums, replicated over a mesh, so that every process reads them."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    if replicated not in _programs:
        _programs[replicated] = jax.jit(_sums, out_shardings=replicated)
    return _programs[replicated]


_programs = {}


def _sums(leaves):
    import jax
    import jax.numpy as jnp

    def checksum(x):
        index = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            stride = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
            index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
        return _hash(bits.astype(jnp.uint32) ^ (index * np.uint32(GOLDEN))).sum(dtype=jnp.uint32)

    def is_finite(x):
        return jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.floating) else jnp.array(True)

    return jnp.stack([checksum(x) for x in leaves]), jnp.stack([is_finite(x) for x in leaves])


def of_block(block, start, shape):
    """Compute the checksum of a block of an array in NumPy.

    Args:
      block: elements of the array, [n, m, ...].
      start: index of the first element of the block in the array, one integer per axis.
      shape: shape of the array.

    Returns:
      The checksum, an int.
    """
    unsigned = np.dtype(f"uint{8 * block.dtype.itemsize}")
    if not block.shape:
        block, start, shape = block[None], (0,), (1,)
    block = np.ascontiguousarray(block)
    bits = block.view(unsigned).reshape(-1, block.shape[-1])
    rows = np.zeros((), np.uint64)  # index of the first element of every row of the block
    for axis in range(block.ndim - 1):
        stride = math.prod(shape[axis + 1 :])
        rows = np.add.outer(
            rows, (np.arange(block.shape[axis], dtype=np.uint64) + start[axis]) * stride
        )
    rows = rows.reshape(-1).astype(np.uint32)
    columns = np.arange(start[-1], start[-1] + block.shape[-1], dtype=np.uint64).astype(np.uint32)
    count = max(1, BUFFER_ELEMENTS // max(1, bits.shape[1]))
    total = 0
    for i in range(0, len(bits), count):
        index = rows[i : i + count, None] + columns
        index *= np.uint32(GOLDEN)
        index ^= bits[i : i + count]
        total += int(_hash(index).sum(dtype=np.uint64))
    return total % 2**32


def _hash(x):
    """Hash 32-bit words: the finalizer of MurmurHash3."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> np.uint32(13))
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
