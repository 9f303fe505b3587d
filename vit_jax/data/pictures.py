"""The pictures that a person names: files, and rows of a run's data, as a model is given them."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

from vit_jax.data import decode
from vit_jax.errors import UserError

MAX_PIXELS = 50_000_000  # of a file, which may be a stranger's


def open_images(words, model, config=None):
    """Pictures by path, and rows of a run's data ("test:0") -> pictures with name, label (None: not
    known) and view; the number of broken ones.

    What is wrong with a broken one is printed; the others go on. config: whose data; None: the
    model's own.
    """
    config = config or model.config
    pictures, broken, sources = [], 0, {}
    for word in words:
        try:
            label, row = None, re.fullmatch(r"(train|val|test):(\d+)", word)
            if row and not Path(word).exists():
                image, label = example(config, row[1], int(row[2]), sources)
            else:
                channels = 1 if model.channels == 1 else 3
                image = decode.decode(word, channels, max_pixels=MAX_PIXELS)
            pictures.append(SimpleNamespace(name=word, label=label, view=model.view(image)))
        except (decode.DecodeError, UserError) as error:
            print(f"error: {error}", file=sys.stderr)
            broken += 1
    return pictures, broken


def example(config, split, i, sources):
    """Image and label of row i of a split of a run's own data."""
    from vit_jax import data

    if config is None:
        raise UserError(f"{split}:{i}: rows of a data set go with --workdir")
    if split not in sources:
        sources[split] = data.make(config, config.data[split])
    if i >= len(sources[split]):
        raise UserError(f"{split}:{i}: there are {len(sources[split])} images, counted from 0")
    found = sources[split][i]
    return found["image"], found["label"]
