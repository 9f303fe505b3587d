"""The datasets on which classifiers of ImageNet are reported, and their labels.

`suites.toml` has a table for each dataset: its directory, the rule of its labels, its classes and
its preprocessing. `suite_scores.py` evaluates a model on it.
"""

import functools
import glob
import json
import os
import re
import tomllib
from importlib import resources
from typing import NamedTuple

from vit_jax import data
from vit_jax.data import class_names
from vit_jax.errors import UserError, printable

SPLIT = "split"  # name of the suite that is a split of the config's dataset
NUM_CLASSES = 1000
SEVERITIES = ("1", "2", "3", "4", "5")  # of ImageNet-C
IMAGE_NUMBER = re.compile(r"_(\d{8})\.\w+$")  # in the file name of a validation image


class Suite(NamedTuple):
    """A dataset; the comment in suites.toml describes the attributes.

    The classes are a tuple of WordNet IDs.
    """

    title: str
    folder: str
    download: str
    images: int
    labels: str = "wordnet_id"
    label_file: str | None = None
    label_download: str | None = None
    classes: tuple = ()
    crop: float | None = None
    reference: dict | None = None

    def directory(self, root):
        """Return the directory of the dataset below `root`."""
        return os.path.join(root, self.folder)


@functools.cache
def table():
    """Return {name: Suite}, all datasets of suites.toml."""
    text = resources.files("vit_jax.evaluators").joinpath("suites.toml").read_text("utf-8")
    suites = {}
    for name, keys in tomllib.loads(text).items():
        classes = tuple(keys.pop("classes", "").split()) or wordnet_ids()
        suites[name] = Suite(**keys, classes=classes)
    return suites


def wordnet_ids():
    """Return the WordNet IDs of the 1000 classes of ImageNet."""
    return tuple(wordnet_id for wordnet_id, *_ in class_names.table())


def check(root, names):
    """Raise UserError if a directory or a file of the suites `names` is missing below `root`."""
    missing = {}
    for name in names:
        suite = table()[name]
        required = {path: suite.download for path in _directories(suite, root)}
        if suite.label_file:
            required[os.path.join(root, suite.label_file)] = suite.label_download
        for path, download in required.items():
            if path not in missing and not os.path.exists(path):
                missing[path] = f"--suite={name}: download it from {download}"
                break
    if missing:
        lines = [f"{printable(path)} does not exist; {text}" for path, text in missing.items()]
        if len(lines) > 3:  # more lines are not shown
            others = ", ".join(map(printable, list(missing)[2:]))
            lines[2:] = [f"also missing: {others}"]
        raise UserError("\n".join(lines))


def read(suite, directory, channels):
    """Create a source for the images of a directory, labeled as positions in `suite.classes`.

    Args:
      suite: the `Suite`.
      directory: the directory that has a directory for each class.
      channels: channels of the images.

    Raises:
      UserError: if there are no images, or a directory is not named as a class of the suite.
    """
    from vit_jax.data import folder

    source = folder.read(directory, channels)
    if source.class_names == [folder.UNLABELED]:
        raise UserError(f"{printable(directory)} has no directories of classes")
    found = [_wordnet_id(name, suite.labels) for name in source.class_names]
    for name, wordnet_id in zip(source.class_names, found, strict=True):
        if wordnet_id not in suite.classes:
            kind = "class indices" if suite.labels == "index" else "WordNet IDs"
            raise UserError(
                f"{printable(os.path.join(directory, name))} is not a class of {suite.title}; "
                f"directories must be named with the {kind} of its {len(suite.classes):,} classes"
            )
    source.class_names = found
    return _slice(source, directory, suite.classes)


def _wordnet_id(name, rule):
    """Return the WordNet ID of a directory, or None if its name does not follow the rule."""
    if rule == "wordnet_id":
        return name
    # As numbers: sorted as text, the directories are 0, 1, 10, 100, ...
    index = int(name) if re.fullmatch(r"[0-9]{1,4}", name) else NUM_CLASSES
    return wordnet_ids()[index] if index < NUM_CLASSES else None


def read_listed(suite, root, channels):
    """Create a source for the images of a suite whose labels are in a JSON file.

    Images without a label are left out.

    Returns:
      source: the images; the label of an image is its position in `label_lists`.
      label_lists: the correct labels of each image, which are lists of class indices.
      skipped: number of images without a label.

    Raises:
      UserError: if there are no images, the file cannot be read, or a file name has no number.
    """
    from vit_jax.data import folder
    from vit_jax.data.sources import Files

    directory = suite.directory(root)
    paths = folder.scan(directory).paths
    listed = read_label_lists(os.path.join(root, suite.label_file))
    found = zip(paths, select_labels(paths, listed, suite), strict=True)
    counted = [(path, labels) for path, labels in found if labels]
    if not counted:
        raise UserError(f"{printable(directory)} has no images with a label in {suite.label_file}")
    names, label_lists = map(list, zip(*counted, strict=True))
    # Every image is a class of its own, so that its label is its position.
    source = Files(names, range(len(names)), names, channels, root=directory)
    return _slice(source, directory, names), label_lists, len(paths) - len(names)


def read_label_lists(path):
    """Read the labels of ImageNet-ReaL: a JSON list with a list of class indices for each image."""
    try:
        with open(path, encoding="utf-8") as file:
            lists = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{printable(path)} cannot be read: {error}") from None
    labels = [x for labels in lists for x in labels] if _is_nested_list(lists) else [None]
    if not all(isinstance(x, int) and 0 <= x < NUM_CLASSES for x in labels):
        raise UserError(
            f"{printable(path)} must be a list with a list of class indices, 0 to "
            f"{NUM_CLASSES - 1}, for each image"
        )
    return lists


def _is_nested_list(value):
    return isinstance(value, list) and all(isinstance(x, list) for x in value)


def select_labels(paths, lists, suite):
    """Return the list of labels of each file: entry N - 1 for the file name ..._N.JPEG.

    Args:
      paths: paths of images.
      lists: lists of labels in the order of the numbers in the file names.
      suite: the `Suite`, for messages.

    Raises:
      UserError: if a file name has no number, or no list has the number.
    """
    selected = []
    for path in paths:
        match = IMAGE_NUMBER.search(os.path.basename(path))
        if match is None:
            raise UserError(
                f"{printable(path)}: {suite.title} requires the original file names, such as "
                "ILSVRC2012_val_00000001.JPEG"
            )
        number = int(match[1])
        if not 1 <= number <= len(lists):
            raise UserError(
                f"{printable(path)}: {suite.label_file} has {len(lists):,} lists, but none for "
                f"number {number:,}"
            )
        selected.append(lists[number - 1])
    return selected


def _slice(source, name, class_names):
    return data.Slice(source, 0, len(source), printable(name), class_names)


def severity_directories(suite, root, corruption):
    """Return the directories of a corruption, which may be below another one, such as noise."""
    top = suite.directory(root)
    path = os.path.join(top, corruption)
    nested = sorted(glob.glob(os.path.join(glob.escape(top), "*", corruption)))
    if nested and not os.path.isdir(path):
        path = nested[0]
    return [os.path.join(path, severity) for severity in SEVERITIES]


def _directories(suite, root):
    """Return the directories of a suite: one, or one for each corruption and severity."""
    if not suite.reference or not os.path.isdir(suite.directory(root)):
        return [suite.directory(root)]
    return [path for name in suite.reference for path in severity_directories(suite, root, name)]
