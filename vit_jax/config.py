"""The schema of a run's config: every key with its default, unit, choices and range; checks;
durations; `config.json`.

A recipe starts from `defaults()` and overrides what differs. The keys of an objective, an evaluator
or a kind of data are beside that member, in `MEMBER_keys.py`; those of the models are in
`variants.py`. Imports neither JAX nor NumPy.
"""

import json
import math
import os
import re
from dataclasses import replace
from difflib import get_close_matches

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.schema import (
    Key,
    area_range,
    choice,
    duration,
    member_keys,
    members,
    one_of,
    options,
    probability,
)
from vit_jax.schema import steps as steps  # config.steps reads the durations of a config
from vit_jax.workdir import storage

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Durations are strings: "1000", "10k" or "1e3" optimizer steps, "3ep" epochs of the training split.
KEYS = {
    "seed": Key(0, "seed of initialization, data order and augmentation", least=0),
    "batch_size": Key(1024, "images per optimizer step, over all devices", least=1),
    "accum_steps": Key(1, "micro-batches per optimizer step (gradient accumulation)", least=1),
    "total_steps": duration("300ep", "duration of the training", above=0, free=True),
    "log_every": duration("50", "interval of the rows in metrics.jsonl", above=0, free=True),
    "eval_every": duration("1ep", 'interval of evaluations on val; "0": at the end', free=True),
    "checkpoint_every": duration("1ep", "interval of checkpoints", above=0, free=True),
    "keep_checkpoints": Key(2, "latest checkpoints to keep beside the best", least=1, free=True),
    "best_metric": Key("eval/val/acc1", "metric of the best checkpoint; larger is better"),
    "evaluators": Key(
        ("accuracy",), "modules of vit_jax/evaluators", family="evaluators", free=True
    ),
    "eval_batch_size": Key(0, "images per evaluation batch; 0: batch_size", least=0, free=True),
    "model_init": Key("", 'weights to start from: a workdir or a weight file; "": random'),
    "compilation_cache": Key(
        "~/.cache/vit_jax/xla",
        "directory of compiled programs, unless JAX_COMPILATION_CACHE_DIR is set",
        free=True,
    ),
    # data: which images are read
    "data.name": Key("tfds", "module of vit_jax/data", family="data"),
    "data.dataset": Key("", "tfds: name of the dataset, such as imagenet2012"),
    "data.dir": Key(
        "", 'tfds: data_dir ("": ~/tensorflow_datasets); folder: the root directory', free=True
    ),
    "data.train": Key("train[:99%]", "training split: NAME, NAME[10:] or NAME[:99%]"),
    "data.val": Key("train[99%:]", "validation split, which choices are made on"),
    "data.test": Key("validation", "test split, evaluated once at the end"),
    "data.cache": Key(False, "keep decoded images in memory", free=True),
    "data.workers": Key(0, "processes that read and augment; 0: threads", least=0, free=True),
    "data.threads": Key(4, "threads that read ahead where workers is 0", least=0, free=True),
    "data.mean": Key(IMAGENET_MEAN, "mean per channel of images in [0, 1], subtracted"),
    "data.std": Key(IMAGENET_STD, "standard deviation per channel, divided by", above=0),
    # augment: the host's part
    "augment.crop": choice(
        ("resized", "pad", "none", "multi"),
        "random resized crop, shifted padded image, evaluation crop, or multi-crop",
    ),
    "augment.scale": area_range((0.08, 1.0), "resized, multi: share of the area of a crop"),
    "augment.ratio": Key(
        (3 / 4, 4 / 3), "width / height of a crop", above=0, length=2, increasing=True
    ),
    "augment.pad": Key(0, "pad: maximum shift, pixels", least=0),
    "augment.rotate": Key(0.0, "random affine: maximum rotation, degrees", least=0),
    "augment.shift": probability(0.0, "random affine: maximum shift / side"),
    "augment.zoom": Key(0.0, "random affine: scale within 1 - zoom and 1 + zoom", least=0, below=1),
    "augment.shear": Key(0.0, "random affine: maximum shear, degrees", least=0, below=90),
    "augment.repeats": Key(
        1,
        "augmented copies of each image per batch (repeated augmentation); an epoch covers "
        "1 / repeats of the images",
        least=1,
    ),
    "augment.randaugment": Key("", 'RandAugment, such as rand-m9-mstd0.5-inc1; "": none'),
    "augment.local_views": Key(8, "multi: local crops per image", least=0),
    "augment.local_size": Key(96, "multi: side of the local crops, pixels", least=1),
    "augment.local_scale": area_range((0.05, 0.4), "multi: share of the area of a local crop"),
    # augment: the device's part
    "augment.flip": probability(0.5, "probability of a horizontal flip"),
    "augment.jitter": probability(
        (0.0,) * 4, "maximum change in brightness, contrast, saturation and hue", length=4
    ),
    "augment.jitter_prob": probability(1.0, "probability of color jitter"),
    "augment.gray": probability(0.0, "probability of removing the color"),
    "augment.blur": probability((0.0,) * 3, "of blur: global, global, local crops", length=3),
    "augment.solarize": probability((0.0,) * 3, "of solarization, as for blur", length=3),
    "augment.erase": probability(0.0, "probability of random erasing"),
    "augment.mixup": Key(0.0, "mixup: alpha of Beta(alpha, alpha); 0: off", least=0),
    "augment.cutmix": Key(0.0, "CutMix: alpha of Beta(alpha, alpha); 0: off", least=0),
    "augment.mix_prob": probability(1.0, "probability of mixing a batch"),
    "augment.mix_switch": probability(0.5, "probability of CutMix where both are on"),
    "augment.eval_crop": Key(0.875, "evaluation: center crop / short side", above=0, most=1),
    # optim: config -> optax
    "optim.name": choice(("adamw", "sgd"), "optimizer"),
    "optim.lr": Key(1e-3, "peak learning rate, for lr_batch images per step", least=0),
    "optim.lr_batch": Key(0, "linear scaling: peak = lr * batch_size / lr_batch; 0: off", least=0),
    "optim.b1": Key(0.9, "adamw: decay of the first moment", least=0, below=1),
    "optim.b2": Key(0.999, "adamw: decay of the second moment", least=0, below=1),
    "optim.eps": Key(1e-8, "adamw: added to the root of the second moment", least=0),
    "optim.momentum": Key(0.9, "sgd: momentum", least=0, below=1),
    "optim.weight_decay": Key(0.05, "weight decay", least=0),
    "optim.weight_decay_end": Key(None, "after a half cosine; None: constant", kind=float, least=0),
    "optim.decay_rule": choice(("timm", "deit", "dino", "kernel", "all"), "see optim.decay_mask"),
    "optim.decay_by": choice(
        ("lr", "schedule"), "decay times the learning rate, or times schedule / peak (big_vision)"
    ),
    "optim.warmup": duration("5ep", "duration of the linear warmup"),
    "optim.warmup_start": Key(0.0, "learning rate at step 0", least=0),
    "optim.warmup_prefix": Key(False, "whether the cosine starts after the warmup"),
    "optim.warmup_reaches": Key(False, "whether the last warmup step has the peak rate (DINO)"),
    "optim.end": Key(0.0, "learning rate at the end", least=0),
    "optim.schedule_by": choice(
        ("step", "epoch"), "update the rate every step, or every epoch, one late (DeiT)"
    ),
    "optim.clip": Key(0.0, "maximum norm of the gradient; 0: no clipping", least=0),
    "optim.clip_by": choice(
        ("global", "tensor"), "norm of all gradients together, or of each tensor (DINO)"
    ),
    "optim.freeze": Key("head/last_layer", "path of parameters frozen at the start of training"),
    "optim.freeze_for": duration("0", 'how long they are frozen; "0": never'),
    "optim.only": Key("", 'path of the only trainable parameters, such as head; "": all'),
    "optim.layer_decay": Key(1.0, "learning rate of a layer / of the next one", above=0, most=1),
    # mesh: devices along each axis; -1: the rest
    "mesh.data": Key(-1, "copies of the model", least=-1, free=True),
    "mesh.fsdp": Key(1, "shards of parameters and batch", least=-1, free=True),
    "mesh.tensor": Key(1, "shards of heads and hidden units", least=-1, free=True),
}
# Maxima of the numbers in the name of a RandAugment policy.
RANDAUGMENT = {
    "rand": {"m": 10, "mstd": math.inf, "n": math.inf, "p": 1, "inc": 1},
    "big_vision": {"m": 30, "n": math.inf},
}
RENAMED = {"augment.grey": "augment.gray"}  # keys in the config.json of older runs
OFF = ("", "0", "f", "false", "n", "no", "off")  # as JAX reads its variables
FREE_MODEL_KEYS = ("remat", "scan", "attn")  # how a step is computed, not what


