"""ImageNet class names in English and Korean.

data/imagenet.tsv has one line per class, in label order: the WordNet ID, the first word of the
synset (WordNet 3.0, Princeton University; made unique where two classes share it), and a Korean
translation by this project.
"""

import functools
from importlib import resources


@functools.cache
def table():
    """Return the 1000 rows (WordNet ID, English, Korean)."""
    text = resources.files("vit_jax.data").joinpath("imagenet.tsv").read_text("utf-8")
    return tuple(tuple(line.split("\t")) for line in text.splitlines())


def imagenet():
    """Return the 1000 English names."""
    return [english for _, english, _ in table()]


def readable(names):
    """Replace WordNet IDs with the English ImageNet names; keep other names unchanged."""
    english = {wnid: name for wnid, name, _ in table()}
    return [english.get(name, name) for name in names]


def translate(names, lang):
    """Translate English ImageNet names to `lang`, "en" or "ko"; keep other names unchanged."""
    if lang == "en":
        return list(names)
    korean = {english: name for _, english, name in table()}
    return [korean.get(name, name) for name in names]
