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


def rows(run, params, batches):
    """Yield the outputs of each batch as NumPy arrays, without the padding; see `stream`."""
    for outputs, mask in stream(run, params, batches):
        yield outputs if mask.all() else jax.tree.map(lambda x, mask=mask: x[mask], outputs)


def collect(outputs, count):
    """Concatenate the outputs of all batches.

    Args:
      outputs: iterable over trees of NumPy arrays [b, ...], as `rows` yields them.
      count: number of images in all batches.

    Returns:
      Outputs as NumPy arrays [count, ...].

    Raises:
      RuntimeError: if the batches hold more or fewer than `count` images.
    """
    arrays = None
    done = 0
    for batch in outputs:
        if arrays is None:  # preallocated, so that a large split is in memory only once
            arrays = jax.tree.map(lambda x: np.empty((count, *x.shape[1:]), x.dtype), batch)
        size = len(jax.tree.leaves(batch)[0])
        if done + size > count:
            raise RuntimeError(f"expected {count} images, got more")
        for array, output in zip(jax.tree.leaves(arrays), jax.tree.leaves(batch), strict=True):
            array[done : done + size] = output
        done += size
    if done != count:
        raise RuntimeError(f"expected {count} images, got {done}")
    return arrays


def batched(images, batch_size):
    """Yield batches {"image", "mask"} of consecutive images of the same shape, padded with zeros.

    A batch is padded to the largest one of its shape so far: the programs are compiled for few
    sizes, and the last batch of many images of one shape has the size of the others.

    Args:
      images: iterable over images [...], such as an array [n, ...].
      batch_size: maximum number of images per batch; or a function that returns it for the shape of
        an image.
    """
    limit = batch_size if callable(batch_size) else lambda _: batch_size
    sizes = {}

    def pack(group):
        images = np.stack(group)
        size = sizes[images.shape[1:]] = max(len(group), sizes.get(images.shape[1:], 0))
        padding = [(0, size - len(group))] + [(0, 0)] * (images.ndim - 1)
        return {"image": np.pad(images, padding), "mask": np.arange(size) < len(group)}

    group = []
    for image in images:
        if group and (image.shape != group[0].shape or len(group) >= limit(image.shape)):
            yield pack(group)
            group = []
        group.append(image)
    if group:
        yield pack(group)
