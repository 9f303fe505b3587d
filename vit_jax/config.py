"""The config of a run: every key with default, unit, choices and range; checks; `config.json`.

A recipe starts from `defaults()` and overrides keys. The keys of an objective, an evaluator or a
data source are defined next to that module, in `MODULE_keys.py`; the keys of the models are the
fields of `ViTConfig` in `variants.py`. This module imports neither JAX nor NumPy.
"""

import math
import os
import re
from dataclasses import replace
from difflib import get_close_matches

from ml_collections import ConfigDict, FieldReference

from vit_jax import variants
from vit_jax.errors import UserError, printable
from vit_jax.schema import (
    SIZE,
    Key,
    area_range,
    choice,
    duration,
    member_keys,
    members,
    one_of,
    options,
    pair,
    probability,
    size_text,
)
from vit_jax.schema import steps as steps  # public as config.steps
from vit_jax.workdir import profile, storage

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Durations are strings: "1000", "10k" or "1e3" optimizer steps, "3ep" epochs of the training split.
KEYS = {
    "seed": Key(
        0,
        "random seed of initialization, data order and augmentation",
        minimum=0,
        maximum=2**32 - 1,
    ),
    "batch_size": Key(1024, "images per optimizer step, summed over all devices", minimum=1),
    "accum_steps": Key(
        1,
        "micro-batches per optimizer step (gradient accumulation); batch norm uses the statistics "
        "of each",
        minimum=1,
    ),
    "total_steps": duration("300ep", "duration of training", greater_than=0, resumable=True),
    "log_every": duration(
        "50", "interval between rows of training metrics", greater_than=0, resumable=True
    ),
    "eval_every": duration(
        "1ep", 'interval between evaluations; "0": only at the end', resumable=True
    ),
    "checkpoint_every": duration(
        "1ep", "interval between checkpoints", greater_than=0, resumable=True
    ),
    "keep_checkpoints": Key(
        2, "number of latest checkpoints to keep, besides the best", minimum=1, resumable=True
    ),
    "max_bad_steps": Key(
        10,
        "training stops after this many steps in a row whose loss, gradients or updates are not "
        "finite; such steps are skipped",
        minimum=1,
        resumable=True,
    ),
    "best_metric": Key(
        "eval/val/acc1", "metric that selects the best checkpoint; larger is better"
    ),
    "evaluators": Key(
        ("accuracy",),
        "evaluators to run: modules of vit_jax/evaluators",
        family="evaluators",
        resumable=True,
    ),
    "loggers": Key(
        ("tensorboard",),
        "loggers besides metrics.jsonl: modules of vit_jax/loggers",
        family="loggers",
        resumable=True,
    ),
    "eval_batch_size": Key(
        0, "images per evaluation batch; 0: batch_size", minimum=0, resumable=True
    ),
    "log_images": Key(
        8,
        "images sent to the loggers: augmented training images at every start, attention maps of "
        "validation images at every evaluation; 0: none",
        minimum=0,
        resumable=True,
    ),
    "model_init": Key("", 'pretrained weights: a workdir or a weight file; "": random init'),
    "compilation_cache": Key(
        "~/.cache/vit_jax/xla",
        'directory of the compilation cache, unless JAX_COMPILATION_CACHE_DIR is set; "": none',
        resumable=True,
    ),
    "profile": Key(
        "",
        "steps to profile, START:STOP, such as 20:25; the profile is written to the workdir",
        resumable=True,
    ),
    # data: which images are read
    "data.name": Key("tfds", "data source: a module of vit_jax/data", family="data"),
    "data.dataset": Key("", "tfds: name of the dataset, such as imagenet2012"),
    "data.dir": Key(
        "",
        'tfds: data_dir ("": ~/tensorflow_datasets); folder: the root directory; webdataset: the '
        "directory of the shards",
        resumable=True,
    ),
    "data.train": Key("train[:99%]", "training split: NAME, NAME[10:] or NAME[:99%]"),
    "data.val": Key("train[99%:]", "validation split, used to select the best checkpoint"),
    "data.test": Key(
        "validation", "test split, evaluated once, at the end of training", resumable=True
    ),
    "data.class_names": Key(
        (),
        "names of the classes, in the order of the labels; (): those of the training split",
        element=str,
    ),
    "data.balance": choice(
        ("none", "sample", "loss"),
        "class imbalance: none; sample every class equally often, with replacement; or weight the "
        "loss of each class by 1 / its number of images",
    ),
    "data.on_error": choice(
        ("raise", "skip"),
        "an image that cannot be decoded: stop, or replace it by another one and report it",
        resumable=True,
    ),
    "data.cache": Key(False, "keep decoded images in memory", resumable=True),
    "data.workers": Key(
        -1,
        "processes that load data; 0: only threads; -1: chosen from the number of CPU cores",
        minimum=-1,
        resumable=True,
    ),
    "data.threads": Key(
        -1,
        "threads that load data, of every worker process or, without workers, in all; -1: chosen "
        "from the number of CPU cores",
        minimum=-1,
        resumable=True,
    ),
    "data.mean": Key(IMAGENET_MEAN, "per-channel mean to subtract, for images in [0, 1]"),
    "data.std": Key(IMAGENET_STD, "per-channel standard deviation to divide by", greater_than=0),
    # augment: on the host
    "augment.crop": choice(
        ("resized", "simple", "pad", "none", "multi"),
        "random resized crop; resized short side, reflected edges and random crop (DeiT III); "
        "evaluation crop, black edges and random crop; evaluation crop; or multi-crop",
    ),
    "augment.scale": area_range((0.08, 1.0), "resized, multi: range of crop area / image area"),
    "augment.ratio": Key(
        (3 / 4, 4 / 3), "range of crop width / height", greater_than=0, length=2, increasing=True
    ),
    "augment.pad": Key(0, "simple, pad: padding on each side, pixels", minimum=0),
    "augment.rotate": Key(0.0, "random affine: maximum rotation, degrees", minimum=0),
    "augment.shift": probability(0.0, "random affine: maximum translation / side of the image"),
    "augment.zoom": Key(
        0.0, "random affine: scale in [1 - zoom, 1 + zoom]", minimum=0, less_than=1
    ),
    "augment.shear": Key(0.0, "random affine: maximum shear, degrees", minimum=0, less_than=90),
    "augment.repeats": Key(
        1,
        "augmented copies of each image per batch (repeated augmentation); an epoch covers "
        "1 / repeats of the images",
        minimum=1,
    ),
    "augment.randaugment": Key("", 'RandAugment policy, such as rand-m9-mstd0.5-inc1; "": off'),
    "augment.local_views": Key(8, "multi: number of local crops per image", minimum=0),
    "augment.local_size": Key(
        96,
        "multi: size of the local crops, pixels: side of a square, or (height, width)",
        kind=SIZE,
        minimum=1,
    ),
    "augment.local_scale": area_range((0.05, 0.4), "multi: range of local crop area / image area"),
    # augment: on the device
    "augment.flip": probability(0.5, "probability of a horizontal flip"),
    "augment.three_augment": Key(
        False,
        "grayscale, solarization or Gaussian blur, one of them for each image, before color jitter "
        "(DeiT III)",
    ),
    "augment.jitter": probability(
        (0.0,) * 4, "maximum change in brightness, contrast, saturation and hue", length=4
    ),
    "augment.jitter_prob": probability(1.0, "probability of color jitter"),
    "augment.gray": probability(0.0, "probability of conversion to grayscale"),
    "augment.blur": probability(
        (0.0,) * 3,
        "probability of Gaussian blur: first global, second global, local crops",
        length=3,
    ),
    "augment.solarize": probability(
        (0.0,) * 3,
        "probability of solarization: first global, second global, local crops",
        length=3,
    ),
    "augment.erase": probability(0.0, "probability of random erasing"),
    "augment.mixup": Key(0.0, "mixup: alpha of Beta(alpha, alpha); 0: off", minimum=0),
    "augment.cutmix": Key(0.0, "CutMix: alpha of Beta(alpha, alpha); 0: off", minimum=0),
    "augment.mix_prob": probability(1.0, "probability of applying mixup or CutMix to a batch"),
    "augment.mix_switch": probability(
        0.5, "probability of CutMix rather than mixup, if both are on"
    ),
    "augment.interpolation": choice(
        ("bicubic", "bilinear"), "interpolation of images that are resized, also at evaluation"
    ),
    "augment.crop_mode": choice(
        ("center", "squash"),
        "evaluation: resize the short side and crop the center, or resize to a square without "
        "keeping the aspect ratio",
    ),
    "augment.eval_crop": Key(
        0.875,
        "evaluation: side of the center crop / short side of the image",
        greater_than=0,
        maximum=1,
    ),
    # optim: config -> optax
    "optim.name": choice(
        ("adamw", "sgd", "lamb", "lion", "muon"),
        "optimizer; muon updates the matrices of hidden layers, and AdamW all other parameters",
    ),
    "optim.lr": Key(1e-3, "peak learning rate; scaled if lr_batch is set", minimum=0),
    "optim.lr_batch": Key(
        0, "linear scaling: peak = lr * batch_size / lr_batch; 0: off", minimum=0
    ),
    "optim.b1": Key(
        0.9,
        "adamw, lamb, AdamW of muon: decay rate of the first moment; lion: weight of the momentum "
        "in the update",
        minimum=0,
        less_than=1,
    ),
    "optim.b2": Key(
        0.999,
        "adamw, lamb, AdamW of muon: decay rate of the second moment; lion: decay rate of the "
        "momentum, usually 0.99",
        minimum=0,
        less_than=1,
    ),
    "optim.eps": Key(
        1e-8, "adamw, lamb, muon: added to the square root of the second moment", minimum=0
    ),
    "optim.momentum": Key(
        0.9,
        "sgd: momentum; muon: decay rate of the momentum, usually 0.95",
        minimum=0,
        less_than=1,
    ),
    "optim.weight_decay": Key(0.05, "weight decay", minimum=0),
    "optim.weight_decay_end": Key(
        None, "final weight decay of a cosine schedule; None: constant", kind=float, minimum=0
    ),
    "optim.decay_rule": choice(
        ("timm", "deit", "dino", "kernel", "all"),
        "which parameters have weight decay; see vit_jax.optim.decay_mask",
    ),
    "optim.decay_by": choice(
        ("lr", "schedule"),
        "multiply weight decay by the learning rate, or by learning rate / peak (big_vision)",
    ),
    "optim.warmup": duration("5ep", "duration of the linear warmup"),
    "optim.warmup_start": Key(0.0, "learning rate at the start of the warmup", minimum=0),
    "optim.warmup_prefix": Key(False, "start the cosine after the warmup, not at step 0"),
    "optim.warmup_reaches": Key(False, "reach the peak at the last step of the warmup (DINO)"),
    "optim.end": Key(0.0, "final learning rate", minimum=0),
    "optim.schedule_by": choice(
        ("step", "epoch"),
        "update the learning rate every step, or once per epoch, one epoch late (DeiT)",
    ),
    "optim.clip": Key(0.0, "maximum norm of the gradient; 0: no clipping", minimum=0),
    "optim.clip_by": choice(
        ("global", "tensor"), "clip by the global norm, or by the norm of each tensor (DINO)"
    ),
    "optim.freeze": Key("head/last_layer", "path of parameters frozen at the start of training"),
    "optim.freeze_for": duration("0", 'how long these parameters are frozen; "0": never'),
    "optim.trainable": Key(
        "", 'path of the only trainable parameters, such as head; "": train all'
    ),
    "optim.layer_decay": Key(
        1.0,
        "layer-wise learning rate decay: learning rate of a layer / that of the next; 1: off",
        greater_than=0,
        maximum=1,
    ),
    # mesh: number of devices along each axis; -1: all remaining devices
    "mesh.data": Key(-1, "data parallelism: replicas of the model", minimum=-1, resumable=True),
    "mesh.fsdp": Key(1, "FSDP: shards of the parameters and the batch", minimum=-1, resumable=True),
    "mesh.tensor": Key(
        1, "tensor parallelism: shards of heads and MLP units", minimum=-1, resumable=True
    ),
}
# Maximum of each number in the name of a RandAugment policy.
RANDAUGMENT_LIMITS = {
    "rand": {"m": 10, "mstd": math.inf, "n": math.inf, "p": 1, "inc": 1},
    "big_vision": {"m": 30, "n": math.inf},
}
# Old -> new names, for the config.json of older runs and for hints.
RENAMED_KEYS = {"augment.grey": "augment.gray", "optim.only": "optim.trainable"}
FALSE_VALUES = ("", "0", "f", "false", "n", "no", "off")  # of JAX's environment variables
RESUMABLE_MODEL_KEYS = (
    "remat",
    "scan",
    "attn",
)  # change how the model is computed, not its outputs


