"""ImageNet-1k as it is handed out: the archives of ILSVRC 2012, read where they lie.

config.data.dir has
  ILSVRC2012_img_train.tar        a tar of JPEGs for each of the 1,000 classes
  ILSVRC2012_img_val.tar          50,000 JPEGs
  ILSVRC2012_devkit_t12.tar.gz    their classes

Nothing is unpacked. The archives' headers are read at every start, which takes about a minute for
`train`; vit_jax.tools.prepare reads them once and for all.
"""

import io
import os
import tarfile

import numpy as np

from vit_jax.data import unknown_split
from vit_jax.data.decode import decode
from vit_jax.errors import UserError

TRAIN, VAL, DEVKIT = (
    f"ILSVRC2012_{name}" for name in ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz")
)
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"


def make(split, config):
    """Split train or validation (or val) of the archives in the folder config.data.dir.

    Classes are the WordNet IDs in order. The images are in a fixed random order, so that slices
    such as train[:99%] hold all classes. Raises UserError.
    """
    if not config.data.dir:
        raise UserError(f"config.data.dir is empty; set it to the directory of {TRAIN}")
    places, labels, class_names = scan(os.path.expanduser(config.data.dir), split)
    order = np.random.default_rng(0).permutation(len(labels))
    places = [places[i] for i in order]
    return Members(places, np.asarray(labels)[order], class_names, config.model.channels)


def splits(root):
    """Names of the splits whose archives are in a folder."""
    return [s for s, name in (("train", TRAIN), ("validation", VAL)) if _there(root, name)]


def scan(root, split):
    """-> places (path, offset, size), labels (ints), class names; in the archives' order."""
    read = {"train": _scan_train, "validation": _scan_val, "val": _scan_val}
    if split not in read:
        raise unknown_split(split, ("train", "validation"))
    for name in (TRAIN,) if split == "train" else (VAL, DEVKIT):
        if not _there(root, name):
            raise UserError(f"there is no {name} in {root}; it comes from image-net.org")
    try:
        return read[split](root)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"an archive in {root} is broken or cut off ({error})") from None


def read(place):
    """The bytes of one file in an archive."""
    path, offset, size = place
    with open(path, "rb") as file:
        return os.pread(file.fileno(), size, offset)


class Members:
    """Source over files in archives."""

    def __init__(self, places, labels, class_names, channels):
        self.places, self.labels, self.channels = places, labels, channels
        self.num_classes, self.class_names = len(class_names), class_names

    def __len__(self):
        return len(self.places)

    def __getitem__(self, i):
        path, offset, _ = place = self.places[i]
        image = decode(read(place), self.channels, name=f"{path} at byte {offset}")
        return {"image": image, "label": int(self.labels[i])}


def _there(root, name):
    return os.path.isfile(os.path.join(root, name))


def _scan_train(root):
    path, classes = os.path.join(root, TRAIN), {}
    with tarfile.open(path, "r:") as outer:
        for member in outer:
            # The archive of a class is stored as it is, so that a file in it has a place here.
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
