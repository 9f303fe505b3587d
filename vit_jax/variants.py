"""Names and sizes of Vision Transformers, their parameters and FLOPs. Needs no JAX.

A name is the papers' ("S/16") or timm's ("vit_small_patch16_224"), with `key=value` overrides
after commas for unusual sizes ("S/16,depth=4,pool=gap").
"""

import re
from ast import literal_eval

# size: (width, depth, num_heads, mlp_dim). Ti to H: Table 1 of arXiv:2010.11929 and Table 1 of
# arXiv:2012.12877; g and G: Table 2 of arXiv:2106.04560. mu is the size of the tests; nano, micro,
# mini and midi train on a laptop.
VARIANTS = {
    "mu": (32, 1, 2, 128),
    "nano": (48, 3, 4, 192),
    "micro": (64, 6, 4, 256),
    "mini": (96, 6, 6, 384),
    "midi": (128, 6, 8, 512),
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}
TIMM_SIZES = {
    "tiny": "Ti",
    "small": "S",
    "base": "B",
    "large": "L",
    "huge": "H",
    "giant": "g",
    "gigantic": "G",
}
PAPER_NAME = re.compile(r"(?P<size>\w+)/(?P<patch>\d+)")
TIMM_NAME = re.compile(r"(vit|deit)_(?P<size>[a-z]+)_patch(?P<patch>\d+)_(?P<image>\d+)(\.\w+)?")


def parse(name, **overrides):
    """ "S/16" or "vit_small_patch16_224,depth=4" -> keyword arguments of `vit.ViT`.

    Overrides that are None count as absent. Another width without another mlp_dim keeps the
    variant's ratio of the two. Raises ValueError, in one line, for a name that is neither.
    """
    base, *words = name.split(",")
    for word in words:
        key, _, value = word.partition("=")
        if not value:
            raise ValueError(f"'{word}' in the model name '{name}' is not key=value")
        overrides.setdefault(key.strip(), _literal(value.strip()))
    match = PAPER_NAME.fullmatch(base) or TIMM_NAME.fullmatch(base)
    found = match.groupdict() if match else {}
    size = TIMM_SIZES.get(found.get("size"), found.get("size"))
    patch = int(found.get("patch") or 0)
    if size not in VARIANTS or not patch:
        raise ValueError(
            f"no model is called '{base}'; say SIZE/PATCH, as in S/16, with a size out of "
            f"{', '.join(VARIANTS)}, or timm's name for it, as in vit_small_patch16_224"
        )
    width, depth, num_heads, mlp_dim = VARIANTS[size]
    sizes = dict(width=width, depth=depth, num_heads=num_heads, mlp_dim=mlp_dim, patch=patch)
    sizes["image"] = int(found.get("image") or 224)
    overrides = {key: value for key, value in overrides.items() if value is not None}
    sizes.update(overrides)
    if "width" in overrides and "mlp_dim" not in overrides:
        sizes["mlp_dim"] = sizes["width"] * mlp_dim // width
    if sizes["width"] % sizes["num_heads"]:
        raise ValueError(
            f"width {sizes['width']} does not divide into {sizes['num_heads']} heads; "
            "set num_heads to a divisor of the width"
        )
    if sizes["image"] % sizes["patch"] or sizes["image"] < sizes["patch"]:
        raise ValueError(
            f"an image of {sizes['image']} pixels does not divide into patches of "
            f"{sizes['patch']}; set image to a multiple of the patch"
        )
    return sizes


def count_params(
    *,
    width,
    depth,
    mlp_dim,
    patch,
    image=224,
    channels=3,
    num_classes=1000,
    pool="cls",
    class_token=None,
    pos_embed="learned",
    qkv_bias=True,
    **_,
):
    """Parameters of the ViT with these sizes. -> int"""
    d, m = width, mlp_dim
    class_token = pool == "cls" if class_token is None else class_token
    tokens = (image // patch) ** 2 + class_token
    embed = (patch**2 * channels + 1) * d + d * class_token
    embed += d * tokens if pos_embed == "learned" else 0
    attention = (d + qkv_bias) * 3 * d + (d + 1) * d
    mlp = (d + 1) * m + (m + 1) * d
    block = 4 * d + attention + mlp
    probe = (d + 2 * d + 4 * d * (d + 1) + mlp) if pool == "map" else 0
    return embed + depth * block + 2 * d + probe + num_classes * (d + 1)


def count_flops(
    *,
    width,
    depth,
    mlp_dim,
    patch,
    image=224,
    channels=3,
    num_classes=1000,
    pool="cls",
    class_token=None,
    **_,
):
    """FLOPs of one forward pass of one image: 2 for each multiply-add of the matrix products.

    Attention's two products count; norms, softmax and GELU do not (they are below 1 %). timm's
    "GMACs" are half of this. A training step costs three times as much. -> int
    """
    d, m = width, mlp_dim
    patches = (image // patch) ** 2
    n = patches + (pool == "cls" if class_token is None else class_token)
    embed = patches * patch**2 * channels * d
    block = n * (4 * d * d + 2 * d * m) + 2 * n * n * d
    probe = (2 * n * d * d + 2 * n * d + 2 * d * d + 2 * d * m) if pool == "map" else 0
    return 2 * (embed + depth * block + probe + d * num_classes)


def _literal(text):
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)
