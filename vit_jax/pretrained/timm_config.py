"""Preprocessing of published weights by name, and timm's config.json. Imports no JAX."""

import dataclasses
import re

from vit_jax import catalog, variants
from vit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from vit_jax.data.class_names import readable
from vit_jax.errors import UserError, printable
from vit_jax.pretrained._card import Card, View, number, numbers, shown, typed
from vit_jax.variants import SIZE_OPTIONS

HALF = (0.5,)  # mean and standard deviation per channel of AugReg, timm's default weights
# Training checkpoints of DINO: eval_linear.py and eval_knn.py of facebookresearch/dino (7c446df)
# resize to 256 and crop 224.
DINO = View(IMAGENET_MEAN, IMAGENET_STD, 0.875)
LARGE_IMAGE = 384  # pixels; from here on, timm evaluates without cropping
SMALL_CROP = 0.9  # crop ratio of most weights of timm below that size
INTERPOLATIONS = ("bicubic", "bilinear")
CROP_MODES = ("center", "squash")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")  # of timm and of `ViTConfig`
POOLS = {"token": "cls", "avg": "gap", "map": "map"}  # timm's global_pool -> pool
# timm's model_args -> options of `ViTConfig`, and their values where they differ.
ARGS = {
    "patch_size": "patch",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
    "act_layer": "act",
    "rope_temperature": "rope_temperature",
    "rope_grid_indexing": "rope_order",
    "ref_feat_shape": "rope_grid",
}
VALUES = {"rope_grid_indexing": {"ij": "yx", "xy": "xy"}}
# model_args that change options which the tensors determine.
DETERMINED_ARGS = {
    "mlp_ratio": ("mlp_dim",),
    "qkv_bias": ("qkv_bias", "k_bias"),
    "attn_type": ("k_bias",),
    "init_values": ("layer_scale_init",),
    "class_token": ("class_token",),
    "no_embed_class": ("no_embed_class", "embed_reg"),
    "reg_tokens": ("reg_tokens", "embed_reg"),
    "num_reg_tokens": ("reg_tokens", "embed_reg"),
    "fc_norm": ("fc_norm",),
    "use_fc_norm": ("fc_norm",),
    "use_post_transformer_norm": ("fc_norm",),
    "pos_embed": ("pos_embed", "no_embed_class", "embed_reg"),
    "use_abs_pos_emb": ("pos_embed", "no_embed_class", "embed_reg"),
    "pre_norm": ("embed_norm", "patch_bias"),
    "use_pre_transformer_norm": ("embed_norm", "patch_bias"),
    "qk_norm": ("qk_norm",),
    "scale_attn_norm": ("attn_norm",),
    "scale_attn_inner": ("attn_norm",),
    "scale_mlp_norm": ("mlp_norm",),
    "scale_mlp": ("mlp_norm",),
    "swiglu_mlp": ("mlp", "mlp_dim"),
}
# model_args that do not affect the outputs at evaluation, or only with others.
IGNORED_ARGS = {
    *("img_size", "in_chans", "num_classes", "global_pool", "weight_init", "drop_rate"),
    *("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("dynamic_img_size", "strict_img_size", "qkv_fused", "swiglu_align_to"),
}
# The same for a ResNet.
RESNET_ARGS = {
    *("in_chans", "num_classes", "drop_rate", "drop_path_rate", "drop_block_rate"),
    *("zero_init_last", "global_pool"),
}
# Options that a config.json does not state, because other keys do or the name cannot.
UNSTATED = {
    *("image", "num_classes", "channels", "rep_size", "pos_resize", "dtype", "patch_embed"),
    *("drop_path", "drop_path_uniform", "dropout", "remat", "scan", "attn", "init"),
}


def preprocessing(name, image, channels=3, dino=False):
    """Return the preprocessing of published weights by timm's name.

    A name without a tag stands for all weights of the architecture, which may differ. Fine-tuned
    weights of another image size have the crop ratio of the weights of that size, if there are any.

    Args:
      name: name of the model, such as "vit_small_patch16_384.augreg_in1k", or None.
      image: image size of the weights, pixels.
      channels: channels of an image.
      dino: whether the weights are from DINO's own code.

    Returns:
      A `View`, and the names of what is assumed in it: "mean", "std", and "crop", which includes
      the interpolation and the crop mode.
    """
    everything = ("mean", "std", "crop")
    crop = 1.0 if image >= LARGE_IMAGE else SMALL_CROP
    base = (name or "").partition(",")[0]
    rows = _rows(base, image)
    views = [view_of(row) for row in rows]
    if dino and channels == 3 and (not views or ("." not in base and len(set(views)) > 1)):
        return DINO, ()
    if channels != 3:
        return View(HALF * channels, HALF * channels, crop), everything
    if not views:  # an unknown tag, or an unknown name
        rows = _rows(base.partition(".")[0], image)
        views = [view_of(row)._replace(crop=crop) for row in rows]
        return (views or [View(HALF * 3, HALF * 3, crop)])[0], everything
    same = {key for key in View._fields if len({getattr(view, key) for view in views}) == 1}
    assumed = [key for key in ("mean", "std") if key not in same]
    view = views[0]
    resized = any(row["image"] != image for row in rows)
    if resized:
        view = view._replace(crop=crop)
    if resized or not same >= {"crop", "interpolation", "crop_mode"}:
        assumed.append("crop")
    return view, tuple(assumed)


def _rows(name, image):
    """Return the rows of the catalog of a name, for this image size if there are any."""
    resized = re.sub(r"_\d+(?=\.|$)", f"_{image}", name, count=1)
    rows = (catalog.weights(resized) or catalog.weights(name)) if name else {}
    return list(rows.values())


def view_of(row):
    """Return the `View` of a row of the catalog."""
    values = {key: row[key] for key in View._fields}
    return View(**values | {key: tuple(row[key]) for key in ("mean", "std")})


def architecture_options(name):
    """Return the options of the model that a name of timm's architectures determines.

    Raises:
      UserError: if the name is unknown.
    """
    config = variants.parse(name)
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in UNSTATED
    }
    if variants.is_cnn(name):
        return options
    return options | {"class_token": config.has_class_token, "fc_norm": config.norm_after_pool}


