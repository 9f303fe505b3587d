"""Reader for the idx files of MNIST and its variants; used by `tools.prepare`.

Files are named {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]. The format is described at
http://yann.lecun.com/exdb/mnist, "file formats".
"""

import gzip
import os
import re
import zlib

import numpy as np

from vit_jax.data.sources import Arrays
from vit_jax.errors import UserError

FILE_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?")


def read(root, class_names=None):
    """Read the splits "train" and "test" from a directory.

    Args:
      root: the directory.
      class_names: names of classes 0, 1, ...; None: the class numbers.

    Returns:
      {split: source}; {} if the directory has no idx files.

    Raises:
      UserError: if files are missing, corrupt or inconsistent.
    """
    matches = [match for match in map(FILE_NAME.fullmatch, os.listdir(root)) if match]
    paths = {match.groups(): os.path.join(root, match[0]) for match in matches}
    arrays = {}
    for prefix in sorted({prefix for prefix, _ in paths}, reverse=True):  # train before t10k
        if not {(prefix, "images"), (prefix, "labels")} <= paths.keys():
            raise UserError(f"{root}: {prefix} needs both an images file and a labels file")
        images = _array(paths[prefix, "images"], 3)[..., None]
        labels = _array(paths[prefix, "labels"], 1)
        if len(images) != len(labels):
            raise UserError(f"{root}: {prefix} has {len(images)} images and {len(labels)} labels")
        arrays["train" if prefix == "train" else "test"] = images, labels
    count = max((int(labels.max()) + 1 for _, labels in arrays.values()), default=0)
    names = class_names or [str(k) for k in range(count)]
    if len(names) < count:
        raise UserError(
            f"the largest label is {count - 1}, but --class_names has only {len(names)} names"
        )
    return {split: Arrays(images, labels, names) for split, (images, labels) in arrays.items()}


def _array(path, ndim):
    """Read an idx file as a uint8 array with `ndim` dimensions."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            data = file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: {error}") from None
    shape = np.frombuffer(data[4 : 4 + 4 * ndim], ">u4").tolist()
    body = data[4 + 4 * ndim :]
    if data[:4] != bytes([0, 0, 8, ndim]) or len(body) != np.prod(shape) or not body:
        raise UserError(f"{path} is truncated, or not an idx file of {ndim}-dimensional uint8 data")
    return np.frombuffer(body, np.uint8).reshape(shape)