def schema(objective="supervised"):
    """Return all config keys for an objective: {"seed": Key, "data.name": Key, ...}."""
    keys = KEYS | _model_keys()
    for family, prefix in (("data", "data."), ("evaluators", "")):
        for name in members(family):
            keys |= {f"{prefix}{name}.{k}": key for k, key in _keys_of(family, name).items()}
    keys["objective.name"] = Key(objective, "module of vit_jax/objectives", family="objectives")
    keys |= {f"objective.{k}": key for k, key in _keys_of("objectives", objective).items()}
    return keys


def _model_keys():
    """Return the keys of the group `model`: the variant, and every option of `ViTConfig`."""
    keys = {"variant": Key("S/16", "SIZE/PATCH or a ResNet; vit_jax/variants.py lists the sizes")}
    for name, key in options(variants.ViTConfig).items():
        if name in variants.SIZE_OPTIONS:
            key = replace(key, doc=f"{key.doc}; None: that of the variant")
        if name == "num_classes":
            key = replace(key, default=None, kind=int, doc=f"{key.doc}; None: that of the dataset")
        keys[name] = replace(key, resumable=name in RESUMABLE_MODEL_KEYS)
    return {f"model.{name}": key for name, key in keys.items()}


def _keys_of(family, name):
    module = member_keys(family, name)
    return module.defaults() if module else {}