def schema(objective="supervised"):
    """All keys of a run with this objective: {"seed": Key, "data.name": Key, ...}."""
    keys = KEYS | _model_keys()
    for family, prefix in (("data", "data."), ("evaluators", "")):
        for name in members(family):
            keys |= {f"{prefix}{name}.{k}": key for k, key in _keys_of(family, name).items()}
    keys["objective.name"] = Key(objective, "module of vit_jax/objectives", family="objectives")
    keys |= {f"objective.{k}": key for k, key in _keys_of("objectives", objective).items()}
    return keys


def _model_keys():
    """The group `model`: a variant, and every option of `ViTConfig`."""
    keys = {"variant": Key("S/16", "SIZE/PATCH or a ResNet; sizes in vit_jax/variants.py")}
    for name, key in options(variants.ViTConfig).items():
        if name in variants.SIZES:
            key = replace(key, doc=f"{key.doc}; None: as the variant says")
        if name == "num_classes":
            key = replace(key, default=None, kind=int, doc=f"{key.doc}; None: as the data have")
        keys[name] = replace(key, free=name in FREE_MODEL_KEYS)
    return {f"model.{name}": key for name, key in keys.items()}


def _keys_of(family, name):
    module = member_keys(family, name)
    return module.defaults() if module else {}


def defaults():
    """A `ConfigDict` with the default of every key, for the supervised objective."""
    return _tree(schema())


