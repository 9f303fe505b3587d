"""Names of classes as people say them: those of ImageNet, in English and Korean.

data/imagenet.tsv: a line a class, in the order of its number: WordNet ID, the first word of the
synset (WordNet 3.0, Princeton University; two that are alike are told apart), and our translation.
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
    """Names of classes, those that are WordNet IDs of ImageNet's classes in English."""
    english = {wnid: name for wnid, name, _ in table()}
    return [english.get(name, name) for name in names]


def translate(names, lang):
    """English names of ImageNet's classes in another language, "ko"; others as they are."""
    if lang == "en":
        return list(names)
    korean = {english: name for _, english, name in table()}
    return [korean.get(name, name) for name in names]
