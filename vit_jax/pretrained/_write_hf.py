"""Write weights as transformers reads them: names, config.json and preprocessor_config.json.

Imports no JAX.
"""

from vit_jax.errors import UserError
from vit_jax.pretrained import _own_card, hf, hf_config, timm

# Options that every model of a kind has, as `_own_card.stated` returns them.
COMMON = {
    "norm": ("pre",),
    "embed_norm": (False,),
    "patch_bias": (True,),
    "mlp_norm": (False,),
    "attn_norm": (False,),
    "qk_norm": (False,),
    "rep_size": (0,),
    "fc_norm": (False,),
    "class_token": (True,),
}
POSITIONS = {"rope": ("none",), "pos_embed": ("learned",), "no_embed_class": (False,)}
VIT = POSITIONS | {"reg_tokens": (0,), "mlp": ("mlp",), "k_bias": (True,), "pool": ("cls",)}
DINOV2 = POSITIONS | {"embed_reg": (False,), "k_bias": (True,), "act": ("gelu",)}
DINOV2 |= {"dist_token": (False,)}
ALLOWED = {
    "vit": VIT,
    "deit": VIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
    "dinov3_vit": {
        "pos_embed": ("none",),
        "k_bias": (False,),
        "dist_token": (False,),
        "num_classes": (0,),
        "act": ("gelu",),
        "rope_order": ("yx",),
        "rope_temperature": (100.0,),
    },
}
CLASSES = {  # without and with a classifier
    "vit": ("ViTModel", "ViTForImageClassification"),
    "deit": ("DeiTModel", "DeiTForImageClassificationWithTeacher"),
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersForImageClassification",
    ),
    "dinov3_vit": ("DINOv3ViTModel", None),
}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def kind(options):
    """Return transformers' model_type of a model with these options.

    Raises:
      UserError: if it has none.
    """
    if options["rope"] == "dinov3":
        found = "dinov3_vit"
    elif options["layer_scale_init"] is not None:
        found = "dinov2_with_registers" if options["reg_tokens"] else "dinov2"
    else:
        found = "deit" if options["dist_token"] else "vit"
    allowed = COMMON | ALLOWED[found]
    if found.startswith("dinov2"):
        allowed = allowed | {"pool": ("cls_gap",) if options["num_classes"] else ("cls", "cls_gap")}
    for key, values in allowed.items():
        if options[key] not in values:
            raise UserError(
                f"--to=hf: {CLASSES[found][0]} of transformers has no {key} = {options[key]!r}; "
                "pass --to=timm or --to=vit_jax"
            )
    if found == "dinov3_vit" and (options["layer_scale_init"] is None or not options["reg_tokens"]):
        raise UserError(
            "--to=hf: DINOv3ViTModel of transformers has LayerScale and registers; pass --to=timm "
            "or --to=vit_jax"
        )
    return found


def files(config, params, view):
    """Return what to write; arguments and result as in `_write_timm.files`.

    Raises:
      UserError: if transformers has no such model.
    """
    options = _own_card.stated(config)
    found = kind(options)
    card = {key: options[ours] for key, ours in hf_config.SIZES.items()} | {
        "model_type": found,
        "architectures": [CLASSES[found][bool(config.num_classes)]],
        "intermediate_size": config.mlp_dim,
        "hidden_act": ACTIVATIONS[config.act],
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
    }
    gated = config.mlp == "swiglu"
    if found == "dinov3_vit":
        bias = config.qkv_bias
        card |= {"query_bias": bias, "key_bias": False, "value_bias": bias}
        card |= {"num_register_tokens": config.reg_tokens, "use_gated_mlp": gated}
        card |= {"rope_theta": config.rope_temperature}
        card |= {"hidden_act": hf_config.GATED} if gated else {}
    else:
        card |= {"qkv_bias": config.qkv_bias}
    if found.startswith("dinov2"):
        card |= {"use_swiglu_ffn": gated, "mlp_ratio": _ratio(config)}
        if config.reg_tokens:
            card |= {"num_register_tokens": config.reg_tokens}
    if config.num_classes:
        names = view["class_names"] or [f"LABEL_{i}" for i in range(config.num_classes)]
        card["id2label"] = {str(i): name for i, name in enumerate(names)}
        card["label2id"] = {name: i for i, name in enumerate(names)}
    card[_own_card.KEY] = _own_card.group(config, view)
    tensors = hf.tensors(timm.tensors(params), found)
    return tensors, {
        "config.json": card,
        "preprocessor_config.json": _preprocessing(config.image, view),
    }


def _ratio(config):
    """Return `mlp_ratio` of DINOv2, an integer.

    transformers rounds the units of SwiGLU, int(2 / 3 * width * mlp_ratio), up to a multiple of 8.
    """
    for ratio in range(1, config.mlp_dim + 1):
        units = config.width * ratio
        if config.mlp == "swiglu":
            units = -(-int(units * 2 / 3) // 8) * 8
        if units == config.mlp_dim:
            return ratio
    raise UserError(
        f"--to=hf: Dinov2Model has no mlp_dim = {config.mlp_dim} with width = {config.width} and "
        f"mlp = {config.mlp!r}; pass --to=timm or --to=vit_jax"
    )


def _preprocessing(image, view):
    """Return the contents of preprocessor_config.json."""
    square = {"height": image, "width": image}
    crop = view["crop_mode"] == "center"
    filters = {name: number for number, name in hf_config.FILTERS.items()}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(image / view["crop"])} if crop else square,
        "resample": filters[view["interpolation"]],
        "do_center_crop": crop,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": view["mean"],
        "image_std": view["std"],
    }
