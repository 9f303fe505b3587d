"""Images in directories: <root>/<split>/<class>/<image>, as ImageNet is usually unpacked."""

import os

from vit_jax.data import data_dir, unknown_split
from vit_jax.data.sources import Files
from vit_jax.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp")


def make(split, config):
    """Split `split` of the directory config.data.dir; "validation" may be called "val" there.

    Classes are the directories' names in order. Raises UserError if there is nothing to read.
    """
    root = data_dir(config, "<split>/<class>/<image>")
    return Files(*scan(root, split), config.model.channels)


def splits(root):
    """The names of the splits in a directory. Raises UserError if it is not one."""
    if not os.path.isdir(root):
        raise UserError(f"no folder {root}")
    return [name for name in _visible(root) if os.path.isdir(os.path.join(root, name))]


def scan(root, split):
    """List a split, by class and then by name, without hidden files.

    Returns:
      Paths, labels (ints), class names.
    """
    known = splits(root)
    if split == "validation" and split not in known:
        split = "val"
    if split not in known:
        raise unknown_split(split, known)
    folder = os.path.join(root, split)
    class_names = splits(folder)
    if not class_names:
        raise UserError(f"{folder} has no images; they belong in {folder}/<class>/")
    paths, labels = [], []
    for label, name in enumerate(class_names):
        directory = os.path.join(folder, name)
        files = [f for f in _visible(directory) if f.lower().endswith(SUFFIXES)]
        if not files:
            raise UserError(f"{directory}: a class without images; remove the folder or fill it")
        paths += [os.path.join(directory, f) for f in files]
        labels += [label] * len(files)
    return paths, labels, class_names


def _visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))
