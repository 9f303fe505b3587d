"""Image folders: <root>/<split>/<class>/<image>, the usual layout of an extracted ImageNet."""

import os

from vit_jax.data import data_dir, unknown_split
from vit_jax.data.sources import Files
from vit_jax.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp")


def make(split, config):
    """Create a source for one split of the directory config.data.dir.

    Classes are the sorted names of the class directories. The split "validation" is read from the
    directory "val" if there is no directory "validation".

    Raises:
      UserError: if the directory or the split is missing, or if a class has no images.
    """
    root = data_dir(config, "<split>/<class>/<image>")
    return Files(*scan(root, split), config.model.channels)


def splits(root):
    """Return the names of the splits in `root`. Raises UserError if it is not a directory."""
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a directory")
    return [name for name in _visible(root) if os.path.isdir(os.path.join(root, name))]


def scan(root, split):
    """List the images of a split, sorted by class and file name. Hidden files are skipped.

    Returns:
      Paths, labels (list of int) and class names.
    """
    available = splits(root)
    if split == "validation" and split not in available:
        split = "val"
    if split not in available:
        raise unknown_split(split, available)
    folder = os.path.join(root, split)
    class_names = splits(folder)
    if not class_names:
        raise UserError(f"{folder} has no class directories; put images in {folder}/<class>/")
    paths, labels = [], []
    for label, name in enumerate(class_names):
        directory = os.path.join(folder, name)
        files = [f for f in _visible(directory) if f.lower().endswith(SUFFIXES)]
        if not files:
            raise UserError(f"{directory} has no images; add images or remove the directory")
        paths += [os.path.join(directory, f) for f in files]
        labels += [label] * len(files)
    return paths, labels, class_names


def _visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))
