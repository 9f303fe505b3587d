"""Where images come from. A member is a module of this folder with `make(split_name, config)`.

It returns a source: `len(source)`, `source[i] -> {"image": uint8 [h, w, c], "label": int}`,
`source.num_classes` and `source.class_names` (a list of str). A source may be read by many threads
at once and is pickled to worker processes. Slices, label checks and the cache are done here, once.
"""

import re
from fractions import Fraction

from vit_jax.errors import UserError
from vit_jax.schema import member, members, one_of

HELPERS = ("class_names", "decode", "pictures")  # modules here that are no kind of data

_NUMBER = r"(-?\d+|-?\d+(?:\.\d+)?%)?"
_SPLIT = re.compile(rf"([^\[\]]+)(?:\[{_NUMBER}:{_NUMBER}\])?")


def make(config, split):
    """The source that config.data describes, for a split such as "train" or "train[:99%]".

    Raises UserError for an unknown member, split or data set, or an empty slice.
    """
    name, known = config.data.name, members("data")
    if name not in known:
        raise UserError(f"config.data.name = {name!r} must be {one_of(known, name)}")
    match = _SPLIT.fullmatch(split.strip())
    if not match:
        raise UserError(f"'{split}' is not a split; pass NAME, NAME[100:] or NAME[:99%]")
    source = member("data", name).make(match[1], config)
    start, stop = _bounds(match[2], match[3], len(source), split)
    source = Slice(source, start, stop, split)
    return Cached(source) if config.data.cache else source


def unknown_split(name, known):
    """The UserError of members that have no split `name`, only `known`."""
    return UserError(f"no split '{name}' here; there are {', '.join(sorted(known))}")


class Slice:
    """Examples start to stop of a source, their labels checked against its classes."""

    def __init__(self, source, start, stop, name):
        self.source, self.start, self.stop, self.name = source, start, stop, name
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, i):
        if not 0 <= i < self.stop - self.start:
            raise IndexError(i)
        example = self.source[self.start + i]
        # -1 would train the last class without a word; num_classes would be a NaN.
        if not 0 <= example["label"] < self.num_classes:
            raise UserError(
                f"example {i} of {self.name} has label {example['label']}, but there are "
                f"{self.num_classes} classes: labels must be 0 to {self.num_classes - 1}"
            )
        return example


class Cached:
    """A source whose examples stay in memory once read. Every worker process keeps its own."""

    def __init__(self, source):
        self.source, self.examples = source, {}
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        example = self.examples.get(i)
        if example is None:
            example = self.examples[i] = self.source[i]
        return example

    def __getstate__(self):
        return self.__dict__ | {"examples": {}}


def _bounds(start, stop, size, split):
    """Text of both ends -> 0 <= start < stop <= size. Percents round to the nearest example."""

    def index(text, default):
        if text is None:
            return default
        value = round(size * Fraction(text[:-1]) / 100) if text[-1] == "%" else int(text)
        return value + size if text[0] == "-" else value

    start, stop = index(start, 0), index(stop, size)
    if not 0 <= start < stop <= size:
        raise UserError(f"'{split}' is examples {start} to {stop} of {size}: none, or out of range")
    return start, stop
