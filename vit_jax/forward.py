"""One forward pass over many batches: compiled once, padded, sharded, each image exactly once.

A pass is a function `apply(params, batch) -> outputs`, a tree of arrays. A batch is a dict of
arrays of one size; its "mask", bool [b], is False in the rows that only fill up the last batch.
"""

import functools

import jax
import numpy as np

from vit_jax.devices import sharding


def compile(apply, mesh=None):
    """Compile a pass for `stream` and `collect`.

    Args:
      apply: function of params and a batch, traced by JAX.
      mesh: the mesh over which the batches are sharded; None: one device. Outputs are gathered on
        every device, so that each process can read all of them.
    """
    placement = sharding.replicated(mesh) if mesh is not None else None

    @functools.partial(jax.jit, out_shardings=placement)
    def run(params, batch):
        return apply(params, batch), batch["mask"]

    return run


def stream(run, params, batches):
    """Yield (outputs, mask) of each batch as numpy arrays.

    Each result is yielded after the next batch was dispatched, so that the devices compute while
    the result is copied.
    """
    last = None
    for batch in batches:
        result = run(params, batch)
        if last is not None:
            yield jax.device_get(last)
        last = result
    if last is not None:
        yield jax.device_get(last)


def collect(run, params, batches, count):
    """The outputs for `count` images as numpy arrays [count, ...], without the padding.

    Raises RuntimeError if the batches hold another number of images.
    """
    arrays, done = None, 0
    for outputs, mask in stream(run, params, batches):
        if arrays is None:  # allocated once: the parts of a large split are not kept
            arrays = jax.tree.map(lambda x: np.empty((count, *x.shape[1:]), x.dtype), outputs)
        size = int(mask.sum())
        if done + size > count:
            raise RuntimeError(f"more than {count} images were seen")
        for whole, part in zip(jax.tree.leaves(arrays), jax.tree.leaves(outputs), strict=True):
            whole[done : done + size] = part[mask]
        done += size
    if done != count:
        raise RuntimeError(f"{done} of {count} images were seen")
    return arrays


def split(images, batch_size):
    """Yield batches {"image", "mask"} of an array [n, ...], the last one filled up with zeros."""
    size = min(batch_size, len(images))
    for start in range(0, len(images), size):
        rows = np.asarray(images[start : start + size])
        padding = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        yield {"image": np.pad(rows, padding), "mask": np.arange(size) < len(rows)}