def objective(name):
    """A `ConfigDict` with the keys of an objective: `c.objective = objective("dino")`."""
    _check_member("objective.name", "objectives", name)
    return _tree(schema(name)).objective


def _tree(keys, values=None):
    """A ConfigDict of {"a.b": Key}, with these values in place of the defaults."""
    start = {n: placeholder(k.kind) if k.default is None else k.default for n, k in keys.items()}
    start |= {n: x for n, x in (values or {}).items() if x is not None or n not in keys}
    tree = {}
    for name, value in start.items():
        *groups, leaf = name.split(".")
        group = tree
        for word in groups:
            group = group.setdefault(word, {})
        group[leaf] = value
    return ConfigDict(tree)


def check(config):
    """Raise UserError, one line, for a key, a type or a value that cannot work."""
    values = flat(config)
    name = values.get("objective.name", "supervised")
    _check_member("objective.name", "objectives", name)
    keys = schema(name)
    for key, value in values.items():
        if key not in keys:
            others = members("objectives") if key.startswith("objective.") else ()
            if any(key in schema(other) for other in others):
                raise UserError(
                    f"config has the key {key!r} of another objective than {name!r}; in a recipe "
                    f"set c.objective = objective({name!r})"
                )
            raise UserError(f"config has no key {key!r}; {suggest(key, keys)}")
        keys[key].check(f"config.{key}", value)
    if missing := keys.keys() - values.keys():
        key = min(missing)
        raise UserError(f"config lacks the key {key!r}; start from vit_jax.config.defaults()")
    try:
        model = variants.from_config(config.model)
    except UserError as error:
        raise UserError(f"config.model: {error}") from None
    _check_together(config, model)
    used = [("objectives", name), ("data", config.data.name)]
    for family, member in used + [("evaluators", member) for member in config.evaluators]:
        module = member_keys(family, member)
        if hasattr(module, "check"):
            module.check(config)


def _check_together(c, model):
    """Values that must agree with each other. model: the config of the model."""
    if c.batch_size % c.accum_steps:
        raise UserError(
            f"config.batch_size = {c.batch_size} must be divisible by "
            f"config.accum_steps = {c.accum_steps}"
        )
    mesh = [c.mesh[axis] for axis in ("data", "fsdp", "tensor")]
    if 0 in mesh or mesh.count(-1) > 1:
        raise UserError(f"config.mesh = {tuple(mesh)} must be 1 or more each; -1, the rest, once")
    if model.channels not in (1, 3):
        raise UserError(f"config.model.channels = {model.channels} must be 3 (color) or 1 (gray)")
    for key in ("mean", "std"):
        if len(c.data[key]) != model.channels:
            raise UserError(
                f"config.data.{key} = {c.data[key]} must have {model.channels} numbers, one per "
                "channel (config.model.channels)"
            )
    if c.model.dtype == "float64" and os.environ.get("JAX_ENABLE_X64", "0").lower() in OFF:
        raise UserError(
            "config.model.dtype = 'float64' needs JAX_ENABLE_X64=1 in the environment, without "
            "which JAX computes in float32"
        )
    a = c.augment
    policy = parse_randaugment(a.randaugment)
    if a.crop == "multi":
        if policy:
            raise UserError("config.augment.randaugment needs another augment.crop than 'multi'")
        if any((a.rotate, a.shift, a.zoom, a.shear)):
            raise UserError(
                "config.augment.crop = 'multi' has no rotate, shift, zoom or shear; set them to 0"
            )
        if a.local_views and a.local_size % getattr(model, "patch", 1):
            raise UserError(
                f"config.augment.local_size = {a.local_size} must be a multiple of the patch, "
                f"{model.patch} pixels"
            )
    if variants.is_cnn(c.model.variant) and c.optim.layer_decay != 1:
        raise UserError("config.optim.layer_decay needs a model with blocks; set it to 1")


