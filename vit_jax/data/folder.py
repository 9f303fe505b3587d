"""Image folders: <root>/<split>/<class>/<image>, the usual layout of an extracted ImageNet.

The split `all` is the root itself, for folders without splits: <root>/<class>/<image>. If there
are no class directories either, all images have the class "unlabeled". The order of the images is
fixed and stratified, so that slices such as all[:80%] have the classes in equal proportions.

Subdirectories of a class belong to the class. Hidden files are skipped; other files that are not
images are counted and reported.
"""

import os
from typing import NamedTuple

from vit_jax.data import data_dir, unknown_split
from vit_jax.data.decode import SUFFIXES
from vit_jax.data.sources import Files
from vit_jax.errors import UserError, printable

CONTENTS = "<split>/<class>/<image>"  # of the root directory
ALL = "all"  # name of the split that is the root directory
MIN_PERCENT_IMAGES = 20  # smaller sets hold out single images instead of 10%
UNLABELED = "unlabeled"  # class of images without class directories


class Scan(NamedTuple):
    """The images of a split.

    Attributes:
      paths: paths of the images, sorted by class and then by path.
      labels: the label of each image.
      class_names: the sorted names of the class directories, which may be empty.
      ignored: paths of other files, in the same order.
    """

    paths: list
    labels: list
    class_names: list
    ignored: list


def make(split, config):
    """Create a source for one split of the directory config.data.dir.

    Classes are the sorted names of the class directories. The split "validation" is read from the
    directory "val" if there is no directory "validation".

    Raises:
      UserError: if the directory or the split is missing or has no images, or if it is the training
        split and a class has no images.
    """
    directory = split_directory(data_dir(config, CONTENTS), split)
    source = read(directory, config.model.channels)
    if config.data.train.partition("[")[0] == split:
        check_complete(source)
    return source


def check_complete(source):
    """Raise UserError if a class of a training split, as returned by `read`, has no images."""
    empty = sorted(set(range(len(source.class_names))) - set(source.labels.tolist()))
    if empty:
        path = os.path.join(source.root, source.class_names[empty[0]])
        more = f" and {len(empty) - 1} more directories" if len(empty) > 1 else ""
        verb = "have" if more else "has"
        raise UserError(
            f"{printable(path)}{more} {verb} no images; add images or remove the directory"
        )


def read(directory, channels=3):
    """Create a source for the images below the class directories of a split.

    Raises:
      UserError: if there are no images.
    """
    found = scan(directory)
    notes = [f"{printable(directory)}: {note}" for note in _ignored_note(found)]
    if not found.paths:
        raise UserError(f"{printable(directory)} has no images" + "".join(f"; {n}" for n in notes))
    source = Files(*found[:3], channels, root=directory)
    source.notes = notes
    return source


def class_names(split, config):
    """Return the names of the classes of a split, without listing its images."""
    return _directories(split_directory(data_dir(config, CONTENTS), split)) or [UNLABELED]


def splits(root):
    """Return the names of the splits in `root`. Raises UserError if it is not a directory."""
    if not os.path.isdir(root):
        raise UserError(f"{printable(root)} is not a directory")
    return _directories(root)