def catalog_card(path, repository):
    """Return the `Card` of a repository of the Hugging Face Hub without a config.json, or None."""
    name = catalog.hub_name(repository)
    if name is None:
        return None
    options = architecture_options(name)
    image = catalog.weights(name)[name]["image"]
    return Card(
        path=path,
        name=name,
        options=options | _image_option(options, image),
        preprocessing=view_of(catalog.weights(name)[name]),
        class_names=None,
        notes=(),
    )


def _image_option(options, image):
    """Return the image size as an option, if the tensors do not determine it."""
    learned = "layers" not in options and options.get("pos_embed", "learned") == "learned"
    return {} if learned else {"image": image}


def card(path, config):
    """Return the `Card` of a parsed config.json of timm."""
    # Old files have no group pretrained_cfg.
    cfg = config | typed(config, "pretrained_cfg", dict, {})
    architecture = typed(config, "architecture", str)
    args = typed(config, "model_args", dict, {})
    is_cnn = variants.is_cnn(architecture)
    known = RESNET_ARGS if is_cnn else {*ARGS, *DETERMINED_ARGS, *IGNORED_ARGS}
    unknown = sorted(args.keys() - known)
    if not is_cnn and args.get("act_layer") not in (None, *ACTIVATIONS):
        unknown.append("act_layer")
    pool = cfg.get("global_pool")
    if is_cnn and pool not in (None, "avg"):
        raise UserError(f"global_pool {shown(pool)} of a ResNet is not supported, only avg")
    try:
        if "," in architecture:
            raise UserError("overrides")
        options = architecture_options(architecture)
    except UserError:
        raise UserError(f"architecture {architecture!r} is not supported") from None
    if unknown:
        raise UserError(f"model_args {', '.join(unknown)} are not supported")
    tag = typed(cfg, "tag", str, "")
    name = f"{architecture}.{tag}" if tag and "." not in architecture else architecture
    image = _image(cfg, args) or variants.parse(architecture).image
    options = options if is_cnn else _changed(options, args, POOLS.get(pool))
    options |= _image_option(options, image)
    if cfg.get("num_classes") is not None:
        options["num_classes"] = cfg["num_classes"]
    for key in (*SIZE_OPTIONS, "num_classes", "image"):
        x = options.get(key, 0)
        if type(x) is not int or x < 0:
            raise UserError(f"{key} must be an integer of at least 0; got {x!r}")
    # Check the options; the image size is often that of the tensors, which are not known here.
    variants.parse(architecture, **{"image": options.get("patch")} | options)
    names = typed(cfg, "label_names", list, None) or typed(cfg, "labels", list, None)
    if names is not None:
        descriptions = typed(cfg, "label_descriptions", dict, {})
        if not all(isinstance(name, str) for name in (*names, *descriptions.values())):
            raise UserError("label_names and label_descriptions must be strings")
        names = [printable(descriptions.get(name, name)) for name in readable(names)]
    view, notes = _view(cfg)
    return Card(
        path=path,
        name=name,
        options=options,
        preprocessing=view,
        class_names=names,
        notes=notes,
    )


def _changed(options, args, pool):
    """Return the options after timm's model_args and global_pool, without those in the tensors."""
    changes = {}
    dropped = set()
    for key, value in args.items():
        if key in ARGS and value is not None:
            if isinstance(value, list):
                value = value[0] if value else None
            value = VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value
            changes[ARGS[key]] = value
        dropped.update(DETERMINED_ARGS.get(key, ()))
    if "width" in changes:
        dropped.add("mlp_dim")
    if pool and pool != options["pool"]:
        changes["pool"] = pool
        dropped.add("fc_norm")  # the final norm moves with the pooling
    return {key: x for key, x in (options | changes).items() if key not in dropped}


def _image(cfg, args):
    """Return the image size of a config.json, or None."""
    size = args.get("img_size") or typed(cfg, "input_size", list, None)
    return size[-1] if isinstance(size, list) and size else size


def _view(cfg):
    """Return the `View` of a config.json or None, and notes."""
    if all(cfg.get(key) is None for key in ("mean", "std", "crop_pct")):
        return None, ()
    view = View(numbers(cfg, "mean"), numbers(cfg, "std"), number(cfg, "crop_pct"))
    if not (0 < view.crop <= 1 and min(view.std, default=0) > 0):
        raise UserError("crop_pct must be above 0 and at most 1, and std above 0")
    notes = ()
    for key, choices in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        value = cfg.get(key)
        if value in choices:
            view = view._replace(**{key: value})
        elif value is not None:
            what = key.replace("_", " ")
            notes += (f"{what} {shown(value)} is not supported and replaced by {choices[0]}",)
    return view, notes
