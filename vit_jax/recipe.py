"""What a config may hold: checks of keys, types and values; durations; on disk and back.

Every key, with its default, is in configs/common.py; cli.py reads recipes and overrides. Imports
neither JAX nor NumPy.
"""

import difflib
import importlib
import json
import re
import sys
from math import inf, isfinite
from pathlib import Path

from ml_collections import ConfigDict

from vit_jax import log, variants

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
KINDS |= {tuple: "a list such as (1, 2)", ConfigDict: "a group of keys"}
FAMILIES = {"data.name": "data", "objective.name": "objectives", "evaluators": "evaluators"}
RANGES = {  # least and most value: the keys
    (1, inf): "batch_size accum_steps keep_checkpoints data.threads data.synthetic.images "
    "data.synthetic.classes model.image model.channels model.depth model.width model.num_heads "
    "model.mlp_dim",
    (0, inf): "seed eval_batch_size data.workers augment.pad augment.rotate augment.shear "
    "augment.mixup augment.cutmix optim.lr optim.lr_batch optim.eps optim.warmup_start optim.end "
    "optim.clip optim.weight_decay",
    (0, 1): "augment.flip augment.erase augment.mix_prob augment.mix_switch augment.shift "
    "augment.zoom objective.label_smoothing",
    (0, 0.9999999): "objective.ema optim.b1 optim.b2 optim.momentum",
    (0, 0.999): "model.drop_path model.dropout",
    (1e-6, 1): "augment.eval_crop optim.layer_decay",
    (-1, inf): "mesh.data mesh.fsdp mesh.tensor",
}


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


def check(config):
    """Raises UserError for a key, a type or a value that cannot work. See configs/common.py."""
    shared = common()
    values, known = flat(config), shared.defaults()
    members = {key: _members(folder) for key, folder in FAMILIES.items()}
    objective = values.get("objective.name", "supervised")
    _choice("objective.name", objective, members["objective.name"])
    if hasattr(shared, objective):  # the keys of an objective are the function of its name
        known.objective = getattr(shared, objective)()
    defaults = flat(known)
    for key, value in values.items():
        if key not in defaults:
            raise UserError(f"config has no key '{key}'; {near(key, defaults)}")
        kind = _kind(known, key)
        if not _fits(value, defaults[key], kind):
            like = f", such as {defaults[key]}" if defaults[key] not in (None, "") else ""
            raise UserError(f"config.{key} is {KINDS.get(kind, kind)}{like}; not {value!r}")
    if missing := [key for key in defaults if key not in values]:
        raise UserError(f"config lacks the key '{missing[0]}'; start from common.defaults()")
    for key, choices in (shared.CHOICES | members).items():
        for value in values[key] if isinstance(values[key], tuple) else [values[key]]:
            _choice(key, value, choices)
    for (least, most), keys in RANGES.items():
        for key in keys.split():
            if values.get(key) is not None and not least <= values[key] <= most:
                limits = f"at least {least}" if most == inf else f"within {least} and {most}"
                raise UserError(f"config.{key} = {values[key]} must be {limits}")
    for key, default in defaults.items():
        if isinstance(default, str) and re.fullmatch(r"[\d.]+(k|ep)?", default):
            try:
                count = steps(values[key], 1)
            except UserError as e:
                raise UserError(f"config.{key}: {e}") from None
            if not count and key in ("total_steps", "log_every", "checkpoint_every"):
                raise UserError(f"config.{key} = {values[key]} must be more than nothing")
    _check_together(config)


def _check_together(c):
    """Values that must agree with each other."""
    if c.batch_size % c.accum_steps:
        raise UserError(
            f"config.batch_size = {c.batch_size} does not divide by "
            f"config.accum_steps = {c.accum_steps}"
        )
    mesh = [c.mesh[axis] for axis in ("data", "fsdp", "tensor")]
    if 0 in mesh or mesh.count(-1) > 1:
        raise UserError(f"config.mesh = {tuple(mesh)}: each is 1 or more; -1, the rest, only once")
    for key, low in (("mean", -inf), ("std", 1e-12)):
        if len(c.data[key]) != c.model.channels or min(c.data[key]) < low:
            raise UserError(
                f"config.data.{key} = {c.data[key]} needs config.model.channels = "
                f"{c.model.channels} numbers{', all above 0' if key == 'std' else ''}"
            )
    for key, most in (("scale", 1), ("ratio", inf)):
        pair = c.augment[key]
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
            raise UserError(f"config.augment.{key} = {pair} must be two: 0 < least <= most")
    try:
        sizes = ("image", "depth", "width", "num_heads", "mlp_dim")
        variants.parse(c.model.variant, **{key: c.model[key] for key in sizes})
    except ValueError as e:
        raise UserError(f"config.model: {e}") from None


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
    folders = [beside, Path(__file__).resolve().parents[1]]
    sys.path += [str(f) for f in folders if f and str(f) not in sys.path]
    try:
        return importlib.import_module("configs.common")
    except ModuleNotFoundError as e:
        if e.name not in ("configs", "configs.common"):
            raise
        raise UserError("configs/common.py is not found; run from the folder above it") from None


def save_config(config, path):
    """Writes a ConfigDict as JSON, atomically."""
    log.write_json(path, config.to_dict())


def load_config(workdir):
    """The ConfigDict of workdir/config.json: data, never run. Lists come back as tuples."""
    path = Path(workdir) / "config.json"
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


def _fits(value, default, kind):
    """Whether a value can stand where this default, of this type, stands."""
    if value is None or default is None and kind is type(None):
        return default is None
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and isfinite(value)
    if kind is tuple and isinstance(value, tuple) and default:
        return all(_fits(v, default[0], type(default[0])) for v in value)
    return isinstance(value, kind)


def _kind(config, key):
    *groups, leaf = key.split(".")
    for group in groups:
        config = config[group]
    return config.get_type(leaf)


def _members(family):
    """The names of the modules in a folder of vit_jax."""
    return sorted(path.stem for path in (Path(__file__).parent / family).glob("[!_]*.py"))


def _choice(key, value, choices):
    if value is not None and value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"config.{key} = {value!r} must be one of {', '.join(choices)}{hint}")


def _tuples(value):
    """Lists inside anything -> tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