def choose_splits(root):
    """Choose a training, validation and test split from the directories that exist.

    Directories named train, val and test, or similar, are used as they are. If some are missing,
    their images are taken from another one: 10% of the training split for validation, at least one
    image, and for the test split the validation directory or else another 10%. Without such
    directories, the root is split in the same way. Directories without class directories, such as
    unlabeled test sets, count as missing.

    Args:
      root: the root directory.

    Returns:
      {"train", "val", "test": value for the key of config.data}

    Raises:
      UserError: if the root is not a directory, has a validation or test directory but no training
        directory, or has too few images.
    """
    available = splits(root)

    def find(*names):
        matches = [x for x in available if x.lower() in names]
        return next((x for x in matches if _directories(os.path.join(root, x))), None)

    train = find("train", "training")
    val = find("val", "valid", "validation", "dev")
    test = find("test", "testing")
    if train and val and test:
        return {"train": train, "val": val, "test": test}
    if not train and (val or test):
        raise UserError(
            f"{printable(root)} has a directory {val or test}, but no directory train with one "
            "directory per class"
        )
    train = train or ALL
    directory = split_directory(root, train)
    count = len(scan(directory).paths)
    if count < 4:
        raise UserError(
            f"{printable(directory)} has only {count} images; add images, or set "
            "config.data.train, val and test"
        )
    # As percentages, unless these would leave a split without images.
    bounds = ("80%", "90%") if count >= MIN_PERCENT_IMAGES else ("-2", "-1")
    last = f"{train}[{bounds[1]}:]"
    if test or val:
        return {"train": f"{train}[:{bounds[1]}]", "val": last, "test": test or val}
    return {
        "train": f"{train}[:{bounds[0]}]",
        "val": f"{train}[{bounds[0]}:{bounds[1]}]",
        "test": last,
    }


def split_directory(root, split):
    """Return the directory of a split. Raises UserError if it does not exist."""
    available = splits(root)
    if split == ALL and ALL not in available:
        return root
    if split == "validation" and split not in available:
        split = "val"
    if split not in available:
        error = unknown_split(split, map(printable, available))
        raise UserError(
            f"{error}. If {printable(root)} has no splits, use all[:80%], all[80%:90%] and "
            "all[90%:], or configs/own_images.py"
        )
    return os.path.join(root, split)


def scan(directory):
    """List the images below the class directories of a split, as a `Scan`."""
    names = _directories(directory)
    images, ignored = [], []
    for label, name in enumerate(names):
        for entry in _files(os.path.join(directory, name), (os.path.realpath(directory),)):
            if _is_image(entry):
                images.append((entry.path, label))
            else:
                ignored.append(entry.path)
    loose = [entry for entry in _entries(directory) if not _is_directory(entry)]
    if names:  # images next to class directories have no class
        ignored += [entry.path for entry in loose]
    else:
        names = [UNLABELED]
        images = [(entry.path, 0) for entry in loose if _is_image(entry)]
        ignored = [entry.path for entry in loose if not _is_image(entry)]
    return Scan([path for path, _ in images], [label for _, label in images], names, ignored)


def images(directory):
    """Return the paths of all images below a directory, sorted; without hidden files."""
    return sorted(entry.path for entry in _files(directory, ()) if _is_image(entry))


def _ignored_note(found):
    """Return a list with one line about the files that are not used, or without."""
    if not found.ignored:
        return []
    count = len(found.ignored)
    files = "1 file is" if count == 1 else f"{count:,} files are"
    example = printable(os.path.basename(found.ignored[0]))
    return [
        f"{files} not used, such as {example}; images must be regular files in class directories "
        f"and have one of the suffixes {' '.join(SUFFIXES)}"
    ]


def _directories(folder):
    return [entry.name for entry in _entries(folder) if _is_directory(entry)]


def _is_directory(entry):
    """Return whether an `os.DirEntry` is a directory; a loop of symbolic links is none."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _is_image(entry):
    """Return whether an `os.DirEntry` is named as an image, and not a pipe, socket or device.

    A broken symbolic link counts as an image, so that reading it reports an error.
    """
    if not entry.name.lower().endswith(SUFFIXES):
        return False
    is_file = entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)
    return is_file or not os.path.exists(entry.path)


def _files(folder, above):
    """Yield the files below a directory as `os.DirEntry`, sorted; `above` are its real parents."""
    identity = os.path.realpath(folder)
    if identity in above:  # a symbolic link to a parent directory
        return
    for entry in _entries(folder):
        if _is_directory(entry):
            yield from _files(entry.path, (*above, identity))
        else:
            yield entry


def _entries(folder):
    """Return the entries of a directory, sorted by name, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
