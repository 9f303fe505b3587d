"""Whether a config can work: its keys, types and values, before anything slow is imported."""

import difflib
import re
from math import inf, isfinite
from pathlib import Path

from vit_jax import variants
from vit_jax.recipe import KINDS, UserError, common, flat, near, rand_augment, steps

FAMILIES = {"data.name": "data", "objective.name": "objectives", "evaluators": "evaluators"}
RANGES = {  # least and most value: the keys
    (1, inf): "batch_size accum_steps keep_checkpoints data.threads data.synthetic.images "
    "data.synthetic.classes model.image model.channels model.depth model.width model.num_heads "
    "model.mlp_dim augment.local_size augment.repeats objective.out_dim objective.hidden_dim "
    "objective.bottleneck_dim",
    (0, inf): "seed eval_batch_size data.workers model.num_classes augment.local_views augment.pad "
    "augment.rotate augment.shear augment.mixup augment.cutmix optim.lr "
    "optim.lr_batch optim.eps optim.warmup_start optim.end optim.clip optim.weight_decay "
    "optim.weight_decay_end",
    (0, 1): "augment.flip augment.erase augment.mix_prob augment.mix_switch augment.shift "
    "augment.zoom augment.jitter_prob augment.grey objective.label_smoothing objective.momentum "
    "objective.center_momentum",
    (0, 0.9999999): "objective.ema optim.b1 optim.b2 optim.momentum",
    (0, 0.999): "model.drop_path model.dropout",
    (1e-6, inf): "objective.student_temp objective.teacher_temp objective.warmup_teacher_temp",
    (1e-6, 1): "augment.eval_crop optim.layer_decay",
    (-1, inf): "mesh.data mesh.fsdp mesh.tensor",
}


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
    for key, most in (("scale", 1), ("local_scale", 1), ("ratio", inf)):
        pair = c.augment[key]
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
            raise UserError(f"config.augment.{key} = {pair} must be two: 0 < least <= most")
    for key, count in (("jitter", 4), ("blur", 3), ("solarize", 3)):
        values = c.augment[key]
        if len(values) != count or not 0 <= min(values) <= max(values) <= 1:
            raise UserError(f"config.augment.{key} = {values} must be {count} numbers from 0 to 1")
    if rand_augment(c.augment.randaugment) and c.augment.crop == "multi":
        raise UserError("config.augment.randaugment does not go with augment.crop = 'multi'")
    _check_objective(c)
    try:
        names = ("image", "depth", "width", "num_heads", "mlp_dim")
        sizes = variants.of_config(c.model.variant, **{name: c.model[name] for name in names})
    except ValueError as e:
        raise UserError(f"config.model: {e}") from None
    if variants.is_cnn(c.model.variant):
        return _check_cnn(c)
    a = c.augment
    if a.crop == "multi" and a.local_views and a.local_size % sizes["patch"]:
        raise UserError(
            f"config.augment.local_size = {a.local_size} does not divide into patches of "
            f"{sizes['patch']} pixels"
        )


def _check_cnn(c):
    """A key that a ResNet would not look at must not seem to do something."""
    if c.objective.name == "dino":
        raise UserError("config.objective.name = 'dino' needs a Vision Transformer, not a ResNet")
    defaults = common().defaults().model
    idle = [k for k in defaults if k not in variants.CNN_KEYS and c.model[k] != defaults[k]]
    if idle:
        words = " ".join(f"--config.model.{key}={defaults[key]}" for key in idle)
        raise UserError(f"{c.model.variant} has no {', '.join(idle)}; say {words}")
    if c.optim.layer_decay != 1:
        raise UserError("config.optim.layer_decay needs a model with blocks; set it to 1")


def _check_objective(c):
    """What goes with labels, and what without."""
    if (c.objective.name == "dino") != (c.augment.crop == "multi"):
        raise UserError(
            "config.objective.name = 'dino' and config.augment.crop = 'multi' go together, and "
            "neither goes without the other; see configs/dino.py"
        )
    if c.augment.crop == "multi" and any(
        c.augment[k] for k in ("rotate", "shift", "zoom", "shear")
    ):
        raise UserError(
            "config.augment.crop = 'multi' has no rotate, shift, zoom or shear; set them 0"
        )
    if c.objective.name == "dino" and c.model.num_classes != 0:
        raise UserError("config.objective.name = 'dino' needs config.model.num_classes = 0")
    if c.objective.name == "supervised" and c.model.num_classes == 0:
        raise UserError("config.objective.name = 'supervised' needs a classifier; num_classes is 0")
    if "accuracy" in c.evaluators and c.model.num_classes == 0:
        raise UserError(
            "config.evaluators has 'accuracy', which needs a classifier, but num_classes is 0; "
            "take ('knn',) or ('knn', 'linear_probe')"
        )


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
