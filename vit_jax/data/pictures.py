"""Load images named on the command line: files, or examples of a run's dataset."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_jax.data import decode
from vit_jax.errors import UserError

MAX_PIXELS = 50_000_000  # per file


class Picture(NamedTuple):
    """An image, uint8 [h, w, c] of any size, and its label if it is known."""

    name: str
    image: np.ndarray
    label: int | None = None


def open_images(names, config=None, channels=3):
    """Load images from files and from a run's dataset.

    Args:
      names: paths of files, or "SPLIT:INDEX" for an example of the dataset, such as "test:0".
      config: config of the run whose dataset is used; None: files only.
      channels: channels of images from files: 3 (RGB) or 1 (grayscale).

    Returns:
      A list of `Picture`, and a list with one error message per image that cannot be read.
    """
    pictures, errors, sources = [], [], {}
    for name in names:
        match = re.fullmatch(r"(train|val|test):([0-9]{1,18})", name)
        try:
            if match and not Path(name).exists():
                pictures.append(_example(name, config, match[1], int(match[2]), sources))
            else:
                image = decode.decode(name, channels, max_pixels=MAX_PIXELS)
                pictures.append(Picture(name, image))
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
