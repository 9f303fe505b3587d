"""Where images come from. A member is a module of this folder with `make(split_name, config)`.

It returns a source: `len(source)`, `source[i] -> {"image": uint8 [h, w, c], "label": int}`,
`source.num_classes` and `source.class_names` (a list of str). Many threads may read a source at
once, and worker processes get a pickled copy. Slices, label checks and the cache are done here.
"""

import os
import re
from fractions import Fraction

from vit_jax.errors import UserError
from vit_jax.schema import member, members, one_of

# Modules that are no kind of data.
HELPERS = ("class_names", "decode", "idx", "pictures", "sources")

_NUMBER = r"(-?\d+|-?\d+(?:\.\d+)?%)?"
_SPLIT = re.compile(rf"([^\[\]]+)(?:\[{_NUMBER}:{_NUMBER}\])?")


def make(config, split):
    """The source that config.data describes.

    Args:
      config: the config of a run.
      split: NAME, NAME[100:] or NAME[:99%].

    Raises:
      UserError: for an unknown member, split or dataset, or an empty slice.
    """
    name, known = config.data.name, members("data")
    if name not in known:
        raise UserError(f"config.data.name = {name!r} must be {one_of(known, name)}")
    match = _SPLIT.fullmatch(split.strip())
    if not match:
        raise UserError(f"'{split}' is not a split; pass NAME, NAME[100:] or NAME[:99%]")
    source = member("data", name).make(match[1], config)
    start, stop = _bounds(match[2], match[3], len(source), split)
    return Slice(source, start, stop, split, config.data.cache)


def data_dir(config, content):
    """config.data.dir, which has to hold `content`. Raises UserError where it is not set."""
    if not config.data.dir:
        raise UserError(f"config.data.dir is empty; set it to the directory of {content}")
    return os.path.expanduser(config.data.dir)


def unknown_split(name, known):
    """The UserError of a member without the split `name`."""
    return UserError(f"no split '{name}' here; there are {', '.join(sorted(known)) or 'none'}")


class Slice:
    """Examples start to stop of a source, their labels checked against its classes.

    cache: keep the examples in memory once read. Every worker process keeps its own.
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
        # JAX would train the last class for -1, and compute NaN for num_classes.
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
    """Parse the ends of a slice: 0 <= start < stop <= size; percents round to the nearest."""

    def index(text, default):
        if text is None:
            return default
        value = round(size * Fraction(text[:-1]) / 100) if text[-1] == "%" else int(text)
        return value + size if text[0] == "-" else value

    start, stop = index(start, 0), index(stop, size)
    if not 0 <= start < stop <= size:
        raise UserError(f"'{split}' is examples {start} to {stop} of {size}: none, or out of range")
    return start, stop
