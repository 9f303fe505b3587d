"""What a report is about: a model with its weights, and of a run its config, rows and data."""

import os
from functools import cached_property
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment, batch, data, log, look, sight, variants
from vit_jax.tools import features, summary

BLOCKS = 6  # of a ViT's, whose effective receptive fields are shown
LIMIT = 1.5e12  # FLOPs that these may take: half a minute of a CPU core


def of(model):
    """A `trained.Trained` with what the page says of it: `options` as `variants.parse` has them,
    with num_classes, `sizes`, which are parameters and FLOPs, and `rows`, a run's metrics."""
    model.options = sight.options(model)
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


class Seen:
    """What a model makes of some images; each part is computed when it is first asked for.

    pictures: (name, view, name of the true class or None) each. reach: how many images and how
    many draws of each the `sight.fields` are of; 0, 0 where they would take more than LIMIT, each
    image and draw being `cost` FLOPs.
    """

    def __init__(self, model, pictures):
        self.model, (self.names, self.views, self.classes) = model, zip(*pictures, strict=True)
        if model.cnn:
            self.blocks, count = None, len(model.module.stages) + 1 + model.module.pools
        else:
            self.depth, _ = look.count(model.module)
            self.blocks = spaced(self.depth, BLOCKS)
            count = len(self.blocks)
        self.cost = sight.cost(model, count)
        most = int(LIMIT // self.cost)
        images = min(len(pictures), most)
        self.reach = (images, min(sight.DRAWS, most // images)) if images else (0, 0)

    @cached_property
    def fields(self):
        """Rows and gradients as `sight.fields` has them, without what would cost too much."""
        count, draws = self.reach
        if not count:
            return sight.layers_of_cnn(self.model) if self.model.cnn else [], {}
        return sight.fields(self.model, self.views[:count], self.blocks, draws)

    @cached_property
    def heads(self):
        return sight.heads(self.model, self.views)

    @cached_property
    def looks(self):
        return sight.looks(self.model, self.views)

    @cached_property
    def tokens(self):
        """`tools.features.compute`'s arrays, with the tokens after every block."""
        images = np.asarray(self.model.normalise(self.views))
        return features.compute(self.model.module, images, sight.AT_ONCE, blocks=True)


def spaced(depth, most):
    """At most so many of the layers 1 to depth, evenly spaced, the first and the last too."""
    return sorted({round(i) for i in np.linspace(1, depth, min(most, depth))})


def examples(subject, config, split, count):
    """The first images of a split of a run's data, as the model is evaluated on its own
    -> [(name, view, label)]."""
    source = data.make(config, config.data[split])
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
    rows |= {"row": jnp.arange(size), "target": jax.nn.one_hot(rows["label"], source.num_classes)}
    _, rng = jax.random.split(jax.random.key(config.seed))
    member = import_module(f"vit_jax.objectives.{config.objective.name}")
    make_views = jax.jit(lambda rows, rng: member.make_views(rows, rng, config))
    groups, *_ = make_views(rows, jax.random.fold_in(rng, 0))
    names = (name for name in ("image", "global", "local") if name in rows)
    seen = {name: np.asarray(group) for name, group in zip(names, groups, strict=True)}
    return seen, rows["label"]


def visible(images, mean, std):
    """Normalised images -> floats in [0, 1]."""
    return np.clip(images * np.asarray(std, np.float32) + np.asarray(mean, np.float32), 0, 1)
