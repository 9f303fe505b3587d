"""Data sources. To add one, add a module to this package with `make(split, config) -> source`.

A source supports random access. It has `len(source)`,
`source[i] -> {"image": uint8 [h, w, c], "label": int}`, `source.class_names` (a list of str) and
`source.fingerprint()`, a string that changes if the examples change. Sources must be thread-safe
and picklable: threads share one source, and each worker process receives a pickled copy. Optional:

* `source.labels`: the label of every example, if they are known without reading the examples.
* `source.order`: description of the order of the examples, for slices.
* `source.name(i)`: name of the file of example i.
* `source.in_memory`: True if the source holds decoded images.
* `source.notes`: lines of text that a user should see, such as the number of ignored files.
* a function `class_names(split, config)` in the module, if splits may differ in their classes.

Slicing, the mapping of labels to the classes of the run, label checks, caching and the replacement
of unreadable images are implemented here, for all sources.
"""

import collections
import hashlib
import operator
import os
import random
import re
import sys
import unicodedata
from fractions import Fraction

from vit_jax.errors import DecodeError, UserError
from vit_jax.schema import member, members, one_of

# Modules of this package that are not data sources.
NON_MEMBERS = ("class_names", "decode", "idx", "pictures", "sources")

MAX_LISTED = 10  # class names in a message
MAX_REPLACEMENTS = 20  # attempts to replace an unreadable image
MAX_WARNINGS = 20  # about unreadable images of a split
_BOUND = r"(-?\d+|-?\d+(?:\.\d+)?%)?"
_SPLIT = re.compile(rf"([^\[\]]+)(?:\[{_BOUND}:{_BOUND}\])?")


def make(config, split):
    """Create the source described by config.data, with labels as indices into the run's classes.

    The classes of a run are config.data.class_names or, if empty, those of the training split. The
    classes of other splits are matched by name.

    Args:
      config: the run's config.
      split: NAME, NAME[100:] or NAME[:99%].

    Returns:
      A `Slice` of the source.

    Raises:
      UserError: if the source, split or dataset is unknown, the slice is empty, or the split has a
        class that the run does not have.
    """
    return _slice(config, split, {})


def splits(config):
    """Create the training, validation and test split of a run.

    Returns:
      {"train": `Slice`, "val": `Slice`, "test": `Slice`}

    Raises:
      UserError: as in `make`. The message names the config key.
    """
    opened = {}
    result = {}
    for key in ("train", "val", "test"):
        try:
            result[key] = _slice(config, config.data[key], opened)
        except UserError as error:
            raise UserError(f"config.data.{key} = '{config.data[key]}': {error}") from None
    return result


def steps_per_epoch(config, source):
    """Return the number of optimizer steps per epoch of a training split, which may be fractional.

    With repeated augmentation, it is rounded down, as in DeiT, whose data loader drops the
    incomplete batch of an epoch.
    """
    size, batch_size = len(source), config.batch_size
    return size // batch_size if config.augment.repeats > 1 else size / batch_size


def _slice(config, split, opened):
    """Create a `Slice`. `opened` holds the sources that are already open, by the split's NAME."""
    module, name, bounds = _parse(config, split)
    if name not in opened:
        opened[name] = module.make(name, config)
    source = opened[name]
    class_names = list(config.data.class_names) or source.class_names
    if not config.data.class_names and hasattr(module, "class_names"):
        _, train, _ = _parse(config, config.data.train)
        class_names = source.class_names if name == train else module.class_names(train, config)
    start, stop = _bounds(*bounds, len(source), split)
    data = config.data
    return Slice(source, start, stop, split, class_names, cache=data.cache, on_error=data.on_error)


def _parse(config, split):
    """Return the module of the source, the NAME of a split, and the two bounds of its slice."""
    name, available = config.data.name, members("data")
    if name not in available:
        raise UserError(f"config.data.name = {name!r} must be {one_of(available, name)}")
    match = _SPLIT.fullmatch(split.strip())
    if not match:
        raise UserError(f"invalid split '{split}'; use NAME, NAME[100:] or NAME[:99%]")
    return member("data", name), match[1], match.group(2, 3)


def match_classes(names, class_names, where):
    """Match the classes of a split with those of a run, by Unicode-normalized name (NFC).

    Args:
      names: names of the split's classes.
      class_names: names of the run's classes.
      where: description of the split, for the error message.

    Returns:
      The index in `class_names` of each of `names`.

    Raises:
      UserError: if a name is not in `class_names`, or if two names are equal after normalization.
    """
    position = {}
    for own, group in ((False, class_names), (True, names)):
        normalized = [unicodedata.normalize("NFC", name) for name in group]
        if repeated := [n for n, count in collections.Counter(normalized).items() if count > 1]:
            raise UserError(
                f"{where if own else 'the training split'} has two classes with the name "
                f"{repeated[0]!r}; rename one of them"
            )
        position = position if own else {name: i for i, name in enumerate(normalized)}
    if unknown := [
        name for name, key in zip(names, normalized, strict=True) if key not in position
    ]:
        raise UserError(
            f"{where} has classes that the training split does not have: {_listing(unknown)}. "
            f"The classes of the training split are {_listing(class_names)}; rename or remove the "
            "others"
        )
    return [position[name] for name in normalized]


def _listing(names):
    shown = ", ".join(map(repr, names[:MAX_LISTED]))
    return f"{shown} and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else shown


