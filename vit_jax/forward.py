"""Run a model over a dataset split, visiting each image exactly once, or over an array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment, batch, data
from vit_jax.devices import sharding
from vit_jax.vit import functional


def reader(config, split, mesh):
    """-> (source, read): read() is an iterator over the batches of the split, on the devices.

    split is a key of config.data: train, val or test. The batches are those of
    `batch.eval_batches`: images by the evaluation view, and black ones where "mask" is False.
    Raises UserError for a split that is not there or a batch that does not divide over the mesh.
    """
    size = config.eval_batch_size or config.batch_size
    sharding.check_batch_size("eval_batch_size", size, mesh)
    placement = sharding.batch_sharding(mesh)
    source = data.make(config, config.data[split])
    _, view = augment.views(config)

    def read():
        batches = batch.eval_batches(
            source,
            view,
            batch_size=size,
            threads=config.data.threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return (batch.to_devices(rows, placement) for rows in batches)

    return source, read


def features(model, config, splits, mesh, names=("pooled",)):
    """-> extract(params, split) -> {"label": int32 [n], "pooled": float32 [n, d], ...}, numpy.

    splits: keys of config.data that may be asked for. names: outputs of the model with a row an
    image; those that it does not have are left out. Every process gets all images. One process
    gets them in the order of the split; several may not, but the rows of an image stay together.
    """
    readers = {split: reader(config, split, mesh) for split in splits}

    # The results are gathered on every device: each process can read them whole.
    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def compute(params, rows):
        images = augment.normalize(rows["image"], config.data.mean, config.data.std)
        found = model.apply(params, images)
        found = {name: found[name].astype(jnp.float32) for name in names if name in found}
        return found | {"label": rows["label"], "mask": rows["mask"]}

    def extract(params, split):
        source, read = readers[split]
        arrays, done = {}, 0
        for part in _one_behind(compute(params, rows) for rows in read()):
            part = jax.device_get(part)
            mask = part.pop("mask")
            for name, rows in part.items():
                if name not in arrays:  # whole at once: the parts of a large split are not kept
                    arrays[name] = np.empty((len(source), *rows.shape[1:]), rows.dtype)
                arrays[name][done : done + mask.sum()] = rows[mask]
            done += int(mask.sum())
        if done != len(source):
            raise RuntimeError(f"{done} of {len(source)} images were seen")
        return arrays

    return extract


def _one_behind(items):
    """The same items, each handed on once the next was asked for: the devices go on working while
    this one is copied."""
    last = next(items)
    for item in items:
        yield last
        last = item
    yield last


def compute(module, images, batch_size, attention=False, blocks=False):
    """The named outputs of a module for an array of images, batch by batch.

    images: normalized float32 [b, h, w, c], may be memory-mapped. -> {"logits", "pooled", "tokens",
    ..., "block_00", ...}, numpy float32.
    """
    apply, params = functional(module)
    apply = jax.jit(apply, static_argnames=("attention", "blocks"))
    size, parts = min(batch_size, len(images)), []
    for start in range(0, len(images), size):
        rows = np.asarray(images[start : start + size])
        rows = np.pad(rows, [(0, size - len(rows)), *[(0, 0)] * 3])  # one size, one compilation
        parts.append(jax.device_get(apply(params, rows, attention=attention, blocks=blocks)))

    def join(name):
        axis = 1 if name in ("attention", "blocks") else 0  # of the images; layers come first
        array = np.concatenate([part[name] for part in parts], axis)
        return array[(slice(None),) * axis + (slice(len(images)),)].astype(np.float32)

    arrays = {name: join(name) for name in parts[0]}
    layers = arrays.pop("blocks", ())
    return arrays | {f"block_{i:02}": layer for i, layer in enumerate(layers)}
