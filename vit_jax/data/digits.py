"""Handwritten digits bundled with scikit-learn: 1,797 grayscale 8x8 images in 10 classes.

Source: Alpaydin & Kaynak, UCI "Optical Recognition of Handwritten Digits" (test set).
"""

import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np

from vit_jax.data import unknown_split
from vit_jax.data.sources import Arrays

SPLITS = ("train", "val", "test")
# Line i has the images of split i, in order, as from scikit-learn's `train_test_split`, twice, with
# stratify=labels and random_state=0.
INDICES = Path(__file__).with_name("digits_splits.txt")


def make(split, config):
    """Create a source for the split train (1,257 images), val (180) or test (360).

    Splits are stratified by class.
    """
    del config
    if split not in SPLITS:
        raise unknown_split(split, SPLITS)
    images, labels = _read_digits()
    indices = np.array(INDICES.read_text().splitlines()[SPLITS.index(split)].split(), int)
    return Arrays(images[indices], labels[indices], [str(digit) for digit in range(10)])


@functools.cache
def _read_digits():
    """Read scikit-learn's file. Importing scikit-learn takes longer than the start of a run."""
    (directory,) = importlib.util.find_spec("sklearn").submodule_search_locations
    with gzip.open(Path(directory) / "datasets/data/digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=int)
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8, 1), table[:, -1]
