"""scikit-learn's handwritten digits: 1,797 gray images of 8x8 in 10 classes, in the package itself.

Alpaydin & Kaynak, UCI "Optical Recognition of Handwritten Digits" (test part).
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vit_jax.data import unknown_split
from vit_jax.data.sources import Arrays


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
    chosen = splits[split]
    return Arrays(images[chosen], labels[chosen], [str(digit) for digit in range(10)])
