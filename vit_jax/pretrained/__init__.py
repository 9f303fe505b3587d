"""FAMILY: weight layouts, each member a table of names.

A member module has `matches(tensors) -> bool`; `options(tensors) -> dict`, the options of
`ViTConfig` that names and shapes determine; and `params(tensors, template) -> params`, the tensors
in our layout. `tensors` is a flat dict of numpy arrays; only the shapes and paths of
`template`, our parameter tree, are used.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
from flax import nnx, traverse_util

from vit_jax import variants
from vit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from vit_jax.errors import UserError
from vit_jax.schema import member, members
from vit_jax.workdir import storage

HELPERS = ("runs",)  # modules here that are no weight layout
MAX_HEADER_BYTES = 16 << 20  # the header of 20,000 tensors is 2 MB


def load(spec, name=None, **overrides):
    """Load weights as a model: load("file.safetensors", "vit_small_patch16_224") -> vit.ViT.

    Args:
      spec: a safetensors file or the workdir of a run.
      name: of the model; None if the file determines everything but the number of heads, which is
        then that of the published model of this width.
      **overrides: options of `ViTConfig` that the file does not determine. The keys and shapes of
        the file (depth, width, patch, classes, ...) take precedence over both.

    Raises:
      UserError: for a file without weights, or with weights of no known layout.
    """
    from vit_jax import vit  # here, so that reading a file's names needs no model

    if storage.is_directory(spec):
        from vit_jax.pretrained import runs

        return runs.load_model(spec)
    if variants.is_cnn(name or ""):
        raise UserError(f"{spec}: weights of a {name} are read from runs alone; name a ViT")
    tensors = read(spec)
    layouts = (member("pretrained", name) for name in members("pretrained"))
    layout = next((m for m in layouts if m.matches(tensors)), None)
    if layout is None:
        some = ", ".join(sorted(tensors)[:3])
        raise UserError(f"{spec} holds weights of no known layout; its keys begin {some}")
    try:
        found = layout.options(tensors)
    except KeyError as error:
        raise UserError(f"{spec}: missing tensor {error}") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{spec}: its tensors do not have the shapes of a ViT's") from error
    if not name and "num_heads" not in overrides:
        # Of published sizes alone: H, g and G do not have heads of 64.
        heads = {width: heads for width, _, heads, _ in variants.VARIANTS.values() if width >= 192}
        if found["width"] not in heads:
            raise UserError(
                f"{spec} does not tell the number of heads; name the model, as in "
                "vit_tiny_patch16_224 or S/16,num_heads=3"
            )
        overrides["num_heads"] = heads[found["width"]]
    try:
        config = variants.parse(name or "S/16", **overrides | found)
        # Abstract: no time goes into random numbers that would be overwritten.
        model = nnx.eval_shape(lambda: vit.ViT(config, rngs=nnx.Rngs(params=0)))
        graph, template = nnx.split(model)
        return nnx.merge(graph, layout.params(tensors, nnx.to_pure_dict(template)))
    except ValueError as error:
        raise UserError(f"{spec}: {error}") from error


def preprocessing(model, name):
    """How images are prepared for the weights of a file, a `vit.ViT`: {"mean", "std", "crop"}.

    DeiT's, MAE's and DINO's see ImageNet's mean and deviation, AugReg's [-1, 1]; name may be None.
    """
    facebook = re.match(r"deit|.*\.(mae|dino|fb|deit)", name or "")
    facebook = facebook or model.config.pos_resize == "dino"
    half = (0.5,) * model.config.channels
    if facebook and model.config.channels == 3:
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop": 0.9}
    return {"mean": half, "std": half, "crop": 0.9}


def init_params(spec, module, config):
    """Pretrained weights for fine-tuning a model.

    Args:
      spec: as of `load`.
      module: a ViT or a ResNet; only its shapes are used. Positions are resized to its grid.
      config: config.model, for options that a file does not determine.

    Returns:
      A nested dict of numpy arrays, all or some of the module's weights; and the names of the
      parts that keep their random initialization: a classifier for another number of classes, or
      a last norm that is before the pooling in one model and after it in the other.

    Raises:
      UserError: for any other difference.
    """
    import jax

    from vit_jax.layers.patch_embed import resize_positions
    from vit_jax.vit import functional

    heads = {"num_heads": config.num_heads} if config.num_heads else {}
    source = load(storage.resolve(spec), config.variant, **heads)
    found = jax.device_get(functional(source)[1])
    wanted = nnx.to_pure_dict(nnx.state(module))
    if "pos_embed" in found.keys() & wanted.keys():
        old, new, table = source.config, module.config, found["pos_embed"]
        prefix = table.shape[1] - math.prod(old.grid)  # rows that belong to no patch
        if prefix == wanted["pos_embed"].shape[1] - math.prod(new.grid):
            table = resize_positions(table, old.grid, new.grid, prefix, new.pos_resize)
            found["pos_embed"] = np.asarray(table)
    theirs, ours = (
        {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params).items()}
        for params in (found, wanted)
    )
    differ = sorted(p for p in ours.keys() | theirs.keys() if ours.get(p) != theirs.get(p))
    fresh = {path[0] for path in differ} & {"norm", "fc_norm", "head"}
    for path in differ:
        if path[0] not in fresh:
            raise UserError(
                f"config.model_init = '{spec}' does not fit config.model: {'/'.join(path)} has "
                f"shape {theirs.get(path, 'none')}, expected {ours.get(path, 'none')}"
            )
    return {k: v for k, v in found.items() if k not in fresh}, sorted(fresh & wanted.keys())


def read(path):
    """The tensors of a safetensors file, a flat dict of numpy arrays in float32."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}; pass a .safetensors file or the workdir of a run")
    if path.suffix != ".safetensors":
        raise UserError(f"{path.name}: weights are read from .safetensors files; convert it first")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if not 0 < header <= min(MAX_HEADER_BYTES, path.stat().st_size):
        raise UserError(f"{path} is no safetensors file, or it was cut off; fetch it again")
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: _float32(file, key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no safetensors file, or it was cut off: {error}") from error


def _float32(file, key):
    value = file.get_tensor(key)
    return value.astype(np.float32) if value.dtype.kind in "fV" else value
