"""ImageNet-1k from the archives of ILSVRC 2012, without unpacking them.

config.data.dir has
  ILSVRC2012_img_train.tar        a tar of JPEGs for each of the 1,000 classes
  ILSVRC2012_img_val.tar          50,000 JPEGs
  ILSVRC2012_devkit_t12.tar.gz    their classes

The archives' headers are read at every start, which takes about a minute for `train`;
vit_jax.tools.prepare reads them once.
"""

import io
import os
import tarfile

import numpy as np

from vit_jax.data import data_dir, unknown_split
from vit_jax.data.sources import Files
from vit_jax.errors import UserError

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "data/meta.mat"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


def make(split, config):
    """Split train or validation (or val) of the archives in the directory config.data.dir.

    Classes are the WordNet IDs in order. Raises UserError.
    """
    return Files(*scan(data_dir(config, TRAIN), split), config.model.channels)


def splits(root):
    """The names of the splits with their archive in a directory."""
    archives = {"train": TRAIN, "validation": VAL}
    return [name for name, file in archives.items() if os.path.isfile(os.path.join(root, file))]


def scan(root, split):
    """List a split, in the order of the archives.

    Returns:
      Places (path, offset, size), labels (ints), class names.
    """
    read = {"train": _scan_train, "validation": _scan_val, "val": _scan_val}
    if split not in read:
        raise unknown_split(split, ("train", "validation"))
    try:
        return read[split](root)
    except FileNotFoundError as error:
        name = os.path.basename(error.filename)
        raise UserError(f"there is no {name} in {root}; it comes from image-net.org") from None
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"an archive in {root} is broken or cut off ({error})") from None


def _scan_train(root):
    path = os.path.join(root, TRAIN)
    classes = {}
    with tarfile.open(path, "r:") as outer:
        for member in outer:
            # The archive of a class is stored uncompressed, so its files have an offset here.
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                files = [(path, member.offset_data + f.offset_data, f.size) for f in inner]
            classes[member.name.removesuffix(".tar")] = files
    if not classes or not all(classes.values()):
        raise UserError(f"{path} has no classes, or one without images")
    names = sorted(classes)
    labels = [label for label, name in enumerate(names) for _ in classes[name]]
    return [place for name in names for place in classes[name]], labels, names


def _scan_val(root):
    path = os.path.join(root, VAL)
    with tarfile.open(path, "r:") as archive:
        files = sorted((f.name, f.offset_data, f.size) for f in archive if f.isfile())
    with tarfile.open(os.path.join(root, DEVKIT)) as devkit:
        found = {"/".join(f.name.split("/")[-2:]): f for f in devkit if f.isfile()}
        if not found.keys() >= {META, TRUTH}:
            raise UserError(f"{os.path.join(root, DEVKIT)} lacks {META} or {TRUTH}")
        meta, truth = (devkit.extractfile(found[name]).read() for name in (META, TRUTH))
    names = _wordnet_ids(meta)  # {the number of a class in the devkit: its WordNet ID}
    order = {name: label for label, name in enumerate(sorted(names.values()))}
    numbers = [int(word) for word in truth.split()]
    if len(numbers) != len(files):
        raise UserError(
            f"{path} has {len(files)} images, the devkit {len(numbers)} classes of them"
        )
    labels = [order[names[number]] for number in numbers]
    return [(path, *file[1:]) for file in files], labels, sorted(order)


def _wordnet_ids(meta):
    from scipy.io import loadmat

    synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
    # Those with children are WordNet's groups of classes.
    return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if not s["num_children"]}
