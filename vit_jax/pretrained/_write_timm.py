"""Write weights as timm reads them: names of tensors, and a config.json. Imports no JAX.

timm's architectures fix some options, such as the epsilon of LayerNorm. The architecture of the
catalog that needs the fewest changes is used; `model_args` in config.json has the changes.
"""

import functools
import re

import numpy as np

from vit_jax import catalog, variants
from vit_jax.errors import UserError
from vit_jax.pretrained import _own_card, resnet, timm
from vit_jax.variants import ViTConfig

POOLS = {"cls": "token", "gap": "avg", "map": "map"}
# Architectures that have options which are not in the catalog: used only if nothing changes.
SPECIAL = re.compile(r"_(pe|sapiens2|lingbot|tipsv2)_?")
# Options that are no arguments of timm's VisionTransformer and Eva.
FIXED = {
    "VisionTransformer": ("norm", "norm_eps", "dist_token", "mlp"),
    "Eva": ("norm", "norm_eps", "dist_token", "rope"),
}
# Our option: timm's argument, in both classes and in each.
ARGUMENTS = {
    "patch": "patch_size",
    "width": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "class_token": "class_token",
    "no_embed_class": "no_embed_class",
    "qkv_bias": "qkv_bias",
    "qk_norm": "qk_norm",
    "layer_scale_init": "init_values",
}
CLASS_ARGUMENTS = {
    "VisionTransformer": {
        "reg_tokens": "reg_tokens",
        "pos_embed": "pos_embed",
        "embed_norm": "pre_norm",
        "fc_norm": "fc_norm",
        "attn_norm": "scale_attn_norm",
        "mlp_norm": "scale_mlp_norm",
        "act": "act_layer",
    },
    "Eva": {
        "reg_tokens": "num_reg_tokens",
        "pos_embed": "use_abs_pos_emb",
        "embed_norm": "use_pre_transformer_norm",
        "fc_norm": "use_fc_norm",
        "attn_norm": "scale_attn_inner",
        "mlp_norm": "scale_mlp",
        "mlp": "swiglu_mlp",
        "rope_temperature": "rope_temperature",
        "rope_order": "rope_grid_indexing",
        "rope_grid": "ref_feat_shape",
        "k_bias": "attn_type",
    },
}
VALUES = {  # timm's argument: our value -> timm's
    "pos_embed": {"learned": "learn", "none": "none"},
    "use_abs_pos_emb": {"learned": True, "none": False},
    "swiglu_mlp": {"mlp": False, "swiglu": True},
    "rope_grid_indexing": {"yx": "ij", "xy": "xy"},
    "attn_type": {True: "rope", False: "eva"},
}


def files(config, params, view):
    """Return what to write.

    Args:
      config: a `ViTConfig` or a `ResNetConfig`.
      params: {path: numpy array}.
      view: as in `_own_card.group`.

    Returns:
      {name of the tensor: array}, and {name of the file: contents of a JSON file}.

    Raises:
      UserError: if timm has no such model.
    """
    if not isinstance(config, ViTConfig):
        return _resnet_files(config, params, view)
    wanted = _own_card.stated(config)
    cls = _class(wanted)
    _check(wanted, cls)
    architecture, args = _choose(wanted, cls)
    args |= {"img_size": config.image, "in_chans": config.channels}
    args |= {"num_classes": config.num_classes, "global_pool": POOLS[config.pool]}
    cfg = {
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if config.dist_token else "head",
    }
    card = _card(architecture, args, config.width, cfg, config, view)
    return _split(timm.tensors(params), wanted, cls), {"config.json": card}


def _resnet_files(config, params, view):
    """Return what to write of a ResNet; arguments and result as those of `files`."""
    name = variants.resnet_name(config)
    if len(config.layers) != 4 or name is None or config.width != variants.parse(name).width:
        layers = "-".join(map(str, config.layers))
        raise UserError(
            f"--to=timm: timm has no ResNet of {layers} {config.block} blocks of width "
            f"{config.width}; pass --to=vit_jax"
        )
    args = {"in_chans": config.channels, "num_classes": config.num_classes, "global_pool": "avg"}
    cfg = {"fixed_input_size": False, "first_conv": "conv1", "classifier": "fc"}
    features = list(variants.convolutions(config).values())[-1][3]
    card = _card(name, args, features, cfg, config, view)
    tensors = resnet.tensors(params)
    norms = [key.removesuffix("running_var") for key in tensors if key.endswith(".running_var")]
    tensors |= {f"{norm}{resnet.COUNTER}": np.zeros((), np.int64) for norm in norms}
    return tensors, {"config.json": card}


def _card(architecture, args, features, cfg, config, view):
    """Return the contents of config.json.

    Args:
      architecture: timm's name.
      args: `model_args`.
      features: channels of the pooled features.
      cfg: further keys of `pretrained_cfg`.
      config: a `ViTConfig` or a `ResNetConfig`.
      view: as in `_own_card.group`.
    """
    card = {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": features,
        "global_pool": args["global_pool"],
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [config.channels, config.image, config.image],
            "interpolation": view["interpolation"],
            "crop_pct": view["crop"],
            "crop_mode": view["crop_mode"],
            "mean": view["mean"],
            "std": view["std"],
            "num_classes": config.num_classes,
            **cfg,
        },
        _own_card.KEY: _own_card.group(config, view),
    }
    return card | ({"label_names": view["class_names"]} if view["class_names"] else {})


