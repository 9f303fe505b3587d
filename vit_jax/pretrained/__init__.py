"""Load pretrained weights; each weight layout is a module of this package.

A weight file is opened by the module of its format (`_files`), wrappers such as `module.` are
removed from the names of its tensors (`_names`), and its layout is recognized (`_describe`).

A layout module has three functions:

* `matches(tensors) -> bool`: whether the tensors have this layout.
* `options(tensors) -> dict`: the options of `ViTConfig` or `ResNetConfig` that names and shapes
  determine; those of a ResNet have "layers".
* `params(tensors, template) -> params`: the tensors as parameters of our model.

It may have `defaults(tensors) -> dict`: options that hold unless a config.json states others.

`tensors` is a flat dict of numpy arrays. `matches` and `options` only use names and shapes, and do
not import JAX. `template` is our parameter tree; only its paths and shapes are used.
"""

import dataclasses
import math

import numpy as np

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.pretrained import runs, timm_config
from vit_jax.pretrained._check_init import check_init, undetermined
from vit_jax.pretrained._describe import Description, describe, determine
from vit_jax.pretrained._files import is_run, origin, read
from vit_jax.pretrained._match import resolve
from vit_jax.pretrained._teacher import check_teacher, load_teacher
from vit_jax.workdir import storage

__all__ = [
    "Description",
    "check_init",
    "check_teacher",
    "describe",
    "init_params",
    "is_run",
    "load",
    "load_teacher",
    "origin",
    "preprocessing",
    "read",
    "runs",
]
# Modules of this package that are not weight layouts.
NON_MEMBERS = ("hf_config", "hub", "runs", "timm_config", "writing")


def load(spec, name=None, **overrides):
    """Load weights as a model: `load("file.safetensors", "vit_small_patch16_224")`.

    Args:
      spec: a weight file, a directory with one and its config.json, hf-hub:ORGANIZATION/NAME, or
        the workdir of a run. FILE#student is one of several sets of weights in a file.
      name: name of the model, with overrides after commas, or only overrides: "num_heads=3". It
        may be None if the file, or the config.json next to it, determines everything. With an
        override of the patch size, such as "flexivit_base,patch=24", the patch embedding and the
        positions are resized as in FlexiViT (arXiv:2212.08013, section 3.4).
      **overrides: options of the model that the file does not determine.

    Returns:
      A `vit.ViT` or a `resnet.ResNet`.

    Raises:
      UserError: if the file has no weights, weights in an unknown layout, or weights that
        contradict the name or the overrides. Only the number of classes and the image size of a
        name may differ.
    """
    if is_run(spec):
        if name or overrides:
            raise UserError(
                f"{spec} is a run, whose config determines the model; leave out the model name and "
                "overrides"
            )
        return runs.load_model(spec)

    from flax import nnx

    from vit_jax import models

    weights = determine(spec)
    config, _ = resolve(weights, name, overrides)
    try:
        # Abstract models: the weights would overwrite a random initialization.
        graph, template = nnx.split(models.build(config).module)
        source = _config_of_file(weights, config)
        shapes = nnx.to_pure_dict(nnx.state(models.build(source).module))
        params = weights.layout.params(weights.read(), shapes)
        if source is not config:
            _fit_inputs(params, nnx.to_pure_dict(template), source, config)
        return nnx.merge(graph, params)
    except ValueError as error:
        raise UserError(f"{spec}: {error}") from error


def _config_of_file(weights, config):
    """Return the config of the model in a file, whose patches may have another size."""
    patch = weights.options.get("patch")
    if patch is None or patch == config.patch:
        return config
    image = weights.options.get("image", patch)  # without learned positions, it does not matter
    return dataclasses.replace(config, patch=patch, image=image)


def _fit_inputs(weights, template, source, config):
    """Adapt the first kernel, and resize learned positions, to another model, in place.

    Args:
      weights: nested dict of arrays.
      template: parameter tree of the model; only its shapes are used.
      source: config of the model that the weights are from.
      config: config of the model.
    """
    import jax.numpy as jnp

    from vit_jax.layers.patch_embed import adapt_kernel, resize_positions

    if "pos_embed" in weights.keys() & template.keys():
        table = weights["pos_embed"]
        prefix = table.shape[1] - math.prod(source.grid)  # rows of prefix tokens such as [CLS]
        if prefix == template["pos_embed"].shape[1] - math.prod(config.grid):
            grids = source.grid, config.grid
            weights["pos_embed"] = resize_positions(table, *grids, prefix, config.pos_resize)
    for name in ("patch_embed", "stem"):
        if name in weights.keys() & template.keys():
            *size, channels, _ = template[name]["kernel"].shape
            kernel = adapt_kernel(np.asarray(weights[name]["kernel"]), tuple(size), channels)
            weights[name]["kernel"] = jnp.asarray(kernel)


def preprocessing(model, name):
    """Return the preprocessing that the weights of a file expect, by the name of the model.

    See `timm_config.preprocessing`; `describe` also reads the config.json next to the file.

    Args:
      model: a `vit.ViT` or a `resnet.ResNet`.
      name: name of the model, or None.

    Returns:
      {"mean", "std", "crop", "interpolation", "crop_mode"}, attributes of `inference.LoadedModel`.
    """
    c = model.config
    dino = getattr(c, "pos_resize", None) == "dino"
    return timm_config.preprocessing(name, c.image, c.channels, dino=dino)[0]._asdict()


def init_params(spec, module, config):
    """Load pretrained weights for fine-tuning a model.

    `check_init` finds most mismatches without loading the weights.

    Args:
      spec: a weight file or workdir, as in `load`.
      module: a ViT or a ResNet; only its shapes are used. Position embeddings are resized to its
        grid.
      config: `config.model`, for the options that a file does not determine.

    Returns:
      weights: a nested dict of numpy arrays, all or some of the module's weights.
      fresh: sorted names of the parts that keep their random initialization: a head for another
        number of classes, a layer before it that one model lacks, or a final norm that comes before
        pooling in one model and after it in the other.

    Raises:
      UserError: if the models differ in anything else.
    """
    import jax
    from flax import nnx, traverse_util

    from vit_jax.vit import functional

    if is_run(spec):
        source = load(storage.resolve(spec))
    elif variants.is_cnn(config.variant):
        source = load(spec)
    else:
        source = load(spec, **undetermined(module.config))
    weights = jax.device_get(functional(source)[1])
    template = nnx.to_pure_dict(nnx.state(module))
    _fit_inputs(weights, template, source.config, module.config)
    weights = jax.device_get(weights)
    theirs, ours = (
        {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params).items()}
        for params in (weights, template)
    )
    differ = sorted(p for p in ours.keys() | theirs.keys() if ours.get(p) != theirs.get(p))
    heads = {"norm", "fc_norm", "pre_logits", "head", "head_dist"}
    fresh = {path[0] for path in differ} & heads
    for path in differ:
        if path[0] not in fresh:
            raise UserError(
                f"config.model_init = '{spec}' does not match config.model: {'/'.join(path)} has "
                f"shape {theirs.get(path, 'none')}, expected {ours.get(path, 'none')}"
            )
    return {k: v for k, v in weights.items() if k not in fresh}, sorted(fresh & template.keys())