def defaults():
    """Return a `ConfigDict` with the default of every key, for the supervised objective."""
    return _tree(schema())


def objective(name):
    """Return the `ConfigDict` of an objective's keys: `c.objective = objective("dino")`."""
    _check_member("objective.name", "objectives", name)
    return _tree(schema(name)).objective


def _tree(keys, values=None):
    """Return the nested ConfigDict of {"a.b": Key}, with `values` in place of the defaults."""
    flat_values = {n: k.default for n, k in keys.items()}
    flat_values |= {n: x for n, x in (values or {}).items() if x is not None or n not in keys}
    for name, key in keys.items():
        if key.kind is SIZE or flat_values[name] is None:
            flat_values[name] = FieldReference(flat_values[name], field_type=key.value_type)
    tree = {}
    for name, value in flat_values.items():
        *groups, leaf = name.split(".")
        group = tree
        for group_name in groups:
            group = group.setdefault(group_name, {})
        group[leaf] = value
    return ConfigDict(tree)


def check(config):
    """Check the keys, types and values of a config.

    Args:
      config: ConfigDict.

    Raises:
      UserError: for an unknown or missing key, an invalid value, or values that do not fit
        together. The message is one line.
    """
    values = flat(config)
    name = values.get("objective.name", "supervised")
    _check_member("objective.name", "objectives", name)
    keys = schema(name)
    for key, value in values.items():
        _find_key(keys, key, name).check(f"config.{key}", value)
    if missing := keys.keys() - values.keys():
        key = min(missing)
        raise UserError(f"config has no value for {key!r}; start from vit_jax.config.defaults()")
    try:
        model = variants.from_config(config.model)
    except UserError as error:
        raise UserError(f"config.model: {error}") from None
    _check_combinations(config, model)
    used = [("objectives", name), ("data", config.data.name)]
    used += [("evaluators", evaluator) for evaluator in config.evaluators]
    for family, member in used:
        module = member_keys(family, member)
        if hasattr(module, "check"):
            module.check(config)


