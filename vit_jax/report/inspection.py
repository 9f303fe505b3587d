"""What a model computes of the images of a report."""

import os
from functools import cached_property

import numpy as np

from vit_jax import data
from vit_jax.analysis import effective_fields
from vit_jax.data.pictures import Picture

SHOWN = 4  # images of a run, if none is named
MAX_BLOCKS = 6  # of a ViT, with effective receptive fields
MAX_FLOPS = 1.5e12  # of the effective receptive fields of several images: half a minute on a core


class Inspection:
    """A model and images; each part is computed on first access.

    model: `inference.LoadedModel`. pictures: `data.pictures.Picture`s. classes: names of the
    labels. images, draws: numbers of images and of draws per image of the
    `effective_fields.fields`, as many as MAX_FLOPS allow.
    """

    def __init__(self, model, pictures, classes):
        self.model = model
        self.names = [one.name for one in pictures]
        self.titles = [
            one.name if one.label is None else f"{classes[one.label]}, {one.name}"
            for one in pictures
        ]
        self.views = [model.view(one.image) for one in pictures]
        self.blocks = None if model.is_cnn else spaced(model.depth, MAX_BLOCKS)
        layers = model.depth + 1 + model.module.pools if model.is_cnn else len(self.blocks)
        most = int(MAX_FLOPS // effective_fields.cost(model, layers))
        self.images = int(np.clip(most, 1, len(pictures)))
        self.draws = int(np.clip(most // self.images, 1, effective_fields.DRAWS))

    @cached_property
    def fields(self):
        """Rows and gradients of `effective_fields.fields`."""
        views = self.views[: self.images]
        return effective_fields.fields(self.model, views, self.blocks, self.draws)

    @cached_property
    def heads(self):
        return effective_fields.heads(self.model, self.views)

    @cached_property
    def saliency(self):
        return effective_fields.saliency_maps(self.model, self.views)


def spaced(depth, most):
    """At most so many of the layers 1 to depth, evenly spaced, the first and the last too."""
    return sorted({round(i) for i in np.linspace(1, depth, min(most, depth))})


def inspect(models, pictures, split):
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
        pictures = photographs() if owner is None else examples(owner, split)
    classes = owner.class_names if owner else []
    return [Inspection(model, pictures, classes) for model in models]


def examples(model, split):
    """The first images of a split of a run's data."""
    source = data.make(model.config, model.config.data[split])
    return [pick(source, split, i) for i in range(min(SHOWN, len(source)))]


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
