"""The flags that name a model, and the models that they stand for."""

import sys
from pathlib import Path

from absl import flags

from vit_jax import inference
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.workdir import storage


def define_flags(against=True):
    """--weights or --workdir, --model, which weights of a run; --against for a second model."""
    flags.DEFINE_string("weights", None, "file.safetensors, or the workdir of a run")
    flags.DEFINE_string("workdir", None, "workdir of a run; an image may be test:0, a row of it")
    flags.DEFINE_string("model", None, "of a weight file: its name, such as vit_small_patch16_224")
    flags.DEFINE_string("class_names", None, "of a weight file: a text file, one class per line")
    flags.DEFINE_string("checkpoint", "best", "of a run: best, latest or a step")
    flags.DEFINE_bool("raw", False, "of a run: the trained weights, not their average or teacher")
    if against:
        flags.DEFINE_string("against", None, "a second weight file or workdir, side by side")
        flags.DEFINE_string("against_model", None, "of a weight file --against: its name")


def define_view_flags():
    """How images are prepared, in place of what goes with the weights; for `load`."""
    flags.DEFINE_list("mean", None, "mean of images in [0, 1] per channel, or one for all")
    flags.DEFINE_list("std", None, "standard deviation per channel, or one for all")
    flags.DEFINE_float("crop", None, "side of the center crop / short side of the image")


def check_flags(flags):
    """Raise UserError for flags that do not go together, before JAX is imported.

    Returns:
      The configs of the models that are named, in order; None for a weight file.
    """
    if (flags.workdir is None) == (flags.weights is None):
        raise UserError("pass either --workdir=DIR or --weights=FILE; see --help")
    against = getattr(flags, "against", None)
    specs = [spec for spec in (flags.workdir or flags.weights, against) if spec]
    runs = [spec == flags.workdir or storage.is_directory(spec) for spec in specs]
    if runs[0] and (flags.model or flags.class_names):
        raise UserError("--model and --class_names go with a weight file; a run knows its own")
    if getattr(flags, "against_model", None) and (against is None or runs[1]):
        raise UserError("--against_model goes with --against=FILE.safetensors")
    if (flags.raw or flags.checkpoint != "best") and not any(runs):
        raise UserError("--raw and --checkpoint go with a run; a file has one set of weights")
    return [load_config(spec) if run else None for spec, run in zip(specs, runs, strict=True)]


def load(flags):
    """The `inference.LoadedModel`s of checked flags: one, or two with --against."""
    spec = flags.workdir or flags.weights
    names = flags.class_names and _read_names(flags.class_names)
    found = [_load(spec, flags.model, flags, names)]
    if getattr(flags, "against", None):
        found.append(_load(flags.against, flags.against_model, flags))
    if hasattr(flags, "crop"):
        found = [model.replace(**_view(model, flags)) for model in found]
    return found


def _load(spec, name, flags, names=None):
    of_run = dict(checkpoint=flags.checkpoint, raw=flags.raw) if storage.is_directory(spec) else {}
    return inference.load(spec, name, class_names=names, **of_run)


def _read_names(path):
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names={path} cannot be read: {error}") from None


def _view(model, flags):
    """--mean, --std and --crop as attributes of the model."""
    changes = {}
    for key in ("mean", "std"):
        if (words := getattr(flags, key)) is None:
            continue
        try:
            values = tuple(map(float, words))
        except ValueError:
            raise UserError(f"--{key} must be numbers, such as 0.5,0.5,0.5") from None
        changes[key] = values * model.channels if len(values) == 1 else values
    if flags.crop is not None:
        changes["crop"] = flags.crop
    return changes


def open_images(words, models):
    """`pictures.open_images`; rows such as test:0 are read from the data of the first run among
    the models. Prints a line for each image that cannot be read.
    """
    from vit_jax.data import pictures

    config = next((model.config for model in models if model.config is not None), None)
    channels = max(min(model.channels, 3) for model in models)
    found, errors = pictures.open_images(words, config, channels)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return found, errors


def preprocessing(model):
    """How images are prepared for a weight file, in words; "" for a run, whose config says it."""
    if model.config is not None:
        return ""
    mean, std = (",".join(f"{x:g}" for x in values) for values in (model.mean, model.std))
    return f" (mean {mean}, std {std}, crop {model.crop:g}; --mean, --std, --crop)"