def data_dir(config, content):
    """Return config.data.dir with `~` expanded.

    Args:
      config: the run's config.
      content: description of the expected contents, for the error message.

    Raises:
      UserError: if config.data.dir is not set.
    """
    if not config.data.dir:
        raise UserError(f"config.data.dir is empty; set it to the directory that holds {content}")
    return os.path.expanduser(config.data.dir)


def unknown_split(name, available):
    """Return the UserError for a split that the source does not have."""
    names = ", ".join(sorted(available)) or "none"
    return UserError(f"unknown split '{name}'; available splits: {names}")


class Slice:
    """Examples [start, stop) of a source, with labels as indices into the classes of a run.

    Raises UserError for labels that are out of range.

    Args:
      source: the source to slice.
      start: index of the first example.
      stop: index after the last example.
      name: name of the split, for error messages.
      class_names: names of the run's classes; None: those of the source.
      cache: whether to keep examples in memory once they are read. Each worker process has a
        separate cache.
      on_error: what to do with an image that cannot be decoded: "raise" the error, or "skip" it and
        return another image of the split in its place, always the same one.

    Attributes:
      notes: lines of text that a user should see.
      replaced: error messages of the images that were replaced, by index; see `report`.

    Raises:
      UserError: if the source has a class that is not in `class_names`.
    """

    def __init__(
        self, source, start, stop, name, class_names=None, *, cache=False, on_error="raise"
    ):
        self.source = source
        self.start = start
        self.stop = stop
        self.name = name
        self.cache = cache
        self.on_error = on_error
        self.examples = {}
        self.replaced = {}
        own_names = list(source.class_names)
        self.class_names = list(class_names or own_names)
        self.num_classes = len(self.class_names)
        self.index = match_classes(own_names, self.class_names, name)
        self.notes = [*getattr(source, "notes", ()), *self._missing_classes()]

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, i):
        i = operator.index(i)  # the seed of random.Random must not be a NumPy integer
        if not 0 <= i < len(self):
            raise IndexError(i)
        if i in self.examples:
            return self.examples[i]
        example = self._read(i)
        if self.cache:
            self.examples[i] = example
        return example

    def __getstate__(self):
        return self.__dict__ | {"examples": {}}

    @property
    def labels(self):
        """The labels of all examples [n], or None if they are not known without reading."""
        import numpy as np

        labels = getattr(self.source, "labels", None)
        if labels is None:
            return None
        labels = np.asarray(labels[self.start : self.stop])
        for i in np.flatnonzero((labels < 0) | (labels >= len(self.index)))[:1]:
            self._label(i, labels[i])  # raises
        return np.asarray(self.index)[labels]

    @property
    def in_memory(self):
        """Whether decoded examples are in memory, at the latest after the first epoch."""
        return self.cache or getattr(self.source, "in_memory", False)

    def example_name(self, i):
        """Return the name of example i: that of its file if the source knows it, or its number."""
        number = self.start + i
        return self.source.name(number) if hasattr(self.source, "name") else str(number)

    def fingerprint(self):
        """Return a string that changes if the examples or their labels change."""
        facts = (self.source.fingerprint(), self.start, self.stop, self.class_names, self.index)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def read_labels(self):
        """Return the labels of all examples, int [n], reading the examples if necessary."""
        labels = self.labels
        if labels is None:
            labels = [self._label(i, self.source.label(self.start + i)) for i in range(len(self))]
        return labels

    def report(self, i):
        """Print a warning that image i was replaced, once per image."""
        if i in self.replaced:
            return
        try:
            self.source[self.start + i]
        except DecodeError as error:
            self.replaced[i] = str(error)
            if len(self.replaced) <= MAX_WARNINGS:
                print(f"warning: {error}; using another image of {self.name}", file=sys.stderr)

    def _read(self, i):
        """Read example i. If it was replaced by another one, the key "replaced" is i."""
        rng = random.Random(i)
        candidate = i
        for _ in range(MAX_REPLACEMENTS):
            try:
                example = self.source[self.start + candidate]
            except DecodeError:
                if self.on_error == "raise":
                    raise
                candidate = rng.randrange(len(self))
                continue
            example["label"] = self._label(candidate, example["label"])
            return example | ({"replaced": i} if candidate != i else {})
        raise UserError(f"{self.name}: {MAX_REPLACEMENTS} images in a row cannot be read")

    def _label(self, i, label):
        # JAX would silently treat label -1 as the last class, and return NaN for num_classes.
        if not 0 <= label < len(self.index):
            raise UserError(
                f"example {i} of {self.name} has label {label}, but there are {len(self.index)} "
                f"classes: labels must be 0 to {len(self.index) - 1}"
            )
        return self.index[label]

    def _missing_classes(self):
        labels = self.labels
        present = set(self.index) if labels is None else set(labels.tolist())
        missing = [name for i, name in enumerate(self.class_names) if i not in present]
        if not missing:
            return []
        count = f"{len(missing)} of {self.num_classes} classes"
        return [f"{self.name} has no images of {count}: {_listing(missing)}"]


def _bounds(start, stop, size, split):
    """Parse the bounds of a slice. Percentages are rounded to the nearest example.

    Returns:
      start, stop with 0 <= start < stop <= size.

    Raises:
      UserError: if the slice is empty or out of range.
    """

    def index(text, default):
        if text is None:
            return default
        value = round(size * Fraction(text[:-1]) / 100) if text[-1] == "%" else int(text)
        return value + size if text[0] == "-" else value

    start, stop = index(start, 0), index(stop, size)
    if not 0 <= start < stop <= size:
        raise UserError(
            f"split '{split}' selects examples {start} to {stop} of {size}: empty or out of range"
        )
    return start, stop
