"""Reader for the idx files of MNIST and its variants; used by `tools.prepare`.

Files are named {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]. The format is described at
http://yann.lecun.com/exdb/mnist, "file formats".
"""

import gzip
import math
import os
import re
import zlib

import numpy as np

from vit_jax.data.sources import Arrays
from vit_jax.errors import UserError, printable

MAX_COMPRESSION = 100  # of .gz files; MNIST's have 5
SMALL_BYTES = 64 * 2**20  # files that are decompressed whatever their compression
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
            raise UserError(
                f"{printable(root)}: {prefix} needs both an images file and a labels file"
            )
        images = _array(paths[prefix, "images"], 3)[..., None]
        labels = _array(paths[prefix, "labels"], 1)
        if len(images) != len(labels):
            raise UserError(
                f"{printable(root)}: {prefix} has {len(images)} images and {len(labels)} labels"
            )
        arrays["train" if prefix == "train" else "test"] = images, labels
    count = max((int(labels.max()) + 1 for _, labels in arrays.values()), default=0)
    names = class_names or [str(k) for k in range(count)]
    if len(names) < count:
        raise UserError(
            f"the largest label is {count - 1}, but --class_names has only {len(names)} names"
        )
    return {split: Arrays(images, labels, names) for split, (images, labels) in arrays.items()}


def _array(path, ndim):
    """Read an idx file as a uint8 array with `ndim` dimensions.

    No more bytes are decompressed than the header says, and the header cannot say much more than
    the size of the file allows.
    """
    name = printable(path)
    if not os.path.isfile(path):
        raise UserError(f"{name} is not a regular file; remove it")
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            header = file.read(4 + 4 * ndim)
            shape = np.frombuffer(header[4 : len(header) // 4 * 4], ">u4").tolist()
            size = math.prod(shape)
            if header[:4] != bytes([0, 0, 8, ndim]) or len(shape) < ndim or not size:
                raise UserError(f"{name} is not an idx file of {ndim}-dimensional uint8 data")
            if size > max(SMALL_BYTES, MAX_COMPRESSION * os.path.getsize(path)):
                raise UserError(f"{name} has {shape} in its header, too much for its size")
            data = file.read(size)
            surplus = file.read(1)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{name} cannot be read ({error}); download it again") from None
    if len(data) < size or surplus:
        problem = "has more data than" if surplus else "is truncated: it has less data than"
        raise UserError(f"{name} {problem} its header says, {shape}; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
