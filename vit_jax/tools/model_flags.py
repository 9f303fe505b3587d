"""Flags that select a model, shared by several tools."""

import dataclasses
import math
import os
import re
import sys
from pathlib import Path

from absl import flags

from vit_jax import inference, variants
from vit_jax.config import load_config
from vit_jax.errors import UserError, printable
from vit_jax.schema import parse_size

VIEW_FLAGS = ("mean", "std", "crop", "image")


def define_flags(against=True):
    """Define the flags that select a model or, with `against`, two models to compare."""
    flags.DEFINE_string("weights", None, "weight file, hf-hub:ORG/NAME, or workdir of a run")
    flags.DEFINE_string("workdir", None, "workdir of a run")
    flags.DEFINE_string(
        "model",
        None,
        "for a weight file: model name, such as vit_small_patch16_224; or options, such as "
        "num_heads=3",
    )
    flags.DEFINE_string(
        "class_names", None, "for a weight file: text file with one class name per line"
    )
    flags.DEFINE_string("checkpoint", "best", "for a run: best, latest or a step")
    flags.DEFINE_bool(
        "raw", False, "for a run: use the trained parameters instead of their EMA or the teacher"
    )
    if against:
        flags.DEFINE_string("against", None, "weight file or workdir of a model to compare with")
        flags.DEFINE_string("against_model", None, "for a weight file in --against: model name")


def define_view_flags():
    """Define flags that override the preprocessing of the weights in `load`."""
    flags.DEFINE_list("mean", None, "mean per channel of images in [0, 1], or one value for all")
    flags.DEFINE_list("std", None, "standard deviation per channel, or one value for all")
    flags.DEFINE_float(
        "crop", None, "crop ratio: side of the center crop / short side of the image"
    )
    flags.DEFINE_string(
        "image",
        None,
        "image size in pixels: one number; HEIGHTxWIDTH; or keep: the short side has the model's "
        "size and the long side is not cropped. Position embeddings are resized",
    )


def check_flags(flags, images=()):
    """Check the flags, weights and images before JAX is imported.

    Args:
      flags: those of `define_flags`.
      images: images named on the command line, as in `open_images`.

    Returns:
      A list with the config of each selected model; None for a weight file.

    Raises:
      UserError: if flags are missing or cannot be combined, the weights cannot be read, or none of
        the images exists.
    """
    if (flags.workdir is None) == (flags.weights is None):
        raise UserError("pass either --workdir=DIR or --weights=FILE; see --help")
    from vit_jax import pretrained

    against = getattr(flags, "against", None)
    specs = [spec for spec in (flags.workdir or flags.weights, against) if spec]
    runs = [spec == flags.workdir or pretrained.is_run(spec) for spec in specs]
    if runs[0] and (flags.model or flags.class_names):
        raise UserError("--model and --class_names require a weight file; a run determines both")
    if getattr(flags, "against_model", None) and (against is None or runs[1]):
        raise UserError("--against_model requires --against=FILE.safetensors")
    if (flags.raw or flags.checkpoint != "best") and not any(runs):
        raise UserError("--raw and --checkpoint require a run; they do not apply to a weight file")
    configs = [load_config(spec) if run else None for spec, run in zip(specs, runs, strict=True)]
    if flags.class_names:
        _read_names(flags.class_names)
    for model in model_configs(flags):
        if hasattr(flags, "crop"):
            image = _view(flags, model.channels).get("image", model.image)
            dataclasses.replace(model, image=image)  # checks it
    for spec, run in zip(specs, runs, strict=True):
        if run:
            pretrained.runs.check_checkpoint(spec, flags.checkpoint)
    errors = [_missing(name, any(configs)) for name in images]
    if errors and all(errors):
        raise UserError(errors[0])
    return configs


def model_configs(flags):
    """Return the `ViTConfig` or `ResNetConfig` of each selected model, without loading weights."""
    from vit_jax import pretrained

    names = {flags.workdir or flags.weights: flags.model}
    if against := getattr(flags, "against", None):
        names[against] = flags.against_model
    found = [pretrained.describe(spec, name) for spec, name in names.items()]
    keys = [{"variant": "S/16", "image": x.image} | x.model for x in found]
    return [variants.parse(options.pop("variant"), **options) for options in keys]


def _missing(name, with_run):
    """Return why an image on the command line cannot be read; None if it may be readable."""
    if os.path.exists(name):
        return None
    name = printable(name)
    if not re.fullmatch(r"(train|val|test):\d+", name):
        return f"{name}: no such file or directory"
    return None if with_run else f"{name}: pass --workdir to load an image from a run's dataset"


