"""Load images named on the command line: files, or examples of a run's dataset."""

import collections
import glob
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_jax.data import decode, folder
from vit_jax.errors import UserError, printable

MAX_PIXELS = 50_000_000  # per file
OPEN_LOCK = threading.Lock()  # so that threads share the source of a split


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
        """Return the view of a `inference.LoadedModel`, uint8 [h, w, channels]."""
        key = _preprocessing(model)
        return self.views[key] if key in self.views else model.view(self.image)


def _preprocessing(model):
    size = model.image, model.keep_shape, model.channels
    return *size, model.crop, model.crop_mode, model.interpolation


def is_pattern(name):
    """Return whether a name is a pattern such as "pets/*.jpg", and not that of a file."""
    return glob.has_magic(name) and not os.path.exists(name)


def list_files(names, key=None):
    """Replace directories and patterns by the images that they stand for.

    Args:
      names: paths of files; directories, for all images below them; patterns such as "pets/*.jpg"
        or "pets/**/*.jpg", which select files with the suffix of an image and directories; and
        other names, which are returned unchanged.
      key: sort key of the paths below a directory or in a pattern; None: the paths themselves.

    Returns:
      A list of paths.

    Raises:
      UserError: if a directory or a pattern has no images.
    """
    files = []
    for name in map(str, names):
        found = [name]
        if os.path.isdir(name):
            found = folder.images(name)
        elif is_pattern(name):
            matches = glob.glob(name, recursive=True)
            found = [x for x in matches if x.lower().endswith(decode.SUFFIXES)]
            if "**" not in name:
                found += [x for d in matches if os.path.isdir(d) for x in folder.images(d)]
        if not found:
            formats = ", ".join(decode.SUFFIXES)
            raise UserError(f"no images in {printable(name)}; supported formats are {formats}")
        files += sorted(set(found), key=key)
    return files


def read(names, config=None, channels=3, models=(), threads=4):
    """Load images from files and from a run's dataset, ahead of their use and in their order.

    Args:
      names: paths of files, or "SPLIT:INDEX" for an example of the dataset, such as "test:0".
      config: config of the run whose dataset is used; None: files only.
      channels: channels of images from files: 3 (RGB), 1 (grayscale) or 4 (RGBA).
      models: `inference.LoadedModel`s; only their views of each image are kept, which need less
        memory. (): keep the images.
      threads: number of images that are loaded at the same time.

    Yields:
      For each name a `Picture`, or the error message of an image that cannot be read.
    """
    sources = {}

    def load(name):
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
        except (decode.DecodeError, UserError) as error:
            text = str(error)
            return text if text.startswith(printable(name)) else f"{printable(name)}: {text}"
        return picture

    names = iter(names)
    with ThreadPoolExecutor(threads) as pool:
        ahead = collections.deque(pool.submit(load, x) for x in islice(names, 2 * threads))
        try:
            while ahead:
                picture = ahead.popleft().result()
                ahead.extend(pool.submit(load, x) for x in islice(names, 1))
                yield picture
        finally:
            pool.shutdown(cancel_futures=True)


def open_images(names, config=None, channels=3, models=()):
    """Load images from files and from a run's dataset; see `read`.

    Returns:
      A list of `Picture`, and a list with one error message per image that cannot be read.
    """
    results = list(read(names, config, channels, models))
    pictures = [x for x in results if isinstance(x, Picture)]
    return pictures, [x for x in results if not isinstance(x, Picture)]


def _example(name, config, split, i, sources):
    """Load example i of a split. sources: cache of the splits that are already open."""
    from vit_jax import data

    if config is None:
        raise UserError(f"{name}: pass --workdir to load an image from a run's dataset")
    with OPEN_LOCK:
        if split not in sources:
            sources[split] = data.make(config, config.data[split])
    if i >= len(sources[split]):
        raise UserError(f"{name}: index out of range; {split} has {len(sources[split])} images")
    example = sources[split][i]
    return Picture(name, example["image"], example["label"])
