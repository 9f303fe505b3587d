"""ImageNet-1k, read from the ILSVRC 2012 archives without extracting them.

config.data.dir must contain
  ILSVRC2012_img_train.tar        one tar file of JPEGs for each of the 1,000 classes
  ILSVRC2012_img_val.tar          50,000 JPEGs
  ILSVRC2012_devkit_t12.tar.gz    the labels of the validation images

The archives are indexed at every start, which takes about a minute for the training set. To avoid
this, convert the dataset once with vit_jax.tools.prepare.
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
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


def make(split, config):
    """Create a source for the split "train" or "validation" (also "val").

    Classes are the sorted WordNet IDs.

    Raises:
      UserError: if an archive is missing or corrupt.
    """
    return Files(*scan(data_dir(config, TRAIN), split), config.model.channels)


def splits(root):
    """Return the names of the splits whose archives are in `root`."""
    archives = {"train": TRAIN, "validation": VAL}
    return [name for name, file in archives.items() if os.path.isfile(os.path.join(root, file))]


def scan(root, split):
    """List the images of a split, sorted by class (train) or by file name (validation).

    Returns:
      Locations (path of the archive, offset, size), labels (list of int) and class names.
    """
    scanners = {"train": _scan_train, "validation": _scan_val, "val": _scan_val}
    if split not in scanners:
        raise unknown_split(split, ("train", "validation"))
    try:
        return scanners[split](root)
    except FileNotFoundError as error:
        name = os.path.basename(error.filename)
        raise UserError(f"no {name} in {root}; download it from image-net.org") from None
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"an archive in {root} is corrupt or truncated ({error})") from None


def _scan_train(root):
    path = os.path.join(root, TRAIN)
    classes = {}
    with tarfile.open(path, "r:") as outer:
        for member in outer:
            # Class archives are stored uncompressed, so a file's offset in the outer archive is the
            # sum of the two offsets.
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                files = [(path, member.offset_data + f.offset_data, f.size) for f in inner]
            classes[member.name.removesuffix(".tar")] = files
    if not classes or not all(classes.values()):
        raise UserError(f"{path} has no classes, or a class without images")
    names = sorted(classes)
    labels = [label for label, name in enumerate(names) for _ in classes[name]]
    return [location for name in names for location in classes[name]], labels, names


def _scan_val(root):
    path = os.path.join(root, VAL)
    with tarfile.open(path, "r:") as archive:
        files = sorted((f.name, f.offset_data, f.size) for f in archive if f.isfile())
    with tarfile.open(os.path.join(root, DEVKIT)) as devkit:
        members = {"/".join(f.name.split("/")[-2:]): f for f in devkit if f.isfile()}
        if not members.keys() >= {META, GROUND_TRUTH}:
            raise UserError(f"{os.path.join(root, DEVKIT)} lacks {META} or {GROUND_TRUTH}")
        meta = devkit.extractfile(members[META]).read()
        ground_truth = devkit.extractfile(members[GROUND_TRUTH]).read()
    wordnet_ids = _wordnet_ids(meta)
    label_of = {wnid: label for label, wnid in enumerate(sorted(wordnet_ids.values()))}
    class_ids = [int(line) for line in ground_truth.split()]
    if len(class_ids) != len(files):
        raise UserError(
            f"{path} has {len(files)} images, but the devkit has {len(class_ids)} labels"
        )
    labels = [label_of[wordnet_ids[class_id]] for class_id in class_ids]
    return [(path, *file[1:]) for file in files], labels, sorted(label_of)


def _wordnet_ids(meta):
    """Return {class ID in the devkit: WordNet ID}. meta: contents of meta.mat."""
    from scipy.io import loadmat

    synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
    # Synsets with children are not classes but groups of classes.
    return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if not s["num_children"]}
