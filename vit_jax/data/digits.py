"""Handwritten digits bundled with scikit-learn: 1,797 grayscale 8x8 images in 10 classes.

Source: Alpaydin & Kaynak, UCI "Optical Recognition of Handwritten Digits" (test set).
"""

import numpy as np

from vit_jax.data import unknown_split
from vit_jax.data.sources import Arrays

SPLITS = ("train", "val", "test")


def make(split, config):
    """Create a source for the split train (1,257 images), val (180) or test (360).

    Splits are stratified by class.
    """
    del config
    if split not in SPLITS:
        raise unknown_split(split, SPLITS)
    # Imported here, because it takes longer than the check above.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = digits.target
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    train, val = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    indices = dict(zip(SPLITS, (train, val, test), strict=True))[split]
    return Arrays(images[indices], labels[indices], [str(digit) for digit in range(10)])
