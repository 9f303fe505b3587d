"""Readable class names: those of ImageNet, in English and Korean.

data/imagenet.tsv has a line per class, in order: WordNet ID, the first word of the synset (WordNet
3.0, Princeton University; made unique where two are equal), and our translation.
"""

import functools
from importlib import resources


@functools.cache
def table():
    """The 1000 rows (WordNet ID, English, Korean)."""
    text = resources.files("vit_jax.data").joinpath("imagenet.tsv").read_text("utf-8")
    return tuple(tuple(line.split("\t")) for line in text.splitlines())


def imagenet():
    """The 1000 English names."""
    return [english for _, english, _ in table()]


def readable(names):
    """Class names, with the English names of ImageNet in place of WordNet IDs."""
    english = {wnid: name for wnid, name, _ in table()}
    return [english.get(name, name) for name in names]


def translate(names, lang):
    """Translate the English names of ImageNet's classes to "ko"; other names stay as they are."""
    if lang == "en":
        return list(names)
    korean = {english: name for _, english, name in table()}
    return [korean.get(name, name) for name in names]
