"""scikit-learn's handwritten digits: 1,797 gray images of 8x8 in 10 classes, in the package itself.

Alpaydin & Kaynak, UCI "Optical Recognition of Handwritten Digits" (test part).
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vit_jax.data import unknown_split


def make(split, config):
    """Splits train (1,257), val (180) and test (360), each with all classes in proportion."""
    del config
    digits = load_digits()
    indices, labels = np.arange(len(digits.target)), digits.target
    rest, test = train_test_split(indices, test_size=360, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
    splits = {"train": train, "val": val, "test": test}
    if split not in splits:
        raise unknown_split(split, splits)
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Digits(images[splits[split]], labels[splits[split]])


class Digits:
    """Source over arrays: images uint8 [n, 8, 8, 1], labels [n]."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.num_classes, self.class_names = 10, [str(i) for i in range(10)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": int(self.labels[i])}
