"""Receptive fields, attention statistics and saliency maps of a model, for a report's images."""

import os
from functools import cached_property

import numpy as np

from vit_jax import data
from vit_jax.analysis import effective_fields
from vit_jax.data.pictures import Picture

NUM_IMAGES = 4  # of a split, if no images are given
MAX_BLOCKS = 6  # blocks of a ViT with effective receptive fields
MAX_FIELD_FLOPS = 1.5e12  # for effective receptive fields; takes half a minute on one core


class Inspection:
    """A model and images. Each property is computed on first access.

    Args:
      model: `inference.LoadedModel`.
      pictures: `data.pictures.Picture`s.
      classes: names of the picture labels.

    Attributes:
      names: names of the images.
      titles: names of the images, with their class where it is known.
      views: preprocessed images, uint8 [image, image, c] each.
      blocks: blocks of a ViT (from 1) with effective receptive fields; None for a CNN.
      num_images: number of images for `effective_fields.fields`, limited by MAX_FIELD_FLOPS.
      num_draws: number of channels drawn per image, limited by MAX_FIELD_FLOPS.
    """

    def __init__(self, model, pictures, classes):
        self.model = model
        self.names = [picture.name for picture in pictures]
        self.titles = [
            picture.name if picture.label is None else f"{classes[picture.label]}, {picture.name}"
            for picture in pictures
        ]
        self.views = [picture.view(model) for picture in pictures]
        self.blocks = None if model.is_cnn else spaced_layers(model.depth, MAX_BLOCKS)
        layers = model.depth + 1 + model.module.has_stem_pool if model.is_cnn else len(self.blocks)
        max_passes = int(MAX_FIELD_FLOPS // effective_fields.field_flops(model, layers))
        self.num_images = int(np.clip(max_passes, 1, len(pictures)))
        self.num_draws = int(np.clip(max_passes // self.num_images, 1, effective_fields.DRAWS))

    @cached_property
    def fields(self):
        """Rows and gradients of `effective_fields.fields`."""
        views = self.views[: self.num_images]
        return effective_fields.fields(self.model, views, self.blocks, self.num_draws)

    @cached_property
    def heads(self):
        """Rows of `effective_fields.heads`."""
        return effective_fields.heads(self.model, self.views)

    @cached_property
    def saliency(self):
        """Predicted classes and maps of `effective_fields.saliency_maps`."""
        return effective_fields.saliency_maps(self.model, self.views)


def spaced_layers(depth, max_count):
    """Up to max_count evenly spaced layers from 1 to depth, including the first and the last."""
    return sorted({round(i) for i in np.linspace(1, depth, min(max_count, depth))})


def inspect(models, pictures, split):
    """Create an `Inspection` of each model for the same images.

    Args:
      models: `inference.LoadedModel`s.
      pictures: `data.pictures.Picture`s. If empty, use the first images of the split, from the
        first model that belongs to a run; without a run, use sample photos from scikit-learn.
      split: key of config.data.

    Raises:
      UserError: if the dataset is missing.
    """
    run = next((model for model in models if model.config is not None), None)
    if not pictures:
        pictures = sample_photos() if run is None else first_images(run, split)
    classes = run.class_names if run else []
    return [Inspection(model, pictures, classes) for model in models]


def first_images(model, split):
    """Return the first images of a split of a run's dataset."""
    source = data.make(model.config, model.config.data[split])
    return [load_image(source, split, i) for i in range(min(NUM_IMAGES, len(source)))]


def load_image(source, split, i):
    """Return image i of a split as a `Picture`."""
    row = source[int(i)]
    return Picture(f"{split}:{i}", row["image"], row["label"])


def sample_photos():
    """Return the two photos that ship with scikit-learn."""
    from sklearn.datasets import load_sample_images  # slow import: 1 s

    photos = load_sample_images()
    names = [os.path.basename(name).partition(".")[0] for name in photos.filenames]
    return [Picture(name, image) for name, image in zip(names, photos.images, strict=True)]
