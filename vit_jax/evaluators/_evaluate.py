"""All evaluators of a run on one split, and what they are made of."""

import functools
from itertools import islice

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from vit_jax import augment, batch, data, forward
from vit_jax.devices import sharding
from vit_jax.errors import UserError
from vit_jax.schema import member


def make(names, model, config, split, mesh):
    """-> evaluate(params) -> the metrics of all these members. The features of a split are computed
    once for all of them. Both raise UserError."""
    evaluations, readouts = [], []
    for name in names:
        module = member("evaluators", name)
        if hasattr(module, "make"):
            evaluations.append(module.make(model, config, split, mesh))
        else:
            readouts.append(functools.partial(module.read_out, **config.get(name, {})))
    if readouts:
        evaluations.append(_read_out(readouts, model, config, split, mesh))

    def evaluate(params):
        scores = {}
        for part in evaluations:
            scores |= part(params)
        return scores

    return evaluate


def read_split(config, split, mesh, batch_size=None):
    """Read the batches of a split, as `batch.eval_batches` makes them.

    Args:
      config: whose data are read.
      split: a key of config.data: train, val or test.
      mesh: what the batches are sharded over.
      batch_size: images per batch; None: that of the config.

    Returns:
      The source, the batch size, and read(), an iterator over the batches on the devices.

    Raises:
      UserError: for a split that is missing, or a batch that does not divide over the mesh.
    """
    size = batch_size or config.eval_batch_size or config.batch_size
    sharding.check_batch_size("eval_batch_size", size, mesh)
    placement = sharding.batch_sharding(mesh)
    source = data.make(config, config.data[split])
    _, view = augment.transforms(config)

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

    return source, size, read


def features(model, config, split, mesh, names=("pooled",), *, max_images=None, batch_size=None):
    """Outputs of a model for each image of a split.

    Args:
      model: `models.Model`.
      config: whose data are read.
      split: a key of config.data.
      mesh: what the batches are sharded over.
      names: outputs of the model with the batch on axis 0; those that it lacks are left out.
      max_images: only the first images of the split; None: all.
      batch_size: images per forward pass, over all devices; None: that of the config.

    Returns:
      extract(params) -> {"label": int32 [n], "pooled": float32 [n, d], ...}, numpy. Every process
      gets all images: one process in the order of the split; with several the order is another
      one, the same for each output.
    """
    source, size, read = read_split(config, split, mesh, batch_size)
    count = min(max_images or len(source), len(source))
    num_batches = -(-count // size)

    def apply(params, rows):
        images = augment.normalize(rows["image"], config.data.mean, config.data.std)
        found = model.apply(params, images)
        found = {name: found[name].astype(jnp.float32) for name in names if name in found}
        return found | {"label": rows["label"]}

    run = forward.compile(apply, mesh)

    def extract(params):
        read_images = min(num_batches * size, len(source))
        arrays = forward.collect(run, params, islice(read(), num_batches), read_images)
        return {name: array[:count] for name, array in arrays.items()}

    return extract


def _read_out(readouts, model, config, split, mesh):
    if split == "train":
        raise UserError(
            "knn and linear_probe learn from the training split, so that they would see the "
            "answers there; score val or test"
        )
    extract_bank = features(model, config, "train", mesh)
    extract_queries = features(model, config, split, mesh)

    def evaluate(params):
        bank, queries = extract_bank(params), extract_queries(params)
        scores = {"images": len(queries["label"])}
        for read_out in readouts:
            scores |= read_out(bank, queries)
        # All processes compute the same; the last bit must be the same too, as training acts on it.
        return {k: x.item() for k, x in multihost_utils.broadcast_one_to_all(scores).items()}

    return evaluate