def _find_key(keys, key, objective_name):
    """Return keys[key]. Raises UserError with a hint for an unknown key."""
    if key in keys:
        return keys[key]
    names = members("objectives") if key.startswith("objective.") else ()
    if any(key in schema(name) for name in names):
        raise UserError(
            f"config key {key!r} does not belong to the objective {objective_name!r}; in the "
            f"recipe, set c.objective = objective({objective_name!r})"
        )
    raise UserError(f"config has no key {key!r}; {suggest(key, keys)}")


def _check_combinations(c, model):
    """Check values that depend on each other. `model` is a ViTConfig or a ResNetConfig."""
    profile.parse(c.profile)
    if c.batch_size % c.accum_steps:
        raise UserError(
            f"config.batch_size = {c.batch_size} must be divisible by "
            f"config.accum_steps = {c.accum_steps}"
        )
    mesh = [c.mesh[axis] for axis in ("data", "fsdp", "tensor")]
    if 0 in mesh or mesh.count(-1) > 1:
        raise UserError(
            f"config.mesh = {tuple(mesh)} must be at least 1 on every axis; one axis may be -1, "
            "for all remaining devices"
        )
    if model.channels not in (1, 3):
        raise UserError(f"config.model.channels = {model.channels} must be 3 (color) or 1 (gray)")
    for key in ("mean", "std"):
        if len(c.data[key]) != model.channels:
            raise UserError(
                f"config.data.{key} = {c.data[key]} must have {model.channels} numbers, one per "
                "channel (config.model.channels)"
            )
    if c.model.dtype == "float64" and os.environ.get("JAX_ENABLE_X64", "0").lower() in FALSE_VALUES:
        raise UserError(
            "config.model.dtype = 'float64' needs JAX_ENABLE_X64=1 in the environment; without it, "
            "JAX computes in float32"
        )
    a = c.augment
    if a.crop == "simple" and 2 * a.pad >= min(model.size):
        raise UserError(
            f"config.augment.pad = {a.pad} must be less than half of config.model.image = "
            f"{size_text(model.image)} for config.augment.crop = 'simple'"
        )
    policy = parse_randaugment(a.randaugment)
    if a.crop == "multi":
        if policy:
            raise UserError(
                "config.augment.crop = 'multi' does not support RandAugment; set "
                "config.augment.randaugment to ''"
            )
        if any((a.rotate, a.shift, a.zoom, a.shear)):
            raise UserError(
                "config.augment.crop = 'multi' does not support rotate, shift, zoom or shear; set "
                "them to 0"
            )
        patch = getattr(model, "patch_size", (1, 1))
        if a.local_views and any(x % p for x, p in zip(pair(a.local_size), patch, strict=True)):
            raise UserError(
                f"config.augment.local_size = {size_text(a.local_size)} must be a multiple of the "
                f"patch size, {size_text(model.patch)} pixels"
            )
    if variants.is_cnn(c.model.variant) and c.optim.layer_decay != 1:
        raise UserError("config.optim.layer_decay needs a model with blocks; set it to 1")


