"""Data sources. To add one, add a module to this package with `make(split, config) -> source`.

A source supports random access. It has `len(source)`,
`source[i] -> {"image": uint8 [h, w, c], "label": int}`, `source.num_classes` and
`source.class_names` (a list of str). Sources must be thread-safe and picklable: threads share one
source, and each worker process receives a pickled copy. Slicing, label checks and caching are
implemented here, for all sources.
"""

import os
import re
from fractions import Fraction

from vit_jax.errors import UserError
from vit_jax.schema import member, members, one_of

# Modules of this package that are not data sources.
NON_MEMBERS = ("class_names", "decode", "idx", "pictures", "sources")

_BOUND = r"(-?\d+|-?\d+(?:\.\d+)?%)?"
_SPLIT = re.compile(rf"([^\[\]]+)(?:\[{_BOUND}:{_BOUND}\])?")


def make(config, split):
    """Create the source described by config.data.

    Args:
      config: the run's config.
      split: NAME, NAME[100:] or NAME[:99%].

    Returns:
      A `Slice` of the source.

    Raises:
      UserError: if the source, split or dataset is unknown, or if the slice is empty.
    """
    name, available = config.data.name, members("data")
    if name not in available:
        raise UserError(f"config.data.name = {name!r} must be {one_of(available, name)}")
    match = _SPLIT.fullmatch(split.strip())
    if not match:
        raise UserError(f"invalid split '{split}'; use NAME, NAME[100:] or NAME[:99%]")
    source = member("data", name).make(match[1], config)
    start, stop = _bounds(match[2], match[3], len(source), split)
    return Slice(source, start, stop, split, config.data.cache)


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
    """Examples [start, stop) of a source. Raises UserError for labels that are out of range.

    Args:
      source: the source to slice.
      start: index of the first example.
      stop: index after the last example.
      name: name of the split, for error messages.
      cache: whether to keep examples in memory once they are read. Each worker process has a
        separate cache.
    """

    def __init__(self, source, start, stop, name, cache=False):
        self.source = source
        self.start = start
        self.stop = stop
        self.name = name
        self.cache = cache
        self.examples = {}
        self.num_classes = source.num_classes
        self.class_names = source.class_names

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, i):
        if i in self.examples:
            return self.examples[i]
        if not 0 <= i < len(self):
            raise IndexError(i)
        example = self.source[self.start + i]
        # JAX would silently treat label -1 as the last class, and return NaN for num_classes.
        if not 0 <= example["label"] < self.num_classes:
            raise UserError(
                f"example {i} of {self.name} has label {example['label']}, but there are "
                f"{self.num_classes} classes: labels must be 0 to {self.num_classes - 1}"
            )
        if self.cache:
            self.examples[i] = example
        return example

    def __getstate__(self):
        return self.__dict__ | {"examples": {}}


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
