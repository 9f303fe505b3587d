"""The config.json next to a weight file, of timm, transformers or this project. Imports no JAX."""

import math
from pathlib import Path
from typing import NamedTuple

from vit_jax.errors import UserError, printable
from vit_jax.workdir import storage

MAX_CARD_BYTES = 8 << 20  # of a config.json; with 21,843 class names, it has about 2 MB
MAX_SHOWN = 200  # characters of a value in a message


class View(NamedTuple):
    """How weights expect images, with attributes as those of `inference.LoadedModel`."""

    mean: tuple
    std: tuple
    crop: float
    interpolation: str = "bicubic"
    crop_mode: str = "center"


class Card(NamedTuple):
    """The config.json next to a weight file, as timm or Hugging Face's transformers write it.

    Attributes:
      path: the file.
      name: timm's name with the tag, such as "vit_small_patch16_224.dino"; "" from transformers.
      options: options of `ViTConfig` that the file states.
      preprocessing: a `View`, or None.
      class_names: names of the classes, or None.
      notes: what differs from the preprocessing here, as texts.
    """

    path: Path
    name: str
    options: dict
    preprocessing: View | None
    class_names: list | None
    notes: tuple


def read(path):
    """Read a JSON file; {} if it does not exist or is not an object.

    Raises:
      UserError: if it is not JSON or too large.
    """
    try:
        value = storage.parse_json(storage.read_bytes(path, MAX_CARD_BYTES))
    except FileNotFoundError:
        return {}
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {shown(error)}; correct or remove it") from None
    return value if isinstance(value, dict) else {}


def shown(value):
    """Return a value or an error as one line of limited length."""
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def typed(cfg, key, kind, *default):
    """Return a value of a type in config.json; a missing value or null is the default, if any."""
    value = cfg.get(key)
    if default and value is None:
        return default[0]
    if not isinstance(value, kind):
        kinds = {dict: "an object", list: "a list", str: "a string"}
        raise UserError(f"{key} must be {kinds[kind]}; got {value!r}")
    return value


def numbers(cfg, key):
    """Return a list of numbers in config.json as a tuple of floats."""
    return tuple(number({key: x}, key) for x in typed(cfg, key, list))


def number(cfg, key):
    """Return a number in config.json as a float."""
    value = cfg.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{key} must be a number; got {value!r}")
    return float(value)
