"""The options and the preprocessing of a model in files that this project writes. Imports no JAX.

They are the group `vit_jax` of a config.json, or of the metadata of a safetensors file, because
neither timm nor transformers has all of them.
"""

import dataclasses

from vit_jax import variants
from vit_jax.errors import UserError, printable
from vit_jax.pretrained._card import Card, View, number, numbers, typed
from vit_jax.pretrained.timm_config import CROP_MODES, INTERPOLATIONS
from vit_jax.variants import ResNetConfig, ViTConfig

KEY = "vit_jax"
VIEW = (*View._fields, "class_names")
# Options that affect neither the weights nor the outputs at evaluation.
RUNTIME_OPTIONS = {
    *("dtype", "patch_embed", "drop_path", "drop_path_uniform", "dropout"),
    *("remat", "scan", "attn", "init"),
}


def stated(config):
    """Return the options of a `ViTConfig` or `ResNetConfig` that determine weights and outputs.

    Equal models have equal options: None is replaced by what it stands for, and options that have
    no effect by their defaults.
    """
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in RUNTIME_OPTIONS
    }
    if isinstance(config, ResNetConfig):
        return options
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
      config: a `ViTConfig` or a `ResNetConfig`.
      view: a dict with the keys of `VIEW`, attributes of `inference.LoadedModel`.
    """
    return {"options": stated(config)} | {key: view[key] for key in VIEW}


def card(path, group):
    """Return the `Card` of a group `vit_jax` in a file.

    Raises:
      UserError: if a value is of the wrong type or not allowed.
    """
    options = typed({KEY: group}, KEY, dict) and typed(group, "options", dict)
    is_cnn = "layers" in options
    if is_cnn:
        options = options | {"layers": tuple(typed(options, "layers", list))}
    fields = dataclasses.fields(ResNetConfig if is_cnn else ViTConfig)
    known = {field.name for field in fields} - RUNTIME_OPTIONS
    if unknown := sorted(options.keys() - known):
        raise UserError(f"options of {KEY} are unknown: {printable(', '.join(unknown))}")
    variants.parse("resnet18" if is_cnn else "S/16", **options)
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
