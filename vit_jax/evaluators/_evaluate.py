"""Run evaluators on a dataset split."""

import functools
from itertools import islice

import jax.numpy as jnp
from jax.experimental import multihost_utils

from vit_jax import augment, batch, data, forward
from vit_jax.devices import placement, sharding
from vit_jax.errors import UserError
from vit_jax.schema import member


def make(names, model, config, split, mesh):
    """Combine evaluators. Features are computed once and shared by all that define `read_out`.

    Args:
      names: names of modules in vit_jax/evaluators.
      model: a `models.Model`.
      config: the config of the run.
      split: "train", "val" or "test".
      mesh: the mesh to shard batches over.

    Returns:
      `evaluate(params)`, which returns the metrics of all evaluators in one dict.

    Raises:
      UserError: if an evaluator does not apply to the model or split. `evaluate` raises it too,
        for example if linear_probe finds only one class in the training split.
    """
    evaluations = []
    readouts = []
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
        for evaluation in evaluations:
            scores |= evaluation(params)
        return scores

    return evaluate


def read_split(config, split, mesh, batch_size=None):
    """Read a dataset split in evaluation batches.

    Args:
      config: the config that specifies the dataset.
      split: "train", "val" or "test"; or the images and labels themselves, a `data.Slice`.
      mesh: the mesh to shard batches over.
      batch_size: images per batch; None: the config's.

    Returns:
      source: the images and labels of the split.
      size: the batch size.
      read: function that returns a generator of the batches of `batch.eval_batches`, ahead on the
        devices, see `placement.ahead`.

    Raises:
      UserError: if the split does not exist, or the batch size is not divisible by
        mesh.data x mesh.fsdp.
    """
    size = check_batch_size(config, mesh, batch_size)
    source = data.make(config, config.data[split]) if isinstance(split, str) else split
    place = functools.partial(placement.to_devices, sharding=sharding.batch_sharding(mesh))

    def read():
        return placement.ahead(batch.eval_from_config(source, config, size), place)

    return source, size, read


def check_batch_size(config, mesh, batch_size=None):
    """Return the evaluation batch size.

    Raises:
      UserError: if it is not divisible by mesh.data x mesh.fsdp.
    """
    size = batch_size or config.eval_batch_size or config.batch_size
    sharding.check_batch_size("eval_batch_size", size, mesh)
    return size


def features(model, config, split, mesh, names=("pooled",), *, max_images=None, batch_size=None):
    """Compute outputs of a model for every image of a split.

    Args:
      model: a `models.Model`.
      config: the config that specifies the dataset.
      split: "train", "val" or "test"; or a `data.Slice`.
      mesh: the mesh to shard batches over.
      names: outputs of the model with the batch on axis 0. Outputs that the model does not have are
        skipped.
      max_images: use only the first N images of the split; None: all.
      batch_size: images per forward pass over all devices; None: the config's.

    Returns:
      `extract(params)`, which returns {"label": int32 [n], "pooled": float32 [n, d], ...} as numpy
      arrays. Every process gets the outputs of all images. With one process they are in the order
      of the split; with several the order may differ, but is the same for all outputs.

    Raises:
      UserError: if the split does not exist, or the batch size is not divisible by
        mesh.data x mesh.fsdp.
    """
    options = dict(max_images=max_images, batch_size=batch_size)
    source, stream = stream_features(model, config, split, mesh, _select(tuple(names)), **options)
    count = min(max_images or len(source), len(source))
    return lambda params: forward.collect(stream(params), count)


def stream_features(model, config, split, mesh, compute, *, max_images=None, batch_size=None):
    """Compute outputs of a model for every image of a split, batch by batch.

    Args:
      compute: function `(module, normalized images) -> {name: array [b, ...]}`, compiled once.

    For the other arguments and errors, see `features`.

    Returns:
      source: the images and labels of the split.
      stream: generator function of the parameters, which yields the outputs of each batch with
        "label", int32 [b], as numpy arrays.
    """
    source, size, read = read_split(config, split, mesh, batch_size)
    count = min(max_images or len(source), len(source))
    run = _compile_features(model.bind, config.data.mean, config.data.std, mesh, compute)

    def stream(params):
        done = 0
        for arrays in forward.rows(run, params, islice(read(), -(-count // size))):
            yield {name: array[: count - done] for name, array in arrays.items()}
            done += len(arrays["label"])

    return source, stream


@functools.cache
def _select(names):
    """Return `compute` of `stream_features` for some outputs of the model."""

    def select(module, images):
        out = module(images, tokens="tokens" in names)
        return {name: out[name].astype(jnp.float32) for name in names if name in out}

    return select


@functools.lru_cache(maxsize=forward.MAX_PROGRAMS)
def _compile_features(bind, mean, std, mesh, compute):
    """Return the program that computes outputs of a batch, the same for all splits."""

    def compute_features(params, rows):
        images = augment.normalize(rows["image"], mean, std)
        return compute(bind(params), images) | {"label": rows["label"]}

    return forward.compile(compute_features, mesh)


def _read_out(readouts, model, config, split, mesh):
    """Return `evaluate(params)`, which applies all readouts to the features of a split."""
    if split == "train":
        raise UserError(
            "knn and linear_probe are fit to the training split and cannot be evaluated on it; use "
            "val or test"
        )
    extract_bank = features(model, config, "train", mesh)
    extract_queries = features(model, config, split, mesh)

    def evaluate(params):
        bank, queries = extract_bank(params), extract_queries(params)
        scores = {"images": len(queries["label"])}
        for read_out in readouts:
            scores |= read_out(bank, queries)
        # Processes may differ in the last bit, but the choice of the best checkpoint must agree.
        return {k: x.item() for k, x in multihost_utils.broadcast_one_to_all(scores).items()}

    return evaluate