def _check_member(key, family, name):
    if name not in members(family):
        raise UserError(f"config.{key} = {name!r} must be {one_of(members(family), name)}")


def parse_randaugment(text):
    """Read the name of a RandAugment policy.

    Args:
      text: "rand-m9-mstd0.5-inc1", as timm reads it: m, the magnitude, 0 to 10; mstd, its standard
        deviation; n, operations per image; p, probability of each; inc1, the operations that grow
        with the magnitude, the only ones here. "big_vision-n2-m10", there randaug(2, 10); m to 30.
        "": none.

    Returns:
      {"magnitude", "std", "layers", "p"}, for big_vision the first and the third; None for "".

    Raises:
      UserError: for anything else.
    """
    if not text:
        return None
    policy, *parts = text.split("-")
    limits = RANDAUGMENT.get(policy, {})
    matches = [re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part) for part in parts]
    given = {match[1]: float(match[2]) for match in matches if match}
    values = {"m": 10.0, "mstd": 0.0, "n": 2.0, "p": 0.5, "inc": 0.0} | given  # timm's defaults
    valid = limits and all(matches) and all(x <= limits.get(k, -1) for k, x in given.items())
    valid = valid and values["inc"] == limits.get("inc", 0)
    if not valid or values["n"] < 1 or not values["n"].is_integer():
        raise UserError(
            f"config.augment.randaugment = '{text}' must be like rand-m9-mstd0.5-inc1: m at most "
            "10, n at least 1, p at most 1, and inc1; or like big_vision-n2-m10, m at most 30"
        )
    found = {"magnitude": values["m"], "layers": int(values["n"])}
    return found | ({"std": values["mstd"], "p": values["p"]} if policy == "rand" else {})


def suggest(key, keys):
    """The end of a message: the key that was probably meant."""
    leaves = {name.rpartition(".")[2] for name in keys}
    similar = get_close_matches(key.rpartition(".")[2], leaves, 1)
    candidates = [name for name in keys if name.rpartition(".")[2] in similar]
    found = get_close_matches(key, candidates, 1, cutoff=0)
    return f"did you mean {found[0]!r}?" if found else "vit_jax/config.py lists the keys"


def flat(config, prefix=""):
    """{"optim.lr": 0.001, ...} of nested groups; a placeholder without a value is None."""
    values = {}
    for key, value in config.items():
        inside = isinstance(value, ConfigDict)
        values |= flat(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return values


def save_config(config, path):
    """Write a ConfigDict as JSON, atomically."""
    storage.write_json(path, config.to_dict())


def load_config(workdir):
    """The config of a run, from `workdir/config.json`: data, never executed.

    Keys that did not exist when the run was started have their defaults, renamed ones their new
    names. Raises UserError.
    """
    path = storage.resolve(workdir) / "config.json"
    try:
        values = flat(ConfigDict(_tuples(json.loads(path.read_text()))))
    except FileNotFoundError:
        raise UserError(f"{workdir} is not the workdir of a run: {path} does not exist") from None
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    name = values.get("objective.name")
    return _tree(schema(name) if name in members("objectives") else {}, values)


def config_diff(old, new):
    """The keys in which two configs differ: ["optim.lr: 0.001 -> 0.002", ...]."""
    old, new = _tuples(flat(old)), _tuples(flat(new))
    pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in old | new}
    return [f"{key}: {a} -> {b}" for key, (a, b) in pairs.items() if a != b]


def fixed_diff(old, new):
    """Those of `config_diff` with which the run of `old` cannot be resumed."""
    keys = schema(new.objective.name)
    free = {name for name, key in keys.items() if key.free}
    return [line for line in config_diff(old, new) if line.split(":")[0] not in free]


def _tuples(value):
    """Lists inside anything -> tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
