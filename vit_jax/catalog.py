"""timm's published models: options of the architectures, preprocessing of the weights.

The data are in pretrained/catalog.json, which `python -m experiments.catalog` writes. Imports no
JAX. The file is only read when a name is looked up.
"""

import functools
import json
from pathlib import Path


def architecture(name):
    """Return the options of `ViTConfig` of a timm name, with or without a tag.

    Returns:
      A dict with the options that differ from their defaults; None: unknown.
    """
    return _read()["architectures"].get(name.partition(".")[0])


def weights(name):
    """Return the rows of weights by timm's name: one with a tag, else all of the architecture.

    Returns:
      {full name: {"image", "mean", "std", "interpolation", "crop", "crop_mode", "num_classes"}},
      and "hub", "top1" and "knn" where known.
    """
    rows = _read()["weights"]
    if "." in name:
        return {name: rows[name]} if name in rows else {}
    return {key: row for key, row in rows.items() if key.partition(".")[0] == name}


def hub_name(repository):
    """Return timm's name of the weights in a repository of the Hugging Face Hub, or None."""
    rows = _read()["weights"]
    return next((name for name, row in rows.items() if row.get("hub") == repository), None)


def names(weights=True):
    """Return the names of the architectures and, with `weights`, those with a tag too."""
    data = _read()
    return [*data["architectures"], *(data["weights"] if weights else ())]


@functools.cache
def _read():
    path = Path(__file__).parent / "pretrained" / "catalog.json"
    return json.loads(path.read_text(encoding="utf-8"))