def _class(options):
    """Return the class of timm that has such models."""
    eva = options["rope"] != "none" or not options["k_bias"]
    return "Eva" if eva else "VisionTransformer"


def _check(wanted, cls):
    """Raise UserError for what no model of a class of timm has."""
    problems = {
        "pool = 'cls_gap'": wanted["pool"] == "cls_gap",
        f"rep_size = {wanted['rep_size']}": wanted["rep_size"],
        "positions of [CLS] but not of the registers": wanted["pos_embed"] == "learned"
        and wanted["reg_tokens"]
        and not (wanted["no_embed_class"] or wanted["embed_reg"]),
        f"embed_norm = {wanted['embed_norm']} with patch_bias = {wanted['patch_bias']}": (
            wanted["embed_norm"] == wanted["patch_bias"]
        ),
        f"act = {wanted['act']!r} with RoPE, or without a bias of the keys": cls == "Eva"
        and wanted["act"] != "gelu"
        and (wanted["mlp"] != "swiglu" or wanted["pool"] == "map"),
        "norm = 'post'": wanted["norm"] == "post",
        "norm = 'res_post' with LayerScale": wanted["norm"] == "res_post"
        and wanted["layer_scale_init"] is not None,
        "registers with a distillation token": wanted["dist_token"] and wanted["reg_tokens"],
    }
    for what, found in problems.items():
        if found:
            raise UserError(f"--to=timm: timm has no model with {what}; pass --to=vit_jax")


@functools.cache
def _architectures():
    """Return {timm's name: `_own_card.stated` options}, of the catalog."""
    names = catalog.names(weights=False)
    return {name: _own_card.stated(ViTConfig(**catalog.architecture(name))) for name in names}


def _choose(wanted, cls):
    """Return the name of an architecture, and the `model_args` that differ from it."""
    best = None
    for name, base in _architectures().items():
        if _class(base) == cls and all(base[key] == wanted[key] for key in FIXED[cls]):
            args = _arguments(base, wanted, cls)
            if None in args.values():  # timm's create_model ignores arguments of None
                continue
            rank = (len(args), not name.startswith("vit_"), len(name))
            if not (args and SPECIAL.search(name)) and (best is None or rank < best[0]):
                best = rank, name, args
    if best is None:
        fixed = ", ".join(f"{key} = {wanted[key]!r}" for key in FIXED[cls])
        raise UserError(f"--to=timm: timm has no model with {fixed}; pass --to=vit_jax")
    return best[1:]


def _arguments(base, wanted, cls):
    """Return the arguments of timm that change one architecture into another model."""
    args = {}
    norm_follows_pool = base["pool"] != wanted["pool"]
    for option, argument in (ARGUMENTS | CLASS_ARGUMENTS[cls]).items():
        ours, theirs = wanted[option], base[option]
        if option == "layer_scale_init" and ours is not None and theirs is not None:
            continue  # the weights replace the initial value
        if ours != theirs or (option == "fc_norm" and norm_follows_pool):
            args[argument] = VALUES[argument][ours] if argument in VALUES else ours
    if cls == "Eva":
        if args.get("ref_feat_shape"):
            args["ref_feat_shape"] = [wanted["rope_grid"]] * 2
        if "use_fc_norm" in args:
            args["use_post_transformer_norm"] = not wanted["fc_norm"]
        if "qkv_bias" in args:
            args["attn_type"] = VALUES["attn_type"][wanted["k_bias"]]
        args["qkv_fused"] = True
        if wanted["mlp"] == "swiglu":
            args["swiglu_align_to"] = 1  # a gate and values in separate tensors
    if any(base[key] != wanted[key] for key in ("width", "mlp_dim")):
        args["mlp_ratio"] = _ratio(wanted, cls)
    return args


def _ratio(wanted, cls):
    """Return `mlp_ratio`: timm computes int(width * mlp_ratio) hidden units."""
    packed = cls == "VisionTransformer" and wanted["mlp"] == "swiglu"
    units = wanted["mlp_dim"] * (2 if packed else 1)
    ratio = units / wanted["width"]
    return ratio if int(wanted["width"] * ratio) == units else (units + 0.5) / wanted["width"]


def _split(tensors, wanted, cls):
    """Split the tensors that `timm.use_timm_names` joins, as the class of timm has them."""
    if cls != "Eva":
        return tensors
    result = {}
    freqs = {}
    for name, x in tensors.items():
        base, _, kind = name.rpartition(".")
        name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        if name.endswith(".attn.rope.freqs"):
            freqs[int(name.split(".")[1])] = x
        elif name.endswith(".attn.qkv.bias") and not wanted["k_bias"]:
            base = base.removesuffix("qkv")
            result[f"{base}q_bias"], result[f"{base}v_bias"] = np.split(x, 2)
        elif base.endswith(".mlp.fc1") and base.startswith("blocks") and wanted["mlp"] == "swiglu":
            result[f"{base}_g.{kind}"], result[f"{base}_x.{kind}"] = np.split(x, 2)
        else:
            result[name] = x
    if freqs:
        result["rope.freqs"] = np.stack([freqs[i] for i in sorted(freqs)], axis=1)
    return result
