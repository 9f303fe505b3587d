"""The images that a person names: files, and rows of a run's own data."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_jax.data import decode
from vit_jax.errors import UserError

MAX_PIXELS = 50_000_000  # of a file, which may be a stranger's


class Picture(NamedTuple):
    """An image that was read: uint8 [h, w, c] of any size, and its label where it is known."""

    name: str
    image: np.ndarray
    label: int | None = None


def open_images(words, config=None, channels=3):
    """Read images by path, and rows of a run's data such as "test:0".

    Args:
      words: paths and rows.
      config: of the run whose data the rows are of; None: there is no run.
      channels: of files: 3 (color) or 1 (gray).

    Returns:
      The `Picture`s, and a line for each image that cannot be read.
    """
    pictures, errors, sources = [], [], {}
    for word in words:
        row = re.fullmatch(r"(train|val|test):(\d+)", word)
        try:
            if row and not Path(word).exists():
                pictures.append(_row(word, config, row[1], int(row[2]), sources))
            else:
                image = decode.decode(word, channels, max_pixels=MAX_PIXELS)
                pictures.append(Picture(word, image))
        except (decode.DecodeError, UserError) as error:
            errors.append(str(error))
    return pictures, errors


def _row(word, config, split, i, sources):
    """Row i of a split of a run's own data."""
    from vit_jax import data

    if config is None:
        raise UserError(f"{word}: rows of a dataset go with --workdir")
    if split not in sources:
        sources[split] = data.make(config, config.data[split])
    if i >= len(sources[split]):
        raise UserError(f"{word}: there are {len(sources[split])} images, counted from 0")
    found = sources[split][i]
    return Picture(word, found["image"], found["label"])
