"""Run a forward pass, compiled once, over padded batches, visiting each image exactly once.

The function to run is `apply(params, batch) -> outputs`, a tree of arrays. A batch is a dict of
arrays [b, ...]; all batches have the same b. Its "mask", bool [b], is False in padding rows.
"""

import contextlib
import contextvars

import jax
import numpy as np

from vit_jax.devices import sharding

MAX_PROGRAMS = 8  # of each evaluator that are kept, so that all splits share them


def compile(apply, mesh=None):
    """Compile a function for `stream` and `collect`.

    Args:
      apply: function (params, batch) -> outputs, traced by JAX.
      mesh: mesh that the batches are sharded over; None: one device. Outputs are replicated on all
        devices, so that every process can read all of them.

    Returns:
      run(params, batch) -> (outputs, mask).
    """
    out_sharding = sharding.replicated(mesh) if mesh is not None else None

    def run(params, batch):
        return apply(params, batch), batch["mask"]

    run.__name__ = apply.__name__  # in profiles and logs of compilations
    return jax.jit(run, out_shardings=out_sharding)


_poll = contextvars.ContextVar("poll", default=lambda: None)


@contextlib.contextmanager
def polling(function):
    """Call a function after every batch of `stream` in a `with` block, to interrupt it."""
    token = _poll.set(function)
    try:
        yield
    finally:
        _poll.reset(token)


def stream(run, params, batches):
    """Yield (outputs, mask) of each batch as NumPy arrays.

    The result of a batch is fetched after the next batch is dispatched, so that copying overlaps
    with computation.

    Args:
      run: function returned by `compile`.
      params: first argument of `run`.
      batches: iterable over batches on the devices.
    """
    previous = None
    for batch in batches:
        result = run(params, batch)
        if previous is not None:
            yield jax.device_get(previous)
        previous = result
        _poll.get()()
    if previous is not None:
        yield jax.device_get(previous)


def collect(run, params, batches, count):
    """Concatenate the outputs of all batches, without the padding.

    Args:
      run: function returned by `compile`.
      params: first argument of `run`.
      batches: iterable over batches on the devices.
      count: number of images in all batches.

    Returns:
      Outputs as NumPy arrays [count, ...].

    Raises:
      RuntimeError: if the batches hold more or fewer than `count` images.
    """
    arrays = None
    done = 0
    for outputs, mask in stream(run, params, batches):
        if arrays is None:  # preallocated, so that a large split is in memory only once
            arrays = jax.tree.map(lambda x: np.empty((count, *x.shape[1:]), x.dtype), outputs)
        size = int(mask.sum())
        if done + size > count:
            raise RuntimeError(f"expected {count} images, got more")
        for array, output in zip(jax.tree.leaves(arrays), jax.tree.leaves(outputs), strict=True):
            array[done : done + size] = output[mask]
        done += size
    if done != count:
        raise RuntimeError(f"expected {count} images, got {done}")
    return arrays


def batched(images, batch_size):
    """Yield batches {"image", "mask"} of an array of images [n, ...]; zeros pad the last batch."""
    size = min(batch_size, len(images))
    for start in range(0, len(images), size):
        rows = np.asarray(images[start : start + size])
        padding = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        yield {"image": np.pad(rows, padding), "mask": np.arange(size) < len(rows)}