def _check_member(key, family, name):
    if name not in members(family):
        raise UserError(f"config.{key} = {name!r} must be {one_of(members(family), name)}")


def parse_randaugment(text):
    """Parse the name of a RandAugment policy.

    Args:
      text: a policy in the notation of timm, such as "rand-m9-mstd0.5-inc1": m is the magnitude, 0
        to 10; mstd its standard deviation; n the number of operations per image; p the probability
        of each operation. inc1 is required: only timm's increasing operations are implemented. Or
        big_vision's randaug(2, 10), written "big_vision-n2-m10", with m from 0 to 30. Or "", no
        RandAugment.

    Returns:
      {"magnitude", "std", "layers", "p"}; {"magnitude", "layers"} for big_vision; None for "".

    Raises:
      UserError: if the policy is invalid.
    """
    if not text:
        return None
    policy, *parts = text.split("-")
    limits = RANDAUGMENT_LIMITS.get(policy, {})
    matches = [re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part) for part in parts]
    given = {match[1]: float(match[2]) for match in matches if match}
    values = {"m": 10.0, "mstd": 0.0, "n": 2.0, "p": 0.5, "inc": 0.0} | given  # timm's defaults
    valid = limits and all(matches) and all(x <= limits.get(k, -1) for k, x in given.items())
    valid = valid and values["inc"] == limits.get("inc", 0)
    if not valid or values["n"] < 1 or not values["n"].is_integer():
        raise UserError(
            f"config.augment.randaugment = '{text}' is not a RandAugment policy; pass one like "
            "rand-m9-mstd0.5-inc1 (m at most 10, n at least 1, p at most 1, inc1 required) or "
            "big_vision-n2-m10 (m at most 30)"
        )
    parsed = {"magnitude": values["m"], "layers": int(values["n"])}
    return parsed | ({"std": values["mstd"], "p": values["p"]} if policy == "rand" else {})


