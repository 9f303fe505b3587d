"""Sources used by several datasets: encoded images in files or archives, and arrays."""

import hashlib
import io
import os

import numpy as np
from PIL import Image

from vit_jax.data.decode import decode


class Files:
    """Source of encoded images: files, or members of archives.

    Args:
      locations: for each image, the path of a file or (path of an archive, offset, size in bytes).
      labels: for each image, an int.
      class_names: names of the classes.
      channels: 3 (RGB), 1 (luma) or 4 (RGBA).
      root: directory that the paths of files are relative to in the fingerprint.
    """

    shape = (None, None, 3)
    order = "stratified by class, with a fixed seed"

    def __init__(self, locations, labels, class_names, channels=3, *, root=""):
        order = stratified_order(labels)
        self.locations = [locations[i] for i in order]
        self.labels = np.asarray(labels)[order]
        self.channels = channels
        self.class_names = class_names
        self.root = root

    def __len__(self):
        return len(self.locations)

    def __getitem__(self, i):
        location = self.locations[i]
        if isinstance(location, tuple):
            name = f"{location[0]} at byte {location[1]}"
            image = decode(_read(location), self.channels, name=name)
        else:
            image = decode(location, self.channels)
        return {"image": image, "label": int(self.labels[i])}

    def name(self, i):
        """Return the path of file i relative to `root`, or its archive and position in it."""
        return _describe(self.locations[i], self.root)[0]

    def fingerprint(self):
        """Return a hash of the sorted relative paths and sizes of the files, and of the labels."""
        lines = [
            (*_describe(location, self.root), int(label))
            for location, label in zip(self.locations, self.labels, strict=True)
        ]
        return hashlib.sha256(repr(sorted(lines)).encode()).hexdigest()

    def encoded(self, i):
        """Return example i with an encoded image: the original file if it is a JPEG, else a PNG.

        Raises:
          DecodeError: if the image cannot be decoded.
        """
        example = self[i]
        data = _read(self.locations[i])
        image = data if data.startswith(b"\xff\xd8") else encode_png(example["image"])
        return example | {"image": image}


class Arrays:
    """Source of images in memory: images uint8 [n, h, w, 1 or 3], labels int [n]."""

    in_memory = True

    def __init__(self, images, labels, class_names):
        self.images = images
        self.labels = labels
        self.class_names = class_names
        self.shape = images.shape[1:]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": int(self.labels[i])}

    def fingerprint(self):
        """Return a hash of all pixels and labels."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images))
        digest.update(np.asarray(self.labels, "<i8"))
        return digest.hexdigest()

    def encoded(self, i):
        """Return example i with the image encoded as PNG."""
        example = self[i]
        return example | {"image": encode_png(example["image"])}


def stratified_order(labels):
    """Return a fixed order of examples in which every slice has the classes in proportion.

    The images of a class are shuffled with a fixed seed and then spread evenly: image r of n is at
    the position (r + 1/2) / n of the whole. Classes of one or two images are therefore in
    the first 80%.

    Args:
      labels: int [n].

    Returns:
      A permutation, int [n].
    """
    order = np.random.default_rng(0).permutation(len(labels))
    labels = np.asarray(labels)[order]
    counts = np.bincount(labels)
    by_class = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[np.argsort((rank + 0.5) / counts[labels], kind="stable")]


def encode_png(image):
    """Encode an image, uint8 [h, w, 1 or 3], as PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(out, "PNG")
    return out.getvalue()


def _describe(location, root):
    """Return the name and size in bytes of a file, independent of where the dataset is stored."""
    if isinstance(location, tuple):
        path, offset, size = location
        return f"{os.path.basename(path)}@{offset}", size
    return os.path.relpath(location, root or None), os.path.getsize(location)


def _read(location):
    path, offset, size = location if isinstance(location, tuple) else (location, 0, -1)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