def load(flags):
    """Load the selected models as a list of `inference.LoadedModel`: one, or two with --against."""
    spec = flags.workdir or flags.weights
    names = flags.class_names and _read_names(flags.class_names)
    models = [_load(spec, flags.model, flags, names)]
    if getattr(flags, "against", None):
        models.append(_load(flags.against, flags.against_model, flags))
    if hasattr(flags, "crop"):
        views = [_view(flags, model.channels) for model in models]
        models = [
            model.replace(**view, assumed=tuple(key for key in model.assumed if key not in view))
            for model, view in zip(models, views, strict=True)
        ]
    return models


def _load(spec, name, flags, class_names=None):
    from vit_jax import pretrained

    options = dict(checkpoint=flags.checkpoint, raw=flags.raw) if pretrained.is_run(spec) else {}
    return inference.load(spec, name, class_names=class_names, **options)


def _read_names(path):
    """Read class names from a text file, one per line."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names={path} cannot be read: {error}") from None


def _view(flags, channels):
    """Return --mean, --std, --crop and --image as attributes of a `LoadedModel`.

    Raises UserError.
    """
    values = {} if flags.crop is None else {"crop": flags.crop}
    if flags.image == "keep":
        if flags.crop is not None:
            raise UserError("--image=keep does not crop images; leave out --crop")
        values["keep_shape"] = True
    elif flags.image is not None:
        if not re.fullmatch(r"[0-9]{1,5}(x[0-9]{1,5})?", flags.image):
            raise UserError(
                f"--image={flags.image} must be a number of pixels, HEIGHTxWIDTH or keep"
            )
        values["image"] = parse_size(flags.image)
    for key in ("mean", "std"):
        if (texts := getattr(flags, key)) is None:
            continue
        try:
            numbers = tuple(map(float, texts))
            if not all(map(math.isfinite, numbers)):
                raise ValueError
        except ValueError:
            raise UserError(f"--{key} must be numbers, such as 0.5,0.5,0.5") from None
        values[key] = numbers * channels if len(numbers) == 1 else numbers
        if len(values[key]) != channels:
            raise UserError(f"--{key}={','.join(texts)} must have {channels} values")
    if not 0 < values.get("crop", 1) <= 1:
        raise UserError(f"--crop={flags.crop} must be above 0 and at most 1")
    if min(values.get("std", (1,))) <= 0:
        raise UserError(f"--std={','.join(flags.std)} must be above 0")
    return values


def read_images(names, models, errors):
    """Read the images named on the command line; print a line for each that cannot be read.

    Args:
      names: iterable over paths, and rows of a dataset such as "test:0". Rows are read from the
        dataset of the first model that is a run.
      models: a list of `inference.LoadedModel`.
      errors: list to which the error messages are appended.

    Yields:
      The images that can be read as `data.pictures.Picture`s.

    Raises:
      UserError: if a model expects neither 1, 3 nor 4 channels.
    """
    from vit_jax.data import pictures

    for model in models:
        model.check_channels()
    config = next((model.config for model in models if model.config is not None), None)
    channels = max(model.channels for model in models)
    for picture in pictures.read(names, config, channels, models):
        if isinstance(picture, str):
            errors.append(picture)
            print(f"error: {picture}", file=sys.stderr)
        else:
            yield picture


def open_images(names, models):
    """Return the images of `read_images` as a list, and the error messages."""
    errors = []
    return list(read_images(names, models, errors)), errors


def preprocessing(model, view=True):
    """Describe how a weight file is used, and what of it is assumed.

    Args:
      model: an `inference.LoadedModel`.
      view: whether to describe the preprocessing too; False if the images are already normalized.

    Returns:
      Text that follows the model's name; "" for a run, whose config specifies everything.
    """
    if model.config is not None:
        return ""
    c = model.module.config
    texts = {}
    if "num_heads" in model.assumed:
        texts["num_heads"] = f"{c.num_heads} heads"
    if "norm" in model.assumed:
        texts["norm"] = f"{c.norm.replace('_', '-')}-norm"
    if "act" in model.assumed:
        texts["act"] = {"gelu": "GELU (erf)", "gelu_tanh": "GELU (tanh)"}[c.act]
    flags = ["--model"] if texts else []
    if view:
        for key in ("mean", "std"):
            texts[key] = f"{key} " + ",".join(f"{x:g}" for x in getattr(model, key))
        kind = " of the squashed image" if model.crop_mode == "squash" else ""
        texts["crop"] = f"crop {model.crop:g}{kind}"
        if model.interpolation != "bicubic":
            texts["crop"] += f", {model.interpolation}"
        flags += ["--mean", "--std", "--crop"]
        if model.keep_shape:
            del texts["crop"]
            flags.remove("--crop")
    known = [text for key, text in texts.items() if key not in model.assumed]
    assumed = [text for key, text in texts.items() if key in model.assumed]
    parts = [", ".join(known), "assumed " + ", ".join(assumed) if assumed else "", *model.notes]
    parts.append(f"set with {', '.join(flags)}" if flags else "")
    text = "; ".join(filter(None, parts))
    return f" ({text})" if text else ""
