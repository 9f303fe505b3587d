"""Sources used by several datasets: encoded images in files or archives, and arrays."""

import io

import numpy as np
from PIL import Image

from vit_jax.data.decode import decode


class Files:
    """Source of encoded images: files, or members of archives.

    Images are shuffled with a fixed seed, so that slices such as train[:99%] contain all classes.

    Args:
      locations: for each image, the path of a file or (path of an archive, offset, size in bytes).
      labels: for each image, an int.
      class_names: names of the classes.
      channels: 3 (RGB) or 1 (luma).
    """

    shape = (None, None, 3)

    def __init__(self, locations, labels, class_names, channels=3):
        order = np.random.default_rng(0).permutation(len(locations))
        self.locations = [locations[i] for i in order]
        self.labels = np.asarray(labels)[order]
        self.channels = channels
        self.class_names = class_names
        self.num_classes = len(class_names)

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
        """Return example i with the image encoded as PNG."""
        example = self[i]
        return example | {"image": encode_png(example["image"])}


def encode_png(image):
    """Encode an image, uint8 [h, w, 1 or 3], as PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(out, "PNG")
    return out.getvalue()


def _read(location):
    path, offset, size = location if isinstance(location, tuple) else (location, 0, -1)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
