"""The idx files of the MNIST family: {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz].

http://yann.lecun.com/exdb/mnist, "file formats". `tools.prepare` reads them.
"""

import gzip
import os
import re
import zlib

import numpy as np

from vit_jax.data.sources import Arrays
from vit_jax.errors import UserError

NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?")


def read(root, class_names=None):
    """Read the splits train and test of a directory.

    Args:
      root: the directory.
      class_names: the names of classes 0, 1, ...; None: the numbers themselves.

    Returns:
      {split: source}; {} where there are no idx files.

    Raises:
      UserError: for files that are incomplete or do not fit each other.
    """
    found = [match for match in map(NAME.fullmatch, os.listdir(root)) if match]
    paths = {match.groups(): os.path.join(root, match[0]) for match in found}
    arrays = {}
    for prefix in sorted({prefix for prefix, _ in paths}, reverse=True):  # train before t10k
        if not {(prefix, "images"), (prefix, "labels")} <= paths.keys():
            raise UserError(f"{root}: {prefix} needs both its images and its labels")
        images = _array(paths[prefix, "images"], 3)[..., None]
        labels = _array(paths[prefix, "labels"], 1)
        if len(images) != len(labels):
            raise UserError(f"{root}: {prefix} has {len(images)} images and {len(labels)} labels")
        arrays["train" if prefix == "train" else "test"] = images, labels
    count = max((int(labels.max()) + 1 for _, labels in arrays.values()), default=0)
    names = class_names or [str(k) for k in range(count)]
    if len(names) < count:
        raise UserError(f"labels go up to {count - 1}, but --class_names has {len(names)}")
    return {split: Arrays(images, labels, names) for split, (images, labels) in arrays.items()}


def _array(path, ndim):
    """uint8 array of an idx file."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            data = file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: {error}") from None
    shape = np.frombuffer(data[4 : 4 + 4 * ndim], ">u4").tolist()
    body = data[4 + 4 * ndim :]
    if data[:4] != bytes([0, 0, 8, ndim]) or len(body) != np.prod(shape) or not body:
        raise UserError(f"{path} is not a whole idx file of bytes with {ndim} dimensions")
    return np.frombuffer(body, np.uint8).reshape(shape)
