"""Load pretrained weights; each weight layout is a module of this package.

A layout module has three functions:

* `matches(tensors) -> bool`: whether the tensors have this layout.
* `options(tensors) -> dict`: the options of `ViTConfig` that names and shapes determine.
* `params(tensors, template) -> params`: the tensors as parameters of our model.

`tensors` is a flat dict of numpy arrays. `template` is our parameter tree; only its paths and
shapes are used.
"""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx, traverse_util

from vit_jax import variants
from vit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from vit_jax.errors import UserError
from vit_jax.schema import member, members
from vit_jax.workdir import storage

NON_MEMBERS = ("runs",)  # modules of this package that are not weight layouts
MAX_HEADER_BYTES = 16 << 20  # for comparison, the header of 20,000 tensors takes 2 MB


class Description(NamedTuple):
    """What is known about weights without loading them.

    Attributes:
      model: options of the model as keys of `config.model`: "variant" if the sizes are published
        ones, otherwise each size; and the other options that differ from their defaults.
      mean: mean of images scaled to [0, 1], one value per channel.
      std: standard deviation of images scaled to [0, 1], one value per channel.
      crop: crop ratio for evaluation.
      certain: whether mean, std and crop are known; False: they are assumed.
      image: image size of the weights, pixels.
      num_classes: number of classes; 0: no classifier.
      source: where the preprocessing is from, for messages.
    """

    model: dict
    mean: tuple
    std: tuple
    crop: float
    certain: bool
    image: int
    num_classes: int
    source: str


def describe(spec, variant=None):
    """Describe weights from the header of a file or the config of a run; imports no JAX.

    Args:
      spec: a weight file or the workdir of a run, as in `load`.
      variant: name of the model, for a file that does not determine it.

    Returns:
      A `Description`.

    Raises:
      UserError: if the weights cannot be read or are not supported.
    """
    raise NotImplementedError


def check_init(config, num_classes=None):
    """Check that config.model_init fits config.model and config.data; imports no JAX.

    Args:
      config: a checked config with config.model_init.
      num_classes: number of classes of the dataset; None: unknown.

    Returns:
      A list of lines to print at the start of training; may be empty.

    Raises:
      UserError: if the weights cannot be read or do not fit. The message names the config keys.
    """
    return []


def load(spec, name=None, **overrides):
    """Load weights as a model: `load("file.safetensors", "vit_small_patch16_224")`.

    Args:
      spec: a safetensors file, or the workdir of a run.
      name: name of the model. It may be None if the file determines everything but the number of
        heads; the number of heads is then that of the published model of the same width.
      **overrides: options of `ViTConfig` that the file does not determine. What the keys and shapes
        in the file determine (depth, width, patch, classes, ...) takes precedence over `name` and
        `overrides`.

    Returns:
      A `vit.ViT`, or the model of the run.

    Raises:
      UserError: if the file has no weights, or weights in an unknown layout.
    """
    from vit_jax import vit  # imported here, because reading a file requires no model

    if storage.is_directory(spec):
        from vit_jax.pretrained import runs

        return runs.load_model(spec)
    if variants.is_cnn(name or ""):
        raise UserError(f"{spec}: {name} weights can only be loaded from a run; name a ViT")
    tensors = read(spec)
    layouts = (member("pretrained", name) for name in members("pretrained"))
    layout = next((m for m in layouts if m.matches(tensors)), None)
    if layout is None:
        examples = ", ".join(sorted(tensors)[:3])
        raise UserError(f"{spec}: unknown weight layout, with keys such as {examples}")
    try:
        options = layout.options(tensors)
    except KeyError as error:
        raise UserError(f"{spec}: missing tensor {error}") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{spec}: the tensor shapes do not match a ViT") from error
    if not name and "num_heads" not in overrides:
        # Looked up by width among the published sizes: the heads of H, g and G are not 64 wide.
        heads = {width: heads for width, _, heads, _ in variants.VARIANTS.values() if width >= 192}
        if options["width"] not in heads:
            raise UserError(
                f"{spec} does not determine the number of heads; pass the model name, such as "
                "vit_tiny_patch16_224 or S/16,num_heads=3"
            )
        overrides["num_heads"] = heads[options["width"]]
    try:
        config = variants.parse(name or "S/16", **overrides | options)
        # eval_shape skips the random initialization, which the weights would overwrite.
        model = nnx.eval_shape(lambda: vit.ViT(config, rngs=nnx.Rngs(params=0)))
        graph, template = nnx.split(model)
        return nnx.merge(graph, layout.params(tensors, nnx.to_pure_dict(template)))
    except ValueError as error:
        raise UserError(f"{spec}: {error}") from error


