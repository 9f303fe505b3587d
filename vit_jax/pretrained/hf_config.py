"""The config.json and preprocessor_config.json of Hugging Face's transformers. Imports no JAX."""

from vit_jax.errors import UserError, printable
from vit_jax.pretrained._card import Card, View, number, numbers, read, shown, typed

MODELS = {  # model_type
    *("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"),
    *("clip", "clip_vision_model", "siglip", "siglip_vision_model"),
}
ACTIVATIONS = {  # hidden_act -> act
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
GATED = "silu"  # hidden_act of DINOv3 with a gated MLP
SIZES = {  # transformers' key -> option
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "patch_size": "patch",
    "num_channels": "channels",
}
FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's number of the filter


def card(path, config):
    """Return the `Card` of a parsed config.json; None if it is not one of transformers' ViTs.

    Raises:
      UserError: if a value is of the wrong type or not supported.
    """
    if config.get("model_type") not in MODELS:
        return None
    vision = typed(config, "vision_config", dict, config)
    options = {"norm": "pre"}
    for key, option in SIZES.items():
        if (value := vision.get(key)) is not None:
            if type(value) is not int or value < 1:
                raise UserError(f"{key} must be an integer above 0; got {shown(value)}")
            options[option] = value
    if (act := typed(vision, "hidden_act", str, None)) is not None:
        gated = bool(vision.get("use_gated_mlp"))
        if act not in ({GATED} if gated else ACTIVATIONS):
            mlp = " in a gated MLP" if gated else ""
            raise UserError(f"hidden_act {shown(act)}{mlp} is not supported")
        if not gated:
            options["act"] = ACTIVATIONS[act]
    if vision.get("layer_norm_eps") is not None:
        options["norm_eps"] = number(vision, "layer_norm_eps")
    if vision.get("rope_theta") is not None:
        options["rope_temperature"] = number(vision, "rope_theta")
    preprocessing, notes = _preprocessing(path.with_name("preprocessor_config.json"))
    return Card(
        path=path,
        name="",
        options=options,
        preprocessing=preprocessing,
        class_names=_class_names(config),
        notes=notes,
    )


def _class_names(config):
    """Return the names of the classes, or None if they are placeholders."""
    names = typed(config, "id2label", dict, {})
    if not all(isinstance(name, str) for name in names.values()):
        raise UserError("id2label must map class numbers to names")
    if not names or any(name.startswith("LABEL_") for name in names.values()):
        return None
    if names.keys() != {str(i) for i in range(len(names))}:
        raise UserError("id2label must have the keys 0, 1, ...")
    return [printable(names[str(i)]) for i in range(len(names))]


def _preprocessing(path):
    """Return the `View` of a preprocessor_config.json or None, and notes."""
    config = read(path)
    if "image_mean" not in config or "image_std" not in config:
        return None, ()
    try:
        mean, std = numbers(config, "image_mean"), numbers(config, "image_std")
        if min(std, default=0) <= 0:
            raise UserError("image_std must be above 0")
        notes = ()
        side = _side(config.get("size"))
        crop = _side(config.get("crop_size")) if config.get("do_center_crop") else None
        ratio = min(crop / side, 1.0) if crop and side else 1.0
        resample = 3 if config.get("resample") is None else config["resample"]
        if resample not in FILTERS:
            notes = ("the picture is resized with the bicubic filter, not that of the file",)
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be used: {shown(error)}; correct or remove it") from None
    mode = "center" if crop else "squash"  # without a crop, transformers squeezes the picture
    return View(mean, std, ratio, FILTERS.get(resample, "bicubic"), mode), notes


def _side(size):
    """Return the side of a square, an integer or an object with sides; None: not stated."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    if size is not None and (type(size) is not int or size < 1):
        raise UserError(f"size must be an integer above 0; got {shown(size)}")
    return size
