"""Preprocessing of published weights by name, and timm's config.json. Imports no JAX.

The values are those of timm 1.0.31, `default_cfgs` in models/vision_transformer.py and
models/deit.py, unless a comment names another source.
"""

import re

from vit_jax import variants
from vit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from vit_jax.data.class_names import readable
from vit_jax.errors import UserError, printable
from vit_jax.pretrained._card import Card, number, numbers, shown, typed
from vit_jax.variants import SIZE_OPTIONS

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Start of the tag in timm's name: (mean, std, crop below 384 pixels, crop from 384 pixels). The
# first match counts. timm has no weights of DINO and MAE at 384 pixels.
PREPROCESSING = {
    "augreg": (HALF, HALF, 0.9, 1.0),
    "augreg2": (HALF, HALF, 0.9, 1.0),
    "orig": (HALF, HALF, 0.9, 1.0),
    "sam": (HALF, HALF, 0.9, 1.0),
    "bamboo": (CLIP_MEAN, CLIP_STD, 1.0, 1.0),
    "dino": (IMAGENET_MEAN, IMAGENET_STD, 0.9, 0.9),
    "mae": (IMAGENET_MEAN, IMAGENET_STD, 0.9, 0.9),
    "fb_in22k": (IMAGENET_MEAN, IMAGENET_STD, 1.0, 1.0),
    "fb": (IMAGENET_MEAN, IMAGENET_STD, 0.9, 1.0),
}
# Training checkpoints of DINO: eval_linear.py and eval_knn.py of facebookresearch/dino (7c446df)
# resize to 256 and crop 224.
DINO = (IMAGENET_MEAN, IMAGENET_STD, 0.875, 0.875)
LARGE_IMAGE = 384  # pixels; from here on, timm evaluates without cropping
POOLS = {"token": "cls", "avg": "gap", "map": "map"}  # timm's global_pool -> pool
SIZE_ARGS = {  # timm's model_args -> options of `ViTConfig`
    "patch_size": "patch",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
}
# model_args that the tensors determine, or that do not affect the outputs at evaluation.
IGNORED_ARGS = {
    *("img_size", "in_chans", "num_classes", "global_pool", "mlp_ratio", "qkv_bias", "init_values"),
    *("class_token", "no_embed_class", "fc_norm", "weight_init", "drop_rate", "pos_drop_rate"),
    *("patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "dynamic_img_size"),
    "strict_img_size",
}
# DeiT III is the ViT of timm with LayerScale and without a position for [CLS].
DEIT3_OPTIONS = {"layer_scale_init": 1.0, "no_embed_class": True}


def preprocessing(name, image, channels=3, dino=False):
    """Return the preprocessing of published weights by timm's name.

    Args:
      name: name of the model, such as "vit_small_patch16_384.augreg_in1k", or None.
      image: image size of the weights, pixels.
      channels: channels of an image.
      dino: whether the weights are from DINO's own code.

    Returns:
      mean: one value per channel.
      std: one value per channel.
      crop: crop ratio.
      known: whether these values are known. Unknown names, such as S/16 and timm's names without a
        tag, get those of AugReg, timm's default weights.
    """
    base, _, tag = (name or "").partition(",")[0].partition(".")
    if base.startswith("deit") and not tag:
        tag = "fb"  # the only weights of these names
    rows = (row for start, row in PREPROCESSING.items() if re.match(rf"{start}(_|$)", tag))
    row = next(rows, DINO if dino else None)
    known = row is not None and channels == 3
    mean, std, crop, large_crop = row if known else PREPROCESSING["augreg"]
    if not known:
        mean = std = HALF[:1] * channels
    return mean, std, large_crop if image >= LARGE_IMAGE else crop, known


def plain_name(name):
    """Split a name into that of the same ViT, and the options of DeiT III if it is one."""
    if name.startswith("deit3_"):
        return name.replace("deit3_", "deit_", 1), DEIT3_OPTIONS
    return name, {}


def card(path, config):
    """Return the `Card` of a parsed config.json of timm."""
    # Old files have no group pretrained_cfg.
    cfg = config | typed(config, "pretrained_cfg", dict, {})
    architecture = typed(config, "architecture", str)
    args = typed(config, "model_args", dict, {})
    base, implied = plain_name(architecture)
    unknown = sorted(args.keys() - SIZE_ARGS.keys() - IGNORED_ARGS)
    try:
        supported = bool(variants.parse(base)) and "," not in base
    except UserError:
        supported = False
    if not supported:
        raise UserError(f"architecture {architecture!r} is not supported")
    if unknown:
        raise UserError(f"model_args {', '.join(unknown)} are not supported")
    tag = typed(cfg, "tag", str, "")
    values = None
    if any(cfg.get(key) is not None for key in ("mean", "std", "crop_pct")):
        values = numbers(cfg, "mean"), numbers(cfg, "std"), number(cfg, "crop_pct")
        if not (0 < values[2] <= 1 and min(values[1], default=0) > 0):
            raise UserError("crop_pct must be above 0 and at most 1, and std above 0")
    named = variants.parse(base)
    options = {key: getattr(named, key) for key in SIZE_OPTIONS if key != "mlp_dim"} | implied
    options |= {SIZE_ARGS[key]: x for key, x in args.items() if key in SIZE_ARGS}
    options |= {"pool": POOLS.get(cfg.get("global_pool")), "num_classes": cfg.get("num_classes")}
    for key, x in options.items():
        if key != "pool" and x is not None and (type(x) is not int or x < 0):
            raise UserError(f"{key} must be an integer of at least 0; got {x!r}")
    names = typed(cfg, "label_names", list, None) or typed(cfg, "labels", list, None)
    if names is not None:
        descriptions = typed(cfg, "label_descriptions", dict, {})
        if not all(isinstance(name, str) for name in (*names, *descriptions.values())):
            raise UserError("label_names and label_descriptions must be strings")
        names = [printable(descriptions.get(name, name)) for name in readable(names)]
    expected = {"interpolation": "bicubic", "crop_mode": "center"}
    notes = tuple(
        f"{key.replace('_', ' ')} {shown(cfg[key])} is not supported and replaced by {default}"
        for key, default in expected.items()
        if cfg.get(key) not in (None, default)
    )
    return Card(
        path=path,
        name=f"{architecture}.{tag}" if tag and "." not in architecture else architecture,
        options={key: x for key, x in options.items() if x is not None},
        preprocessing=values,
        class_names=names,
        notes=notes,
    )
