"""What a config may hold: checks of keys, types and values; durations; on disk and back.

Every key, with its default, is in configs/common.py; cli.py reads recipes and overrides. Imports
neither JAX nor NumPy.
"""

import difflib
import importlib
import json
import re
import sys
from pathlib import Path

from ml_collections import ConfigDict

from vit_jax import folders

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
KINDS |= {tuple: "a list such as (1, 2)", ConfigDict: "a group of keys"}


class UserError(ValueError):
    """The user's mistake, in one or two plain lines: cause and remedy. Exit code 2."""


def steps(duration, steps_per_epoch):
    """ "1000", "1e3", "10k", "3ep" -> optimizer steps, int; at least 1 unless it is nothing.

    steps_per_epoch: optimizer steps a pass over the training split takes, may be fractional.
    Raises UserError.
    """
    pattern = r"(\d+\.?\d*(?:e\+?\d+)?|\.\d+)(k|ep)?"
    match = re.fullmatch(pattern, duration.strip()) if isinstance(duration, str) else None
    if match is None:
        raise UserError(f'{duration!r} is no duration; say "1000", "10k" or "1e3" steps or "3ep"')
    amount = float(match[1])
    if match[2] == "ep":
        return max(round(amount * steps_per_epoch), 1) if amount else 0
    amount *= 1000 if match[2] else 1
    if not amount.is_integer():
        raise UserError(f'"{duration}" is not a whole number of steps; epochs are written "3ep"')
    return int(amount)


def rand_augment(text):
    """ "rand-m9-mstd0.5-inc1" -> {"magnitude", "std", "layers", "p"}, as timm reads it; "" -> None.

    m: magnitude, 0 to 10; mstd: standard deviation of it; n: operations an image; p: probability
    of each; inc1: the operations that grow with the magnitude, the only ones here.
    "big_vision-n2-m10", there randaug(2,10) -> {"magnitude", "layers"}; m to 30. Raises UserError.
    """
    if not text:
        return None
    values = {"m": 10.0, "mstd": 0.0, "n": 2.0, "p": 0.5, "inc": 0.0}  # timm's defaults
    kind, *parts = text.split("-")
    names, most = ("mstd|inc|m|n|p", 10) if kind == "rand" else ("m|n", 30)
    matches = [re.fullmatch(rf"({names})(\d+(?:\.\d+)?)", part) for part in parts]
    if all(matches):
        values |= {match[1]: float(match[2]) for match in matches}
    fits = values["m"] <= most and values["p"] <= 1 and values["n"] >= 1
    fits = fits and kind in ("rand", "big_vision") and (values["inc"] == 1) == (kind == "rand")
    if not all(matches) or not fits or not values["n"].is_integer():
        raise UserError(
            f"config.augment.randaugment = '{text}' must be like rand-m9-mstd0.5-inc1: m at most "
            "10, n at least 1, p at most 1, and inc1; or like big_vision-n2-m10, m at most 30"
        )
    if kind == "big_vision":
        return {"magnitude": values["m"], "layers": int(values["n"])}
    magnitude, std, layers, p = (values[key] for key in ("m", "mstd", "n", "p"))
    return {"magnitude": magnitude, "std": std, "layers": int(layers), "p": p}


def line(e):
    """An exception of somebody else's code in one plain line."""
    text = " ".join(str(e).split())
    cast = re.match(r"Could not override field '(\w+)'.*?\. (.*) is of original type", text)
    if cast:
        kind = re.search(r"to type <class '(?:.*\.)?(\w+)'>$", text)
        kind = {k.__name__: v for k, v in KINDS.items()}.get(kind and kind[1], "of another type")
        quotes = '; put it in quotes, "100" or "3ep" where it is a duration' * (kind == KINDS[str])
        return f"'{cast[1]}' is {kind}, not {cast[2]}{quotes}"
    if isinstance(e, SyntaxError):
        return f"{e.msg}: {(e.text or '').strip()}"
    if isinstance(e, (AttributeError, KeyError)):
        text = text.replace('"', "").strip("'")
        return f"there is no '{text}'" if re.fullmatch(r"\w+", text) else text
    return (text if isinstance(e, ValueError) else f"{type(e).__name__}: {text}")[:300]


def near(key, keys):
    """A suggestion for a key that is not there."""
    leaf = key.rsplit(".", 1)[-1]
    close = [k for k in keys if k.rsplit(".", 1)[-1] == leaf]
    close = close or difflib.get_close_matches(key, keys, 1)
    leaves = {k.rsplit(".", 1)[-1]: k for k in keys}
    close = close or [leaves[k] for k in difflib.get_close_matches(leaf, leaves, 1)]
    return f"did you mean {close[0]}?" if close else "configs/common.py lists the keys"


def flat(config, prefix=""):
    """{"optim.lr": 0.001, ...}; a placeholder without a value is None."""
    values = {}
    for key, value in config.items():
        inside = isinstance(value, ConfigDict)
        values |= flat(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return values


def common(beside=None):
    """The module configs/common.py: importable as it is, else beside the recipe, else beside us.

    beside: the folder above the recipe's. Raises UserError.
    """
    roots = [beside, Path(__file__).resolve().parents[1]]
    sys.path += [str(f) for f in roots if f and str(f) not in sys.path]
    try:
        return importlib.import_module("configs.common")
    except ModuleNotFoundError as e:
        if e.name not in ("configs", "configs.common"):
            raise
        raise UserError("configs/common.py is not found; run from the folder above it") from None


def save_config(config, path):
    """Writes a ConfigDict as JSON, atomically."""
    folders.write_json(path, config.to_dict())


def load_config(workdir):
    """The ConfigDict of workdir/config.json: data, never run. Lists come back as tuples."""
    path = folders.place(workdir) / "config.json"
    try:
        return ConfigDict(_tuples(json.loads(path.read_text())))
    except FileNotFoundError:
        raise UserError(f"{workdir} is no workdir of a run: {path} is not there") from None
    except (OSError, TypeError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {line(e)}") from None


def config_diff(old, new):
    """The keys in which two configs differ: ["optim.lr: 0.001 -> 0.002", ...]."""
    old, new = _tuples(flat(old)), _tuples(flat(new))
    pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in old | new}
    return [f"{key}: {a} -> {b}" for key, (a, b) in pairs.items() if a != b]


def _tuples(value):
    """Lists inside anything -> tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
