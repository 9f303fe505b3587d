"""Synthetic images for tests and benchmarks: one coarse pattern per class, plus noise.

Examples are deterministic and generated on the fly; nothing is read from disk.
"""

import numpy as np

from vit_jax.data import unknown_split
from vit_jax.errors import UserError
from vit_jax.schema import pair

SPLITS = ("train", "val", "test")
GRID_SIZE = 4  # cells along each side of a class pattern


def make(split, config):
    """Create a source of config.data.synthetic.images examples.

    Images are slightly larger than config.model.image, so that crops have an effect.
    """
    if split not in SPLITS:
        raise unknown_split(split, SPLITS)
    images, classes = config.data.synthetic.images, config.data.synthetic.classes
    if images < 1 or classes < 1:
        raise UserError(
            "config.data.synthetic.images and config.data.synthetic.classes must be at least 1"
        )
    size = tuple(side + max(side // 8, 2) for side in pair(config.model.image))
    return Synthetic(SPLITS.index(split), images, classes, size, config.model.channels)


class Synthetic:
    """Source of images uint8 [height, width, channels]; example i has the label i % classes."""

    in_memory = True

    def __init__(self, split, images, classes, size, channels):
        self.split = split
        self.images = images
        self.shape = (*size, channels)
        self.class_names = [f"pattern {k}" for k in range(classes)]
        rows, columns = (np.arange(side) * GRID_SIZE // side for side in size)
        shape = (classes, GRID_SIZE, GRID_SIZE, channels)
        grids = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self.patterns = grids[:, rows[:, None], columns]

    def __len__(self):
        return self.images

    @property
    def labels(self):
        return np.arange(self.images) % len(self.class_names)

    def fingerprint(self):
        """Return the arguments that determine the images."""
        return repr((self.split, self.images, self.shape, len(self.class_names)))

    def __getitem__(self, i):
        label = i % len(self.class_names)
        noise = np.random.default_rng((self.split, i)).integers(0, 128, self.shape, np.uint8)
        return {"image": self.patterns[label] // 2 + noise, "label": label}
