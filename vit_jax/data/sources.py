"""The two kinds of source that several members share: encoded images by place, and arrays."""

import io

import numpy as np
from PIL import Image

from vit_jax.data.decode import decode


class Files:
    """Source over encoded images: files, and members of archives.

    The images are in a fixed random order, so that slices such as train[:99%] hold all classes.

    Args:
      places: for each image the path of its file, or (path of the archive, offset, size).
      labels: for each image an int.
      class_names: the names of the classes.
      channels: 3 (RGB) or 1 (luma).
    """

    shape = (None, None, 3)

    def __init__(self, places, labels, class_names, channels=3):
        order = np.random.default_rng(0).permutation(len(places))
        self.places = [places[i] for i in order]
        self.labels = np.asarray(labels)[order]
        self.channels = channels
        self.class_names = class_names
        self.num_classes = len(class_names)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, i):
        place = self.places[i]
        if isinstance(place, tuple):
            name = f"{place[0]} at byte {place[1]}"
            image = decode(_read(place), self.channels, name=name)
        else:
            image = decode(place, self.channels)
        return {"image": image, "label": int(self.labels[i])}

    def encoded(self, i):
        """Example i with its image as a file: a JPEG byte for byte, anything else as a PNG.

        Raises:
          DecodeError: for an image that cannot be decoded.
        """
        example = self[i]
        data = _read(self.places[i])
        image = data if data.startswith(b"\xff\xd8") else encode_png(example["image"])
        return example | {"image": image}


class Arrays:
    """Source over arrays: images uint8 [n, h, w, 1 or 3], labels int [n]."""

    def __init__(self, images, labels, class_names):
        self.images = images
        self.labels = labels
        self.class_names = class_names
        self.num_classes = len(class_names)
        self.shape = images.shape[1:]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": int(self.labels[i])}

    def encoded(self, i):
        """Example i with its image as a PNG."""
        example = self[i]
        return example | {"image": encode_png(example["image"])}


def encode_png(image):
    """Encode an image, uint8 [h, w, 1 or 3], as the bytes of a PNG."""
    out = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(out, "PNG")
    return out.getvalue()


def _read(place):
    path, offset, size = place if isinstance(place, tuple) else (place, 0, -1)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
