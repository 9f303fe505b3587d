"""The options and the preprocessing of a model in files that this project writes. Imports no JAX.

They are the group `vit_jax` of a config.json, or of the metadata of a safetensors file, because
neither timm nor transformers has all of them.
"""

import dataclasses

from vit_jax import variants
from vit_jax.errors import UserError, printable
from vit_jax.pretrained._card import Card, View, number, numbers, typed
from vit_jax.pretrained.timm_config import CROP_MODES, INTERPOLATIONS
from vit_jax.variants import ViTConfig

KEY = "vit_jax"
VIEW = (*View._fields, "class_names")
# Options of `ViTConfig` that affect neither the weights nor the outputs at evaluation.
RUNTIME_OPTIONS = {
    *("dtype", "patch_embed", "drop_path", "drop_path_uniform", "dropout"),
    *("remat", "scan", "attn", "init"),
}


def stated(config):
    """Return the options of a `ViTConfig` that determine its weights and outputs.

    Equal models have equal options: None is replaced by what it stands for, and options that have
    no effect by their defaults.
    """
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(ViTConfig)
        if field.name not in RUNTIME_OPTIONS
    }
    learned = config.pos_embed == "learned"
    no_embed_class = learned and config.no_embed_class and config.prefix > 0
    return options | {
        "class_token": config.has_class_token,
        "fc_norm": config.norm_after_pool,
        "rep_size": config.rep_size if config.num_classes else 0,
        "k_bias": config.k_bias or not config.qkv_bias,
        "no_embed_class": no_embed_class,
        "embed_reg": learned
        and bool(config.reg_tokens and config.embed_reg and not no_embed_class),
    }


def group(config, view):
    """Return the group `vit_jax`.

    Args:
      config: a `ViTConfig`.
      view: a dict with the keys of `VIEW`, attributes of `inference.LoadedModel`.
    """
    return {"options": stated(config)} | {key: view[key] for key in VIEW}


def card(path, group):
    """Return the `Card` of a group `vit_jax` in a file.

    Raises:
      UserError: if a value is of the wrong type or not allowed.
    """
    options = typed({KEY: group}, KEY, dict) and typed(group, "options", dict)
    known = {field.name for field in dataclasses.fields(ViTConfig)} - RUNTIME_OPTIONS
    if unknown := sorted(options.keys() - known):
        raise UserError(f"options of {KEY} are unknown: {printable(', '.join(unknown))}")
    variants.parse("S/16", **options)
    view = View(
        numbers(group, "mean"),
        numbers(group, "std"),
        number(group, "crop"),
        typed(group, "interpolation", str),
        typed(group, "crop_mode", str),
    )
    if not (0 < view.crop <= 1 and min(view.std, default=0) > 0):
        raise UserError("crop must be above 0 and at most 1, and std above 0")
    if view.interpolation not in INTERPOLATIONS or view.crop_mode not in CROP_MODES:
        raise UserError("interpolation or crop_mode is unknown")
    names = typed(group, "class_names", list, None)
    if names is not None and not all(isinstance(name, str) for name in names):
        raise UserError("class_names must be strings")
    return Card(
        path=path,
        name="",
        options=options,
        preprocessing=view,
        class_names=names and [printable(name) for name in names],
        notes=(),
    )
