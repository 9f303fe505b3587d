"""What a report is about: a model with its weights, and of a run its config, rows and data."""

import os
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import (
    anatomy,
    augment,
    batch,
    data,
    log,
    models,
    objectives,
    variants,
)
from vit_jax.tools import features, summary

AT_ONCE = 4  # images whose attention is in memory at a time, beside what is kept of it


def of(model):
    """A `trained.Trained` with what the page says of it: `options` as `variants.parse` has them,
    with num_classes, `sizes`, which are parameters and FLOPs, and `rows`, a run's metrics."""
    if model.cnn:
        sizes = variants.of_config(**model.config.model)
        model.options = sizes | {"num_classes": model.module.num_classes}
    else:
        model.options = anatomy.sizes(model.module)
    model.sizes = variants.count_params(**model.options), variants.count_flops(**model.options)
    model.rows = log.read_metrics(model.folder) if model.config else []
    return model


def stages(subject):
    """The rows of `tools.summary.stages` of its model: (stage, shape, parameters)."""
    rows = summary.cnn_stages if subject.cnn else summary.stages
    weights = jax.eval_shape(lambda: subject.params)
    if subject.cnn:  # the running statistics are no parameters
        weights = jax.eval_shape(subject.model.init, jax.random.key(0))
    return rows(subject.model, weights, subject.options)


def compute(subject, views):
    """What a ViT computes of uint8 images [h, w, c]: features.compute's arrays, with attention
    [l, b, h, q, m] and the tokens after every block."""
    images = np.asarray(subject.normalise(views))
    return features.compute(subject.module, images, AT_ONCE, attention=True, blocks=True)


def examples(subject, split, count):
    """The first images of a split as the model is evaluated on them -> [(name, view, label)]."""
    source = data.make(subject.config, subject.config.data[split])
    rows = [source[i] for i in range(min(count, len(source)))]
    return [
        (f"{split}:{i}", subject.view(row["image"]), row["label"]) for i, row in enumerate(rows)
    ]


def pick(subject, split, rows):
    """The views of these rows of a split."""
    source = data.make(subject.config, subject.config.data[split])
    return [subject.view(source[int(i)]["image"]) for i in rows]


def samples(subject):
    """Two photographs that scikit-learn brings along, for weights without a data set."""
    from sklearn.datasets import load_sample_images  # takes a second

    found = load_sample_images()
    names = [name.partition(".")[0] for name in map(os.path.basename, found.filenames)]
    return [(n, subject.view(image), None) for n, image in zip(names, found.images, strict=True)]


def first_batch(config, count):
    """What training begins with: images of batch 0 as the model gets them.

    -> {"image" or "global" and "local": normalised float32 [n, v, h, w, c], v views an image},
    labels [n]. Mixing takes its partners from these images alone. Raises UserError.
    """
    source = data.make(config, config.data.train)
    size = min(count, len(source), config.batch_size)
    views = augment.views(config)[0]
    repeats = config.augment.repeats
    batches = batch.train_batches(
        source, views, seed=config.seed, batch_size=size, repeats=repeats, threads=1
    )
    try:
        rows = {name: jnp.asarray(x) for name, x in next(batches).items()}
    finally:
        batches.close()
    rows["row"] = jnp.arange(size)
    _, rng = jax.random.split(jax.random.key(config.seed))
    return _seen(config, rows, jax.random.fold_in(rng, 0), source.num_classes), rows["label"]


def _seen(config, rows, rng, classes):
    """The images that the objective hands to the model, of a batch of uint8 ones."""
    member = import_module(f"vit_jax.objectives.{config.objective.name}")
    if hasattr(member, "make_views"):
        groups = jax.jit(lambda rows, rng: member.make_views(rows, rng, config)[0])(rows, rng)
        names = (name for name in ("global", "local") if name in rows)
        return {name: np.asarray(group) for name, group in zip(names, groups, strict=True)}
    with config.copy_and_resolve_references().unlocked() as plain:
        plain.objective.ema, plain.optim.only = 0.0, ""

    @jax.jit
    def given(rows, rng):
        seen = []

        def model(images, **_):  # in the place of the model: notes what it is given
            seen.append(images)
            return {"logits": jnp.zeros((len(images), classes))}

        noting = models.Model(None, None, lambda _: model, None)
        objectives.make(noting, plain, 1.0).loss({}, {}, rows, rng, 0)
        return seen[-1]

    return {"image": np.asarray(given(rows, rng))[:, None]}


def visible(images, mean, std):
    """Normalised images -> floats in [0, 1]."""
    return np.clip(images * np.asarray(std, np.float32) + np.asarray(mean, np.float32), 0, 1)