def suggest(key, keys, text=None):
    """Return a hint for an unknown key: its equivalent, the most similar key, or where to look.

    Args:
      key: the unknown key.
      keys: names of the config's keys.
      text: value on the command line, to repeat it in the hint; None: the key is from a recipe.
    """
    from vit_jax import habits

    if key in RENAMED_KEYS:
        return f"it was renamed to {RENAMED_KEYS[key]!r}"
    if text is not None and (hint := habits.hint(key, keys, text)):
        return hint
    if equivalent := habits.equivalent(key, keys):
        return f"did you mean {equivalent!r}?"
    leaves = {name.rpartition(".")[2] for name in keys}
    similar = get_close_matches(key.rpartition(".")[2], leaves, 1)
    candidates = [name for name in keys if name.rpartition(".")[2] in similar]
    closest = get_close_matches(key, candidates, 1, cutoff=0)
    return f"did you mean {closest[0]!r}?" if closest else "vit_jax/config.py lists the keys"


def peak_lr(config):
    """Return the peak learning rate, scaled by the batch size if optim.lr_batch is set."""
    c = config.optim
    return c.lr * config.batch_size / c.lr_batch if c.lr_batch else c.lr


def flat(config, prefix=""):
    """Flatten a ConfigDict to {"optim.lr": 0.001, ...}. Placeholders without a value are None."""
    values = {}
    for key, value in config.items():
        is_group = isinstance(value, ConfigDict)
        values |= flat(value, f"{prefix}{key}.") if is_group else {f"{prefix}{key}": value}
    return values


def save_config(config, path):
    """Write a ConfigDict as JSON, atomically."""
    storage.write_json(path, config.to_dict())


def load_config(workdir):
    """Load the config of a run from `workdir/config.json`.

    The file is parsed as JSON; no recipe is executed. Keys that are newer than the run get their
    defaults, and renamed keys get their new names.

    Args:
      workdir: directory of the run, or gs://BUCKET/RUN.

    Returns:
      ConfigDict.

    Raises:
      UserError: if the file is missing or malformed, or `check` fails.
    """
    path = storage.resolve(workdir) / "config.json"
    try:
        return from_dict(storage.read_json(path))
    except FileNotFoundError:
        raise UserError(f"{workdir} is not the workdir of a run: {path} does not exist") from None
    except ConfigError as error:
        raise UserError(f"{printable(path)}: {error}; restore the file from a copy") from None


def from_dict(values):
    """Return the config of nested dicts, as of a JSON file; see `load_config`.

    Raises:
      ConfigError: if a key or value is invalid.
    """
    values = _flat_dict(_tuples(values))
    values = {RENAMED_KEYS.get(name, name): value for name, value in values.items()}
    try:
        name = values.get("objective.name", "supervised")
        _check_member("objective.name", "objectives", name)
        keys = schema(name)
        for key, value in values.items():  # before `_tree`, which replaces None by the default
            _find_key(keys, key, name).check(f"config.{key}", value)
        config = _tree(keys, values)
        check(config)
    except UserError as error:
        raise ConfigError(str(error)) from None
    return config


class ConfigError(UserError):
    """A config has an invalid key or value."""


def _flat_dict(value, prefix=""):
    """Flatten nested dicts; see `flat`. Empty dicts are values."""
    values = {}
    for key, item in value.items():
        nested = isinstance(item, dict) and item
        values |= _flat_dict(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item}
    return values


def config_diff(old, new):
    """Return the differences between two configs: ["optim.lr: 0.001 -> 0.002", ...]."""
    old, new = _tuples(flat(old)), _tuples(flat(new))
    pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in old | new}
    return [f"{key}: {a} -> {b}" for key, (a, b) in pairs.items() if a != b]


def blocking_diff(old, new):
    """Return the differences of `config_diff` that prevent resuming the run of `old`."""
    keys = schema(new.objective.name)
    free = {name for name, key in keys.items() if key.resumable}
    return [line for line in config_diff(old, new) if line.split(":")[0] not in free]


def _tuples(value):
    """Convert all lists in nested dicts, lists and tuples to tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
