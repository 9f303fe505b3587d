"""Images in folders: <root>/<split>/<class>/<image>, as ImageNet is usually unpacked."""

import os

import numpy as np

from vit_jax.data import unknown_split
from vit_jax.data.decode import decode
from vit_jax.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp")


def make(split, config):
    """Split `split` of the folder config.data.dir; "validation" may also be called "val" there.

    Classes are the folders' names in order. The images are in a fixed random order, so that slices
    such as train[:99%] hold all classes. Raises UserError if there is nothing to read.
    """
    if not config.data.dir:
        raise UserError(
            "config.data.dir is empty; set it to the directory of <split>/<class>/<image>"
        )
    paths, labels, class_names = scan(os.path.expanduser(config.data.dir), split)
    order = np.random.default_rng(0).permutation(len(paths))
    paths = [paths[i] for i in order]
    return Files(paths, np.asarray(labels)[order], class_names, config.model.channels)


def splits(root):
    """Names of the splits in a folder; UserError if it is not one."""
    if not os.path.isdir(root):
        raise UserError(f"no folder {root}")
    return [name for name in _visible(root) if os.path.isdir(os.path.join(root, name))]


def scan(root, split):
    """-> paths, labels (ints), class names; by class and then by name, hidden files left out."""
    known = splits(root)
    if split == "validation" and split not in known:
        split = "val"
    if split not in known:
        raise unknown_split(split, known) if known else UserError(f"{root} has no folders in it")
    folder = os.path.join(root, split)
    class_names = splits(folder)
    paths, labels = [], []
    for label, name in enumerate(class_names):
        directory = os.path.join(folder, name)
        files = [f for f in _visible(directory) if f.lower().endswith(SUFFIXES)]
        if not files:
            raise UserError(f"{directory}: a class without images; remove the folder or fill it")
        paths += [os.path.join(directory, f) for f in files]
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"{folder} has no images; they belong into {folder}/<class>/")
    return paths, labels, class_names


class Files:
    """Source over image files."""

    def __init__(self, paths, labels, class_names, channels):
        self.paths, self.labels, self.channels = paths, labels, channels
        self.num_classes, self.class_names = len(class_names), class_names

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        image = decode(self.paths[i], self.channels)
        return {"image": image, "label": int(self.labels[i])}


def _visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))
