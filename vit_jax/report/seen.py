"""What a model computes of the images of a report."""

import os
from functools import cached_property

import numpy as np

from vit_jax import data
from vit_jax.analysis import effective_fields
from vit_jax.data.pictures import Picture

SHOWN = 4  # images of a run, if none is named
MAX_BLOCKS = 6  # of a ViT, with effective receptive fields
MAX_FLOPS = 1.5e12  # of the effective receptive fields: half a minute of a CPU core


class Seen:
    """A model and images; each part is computed on first access.

    model: `inference.LoadedModel`. pictures: `data.pictures.Picture`s. classes: names of the
    labels. reach: numbers of images and of draws per image of the `effective_fields.fields`; 0, 0
    where one of each, `cost` FLOPs, is more than MAX_FLOPS.
    """

    def __init__(self, model, pictures, classes):
        self.model = model
        self.names = [one.name for one in pictures]
        self.views = [model.view(one.image) for one in pictures]
        self.classes = [None if one.label is None else classes[one.label] for one in pictures]
        if model.is_cnn:
            self.blocks, count = None, model.depth + 1 + model.module.pools
        else:
            self.blocks = spaced(model.depth, MAX_BLOCKS)
            count = len(self.blocks)
        self.cost = effective_fields.cost(model, count)
        most = int(MAX_FLOPS // self.cost)
        images = min(len(pictures), most)
        self.reach = (images, min(effective_fields.DRAWS, most // images)) if images else (0, 0)

    @cached_property
    def fields(self):
        """Rows and gradients of `effective_fields.fields`, without what would cost too much."""
        count, draws = self.reach
        if count:
            return effective_fields.fields(self.model, self.views[:count], self.blocks, draws)
        return effective_fields.layers_of_cnn(self.model) if self.model.is_cnn else [], {}

    @cached_property
    def heads(self):
        return effective_fields.heads(self.model, self.views)

    @cached_property
    def looks(self):
        return effective_fields.looks(self.model, self.views)


def spaced(depth, most):
    """At most so many of the layers 1 to depth, evenly spaced, the first and the last too."""
    return sorted({round(i) for i in np.linspace(1, depth, min(most, depth))})


def see(models, pictures, split):
    """The same images seen by each model.

    Args:
      models: `inference.LoadedModel`s.
      pictures: `data.pictures.Picture`s; []: the first images of the split of the first run among
        the models or, without one, photographs that scikit-learn brings along.
      split: a key of config.data.

    Raises:
      UserError: if the data are missing.
    """
    owner = next((model for model in models if model.config is not None), None)
    if not pictures:
        pictures = photographs() if owner is None else examples(owner, split, SHOWN)
    classes = owner.class_names if owner else []
    return [Seen(model, pictures, classes) for model in models]


def examples(model, split, count):
    """The first images of a split of a run's data."""
    source = data.make(model.config, model.config.data[split])
    return [pick(source, split, i) for i in range(min(count, len(source)))]


def pick(source, split, i):
    """An image of a split."""
    row = source[int(i)]
    return Picture(f"{split}:{i}", row["image"], row["label"])


def photographs():
    """Two that scikit-learn brings along, for weights without a dataset."""
    from sklearn.datasets import load_sample_images  # takes a second

    found = load_sample_images()
    names = [os.path.basename(name).partition(".")[0] for name in found.filenames]
    return [Picture(*one) for one in zip(names, found.images, strict=True)]
