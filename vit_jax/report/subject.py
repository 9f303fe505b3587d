"""What a report is about: a model with its weights, and of a run its config, rows and data."""

import os
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment, batch, data, forward, schema
from vit_jax.analysis import attention_maps, effective_fields
from vit_jax.analysis import stages as model_stages
from vit_jax.flops import count_flops, count_params
from vit_jax.workdir import log

BLOCKS = 6  # of a ViT's, whose effective receptive fields are shown
LIMIT = 1.5e12  # FLOPs that these may take: half a minute of a CPU core


def of(model):
    """An `inference.LoadedModel` with what the page says of it: `options`, its `ViTConfig` or
    `ResNetConfig`, `sizes`, which are parameters and FLOPs, and `rows`, a run's metrics."""
    model.options = model.module.config
    model.sizes = count_params(model.options), count_flops(model.options)
    model.rows = log.read_metrics(model.folder) if model.config else []
    return model


def stages(subject):
    """The stages of its model: (stage, shape, parameters)."""
    return model_stages.of_config(subject.options)[0]


class Seen:
    """What a model computes of some images; each part is computed on first access.

    pictures: (name, view, name of the true class or None) each. reach: numbers of images and draws
    per image of the `effective_fields.fields`; 0, 0 where one of each, `cost` FLOPs, is more than
    LIMIT.
    """

    def __init__(self, model, pictures):
        self.model, (self.names, self.views, self.classes) = model, zip(*pictures, strict=True)
        if model.cnn:
            self.blocks, count = None, len(model.module.stages) + 1 + model.module.pools
        else:
            self.depth, _ = attention_maps.count(model.module)
            self.blocks = spaced(self.depth, BLOCKS)
            count = len(self.blocks)
        self.cost = effective_fields.cost(model, count)
        most = int(LIMIT // self.cost)
        images = min(len(pictures), most)
        self.reach = (images, min(effective_fields.DRAWS, most // images)) if images else (0, 0)

    @cached_property
    def fields(self):
        """Rows and gradients of `effective_fields.fields`, without what would cost too much."""
        count, draws = self.reach
        if not count:
            return effective_fields.layers_of_cnn(self.model) if self.model.cnn else [], {}
        return effective_fields.fields(self.model, self.views[:count], self.blocks, draws)

    @cached_property
    def heads(self):
        return effective_fields.heads(self.model, self.views)

    @cached_property
    def looks(self):
        return effective_fields.looks(self.model, self.views)

    @cached_property
    def tokens(self):
        """`forward.compute`'s arrays, with the tokens after every block."""
        images = np.asarray(self.model.normalize(self.views))
        return forward.compute(self.model.module, images, effective_fields.AT_ONCE, blocks=True)


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

    -> {"image" or "global" and "local": normalized float32 [n, v, h, w, c], v views an image},
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
    objective = schema.member("objectives", config.objective.name)
    make_views = jax.jit(lambda rows, rng: objective.make_views(rows, rng, config))
    groups, *_ = make_views(rows, jax.random.fold_in(rng, 0))
    names = (name for name in ("image", "global", "local") if name in rows)
    seen = {name: np.asarray(group) for name, group in zip(names, groups, strict=True)}
    return seen, rows["label"]


def visible(images, mean, std):
    """Normalized images -> floats in [0, 1]."""
    return np.clip(images * np.asarray(std, np.float32) + np.asarray(mean, np.float32), 0, 1)