def preprocessing(model, name):
    """Return the preprocessing that the weights of a file expect.

    DeiT, MAE and DINO normalize with ImageNet's mean and standard deviation; AugReg scales images
    to [-1, 1].

    Args:
      model: a `vit.ViT`.
      name: name of the model, or None.

    Returns:
      {"mean", "std", "crop"}, attributes of `inference.LoadedModel`.
    """
    imagenet_stats = re.match(r"deit|.*\.(mae|dino|fb|deit)", name or "")
    imagenet_stats = imagenet_stats or model.config.pos_resize == "dino"
    half = (0.5,) * model.config.channels
    if imagenet_stats and model.config.channels == 3:
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop": 0.9}
    return {"mean": half, "std": half, "crop": 0.9}


def init_params(spec, module, config):
    """Load pretrained weights for fine-tuning a model.

    Args:
      spec: a weight file or workdir, as in `load`.
      module: a ViT or a ResNet; only its shapes are used. Position embeddings are resized to its
        grid.
      config: `config.model`, for the options that a file does not determine.

    Returns:
      weights: a nested dict of numpy arrays, all or some of the module's weights.
      fresh: sorted names of the parts that keep their random initialization: a head for another
        number of classes, or a final norm that comes before pooling in one model and after it in
        the other.

    Raises:
      UserError: if the models differ in anything else.
    """
    import jax

    from vit_jax.layers.patch_embed import resize_positions
    from vit_jax.vit import functional

    heads = {"num_heads": config.num_heads} if config.num_heads else {}
    source = load(storage.resolve(spec), config.variant, **heads)
    weights = jax.device_get(functional(source)[1])
    template = nnx.to_pure_dict(nnx.state(module))
    if "pos_embed" in weights.keys() & template.keys():
        old_grid = source.config.grid
        new_grid = module.config.grid
        table = weights["pos_embed"]
        prefix = table.shape[1] - math.prod(old_grid)  # rows of prefix tokens such as [CLS]
        if prefix == template["pos_embed"].shape[1] - math.prod(new_grid):
            table = resize_positions(table, old_grid, new_grid, prefix, module.config.pos_resize)
            weights["pos_embed"] = np.asarray(table)
    theirs, ours = (
        {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params).items()}
        for params in (weights, template)
    )
    differ = sorted(p for p in ours.keys() | theirs.keys() if ours.get(p) != theirs.get(p))
    fresh = {path[0] for path in differ} & {"norm", "fc_norm", "head"}
    for path in differ:
        if path[0] not in fresh:
            raise UserError(
                f"config.model_init = '{spec}' does not match config.model: {'/'.join(path)} has "
                f"shape {theirs.get(path, 'none')}, expected {ours.get(path, 'none')}"
            )
    return {k: v for k, v in weights.items() if k not in fresh}, sorted(fresh & template.keys())


def read(path):
    """Read a safetensors file into a flat dict of numpy arrays, with floats as float32.

    Raises:
      UserError: if there is no such file, or it is not a valid safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}; pass a .safetensors file or the workdir of a run")
    if path.suffix != ".safetensors":
        raise UserError(f"{path.name} is not a .safetensors file; convert the weights first")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if not 0 < header <= min(MAX_HEADER_BYTES, path.stat().st_size):
        raise UserError(f"{path} is truncated or not a safetensors file; download it again")
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: _float32(file, key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file: {error}") from error


def _float32(file, key):
    value = file.get_tensor(key)
    return value.astype(np.float32) if value.dtype.kind in "fV" else value
