"""Load images named on the command line: files, or examples of a run's dataset."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_jax.data import decode
from vit_jax.errors import UserError

MAX_PIXELS = 50_000_000  # per file


class Picture(NamedTuple):
    """An image and its label.

    Attributes:
      name: name of the image.
      image: uint8 [h, w, c] of any size; None: only its views are kept.
      label: index of its class; None: unknown.
      views: {model's preprocessing: view}, see `view`.
    """

    name: str
    image: np.ndarray | None
    label: int | None = None
    views: dict = {}  # noqa: RUF012: never changed

    def view(self, model):
        """Return the view of a `inference.LoadedModel`, uint8 [image, image, channels]."""
        key = _preprocessing(model)
        return self.views[key] if key in self.views else model.view(self.image)


def _preprocessing(model):
    return model.image, model.channels, model.crop


def open_images(names, config=None, channels=3, models=()):
    """Load images from files and from a run's dataset.

    Args:
      names: paths of files, or "SPLIT:INDEX" for an example of the dataset, such as "test:0".
      config: config of the run whose dataset is used; None: files only.
      channels: channels of images from files: 3 (RGB) or 1 (grayscale).
      models: `inference.LoadedModel`s; only their views of each image are kept, which need less
        memory. (): keep the images.

    Returns:
      A list of `Picture`, and a list with one error message per image that cannot be read.
    """
    pictures, errors, sources = [], [], {}
    for name in names:
        match = re.fullmatch(r"(train|val|test):([0-9]{1,18})", name)
        try:
            if match and not Path(name).exists():
                picture = _example(name, config, match[1], int(match[2]), sources)
            else:
                image = decode.decode(name, channels, max_pixels=MAX_PIXELS)
                picture = Picture(name, image)
            if models:
                views = {_preprocessing(model): picture.view(model) for model in models}
                picture = picture._replace(image=None, views=views)
            pictures.append(picture)
        except (decode.DecodeError, UserError) as error:
            errors.append(str(error))
    return pictures, errors


def _example(name, config, split, i, sources):
    """Load example i of a split. sources: cache of the splits that are already open."""
    from vit_jax import data

    if config is None:
        raise UserError(f"{name}: pass --workdir to load an image from a run's dataset")
    if split not in sources:
        sources[split] = data.make(config, config.data[split])
    if i >= len(sources[split]):
        raise UserError(f"{name}: index out of range; {split} has {len(sources[split])} images")
    example = sources[split][i]
    return Picture(name, example["image"], example["label"])
