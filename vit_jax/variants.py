"""Names and sizes of the models, their parameters and FLOPs. Needs no JAX.

A name is the papers' ("S/16", "resnet50") or timm's ("vit_small_patch16_224"), with `key=value`
overrides after commas for unusual sizes ("S/16,depth=4,pool=gap").
"""

import re
from ast import literal_eval

# size: (width, depth, num_heads, mlp_dim). Ti to H: Table 1 of arXiv:2010.11929 and Table 1 of
# arXiv:2012.12877; g and G: Table 2 of arXiv:2106.04560. mu is the size of the tests; the
# others up to midi train on a laptop.
VARIANTS = {
    "pico": (24, 2, 2, 96),
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
# name: (residual block, blocks of each stage). Four stages: Table 1 of arXiv:1512.03385; three: the
# narrow ones for images of 32 pixels, of 6 n + 2 layers (section 4.2 there).
RESNETS = {f"resnet{6 * n + 2}": ("basic", (n,) * 3) for n in (1, 2, 3, 5, 7, 9, 18)} | {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
CNN_KEYS = ("variant", "image", "channels", "width", "num_classes", "dtype")  # of config.model
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
    """ "S/16" or "vit_small_patch16_224,depth=4" -> keyword arguments of `vit.ViT`; "resnet50" ->
    those of `resnet.ResNet`, and the side of the image.

    Overrides that are None count as absent. Another width without another mlp_dim keeps the
    variant's ratio of the two. Raises ValueError, in one line, for a name that is neither.
    """
    base, *words = name.split(",")
    for word in words:
        key, _, value = word.partition("=")
        if not value:
            raise ValueError(f"'{word}' in the model name '{name}' is not key=value")
        overrides.setdefault(key.strip(), _literal(value.strip()))
    if is_cnn(base):
        block, layers = RESNETS[base]
        if strange := overrides.keys() - set(CNN_KEYS):
            raise ValueError(
                f"{base} has no option '{min(strange)}'; it has {', '.join(CNN_KEYS[1:])}"
            )
        sizes = dict(block=block, layers=layers, width=64 if len(layers) == 4 else 16, image=224)
        return sizes | {key: value for key, value in overrides.items() if value is not None}
    match = PAPER_NAME.fullmatch(base) or TIMM_NAME.fullmatch(base)
    found = match.groupdict() if match else {}
    size = TIMM_SIZES.get(found.get("size"), found.get("size"))
    patch = int(found.get("patch") or 0)
    if size not in VARIANTS or not patch:
        raise ValueError(
            f"no model is called '{base}'; say SIZE/PATCH, as in S/16, with a size out of "
            f"{', '.join(VARIANTS)}, or timm's name for it, as in vit_small_patch16_224; or one of "
            f"{', '.join(RESNETS)}"
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


def of_config(variant, **options):
    """config.model -> as `parse` has it; what only other models have is left out."""
    if is_cnn(variant):
        options = {key: value for key, value in options.items() if key in CNN_KEYS}
    return parse(variant, **options)


def is_cnn(name):
    """Whether the name, with or without overrides, is a ResNet's."""
    return name.split(",")[0] in RESNETS


def convolutions(block, layers, width, image=224, channels=3, **_):
    """The convolutions of a ResNet: {path: (kernel, stride, inputs, outputs, side of the output)}.

    Paths are "stem", "layer1/block0/conv1", ... and "layer1/block0/shortcut", where a shortcut
    needs one. The stride of a bottleneck is that of its 3x3, as torchvision has it.
    """
    small = len(layers) == 3
    side = image if small else -(-image // 2)
    found = {"stem": (3 if small else 7, 1 if small else 2, channels, width, side)}
    side = side if small else -(-side // 2)  # the pooling after the stem
    last = width
    for i, count in enumerate(layers):
        inner = width * 2**i
        outer = inner * (4 if block == "bottleneck" else 1)
        for j in range(count):
            path, stride, before = f"layer{i + 1}/block{j}", 2 if i and not j else 1, side
            side = -(-side // stride)
            plan = [(3, stride, last, inner, side), (3, 1, inner, inner, side)]
            if block == "bottleneck":
                plan = [(1, 1, last, inner, before), (3, stride, inner, inner, side)]
                plan += [(1, 1, inner, outer, side)]
            found |= {f"{path}/conv{n + 1}": words for n, words in enumerate(plan)}
            if stride > 1 or last != outer:
                found[f"{path}/shortcut"] = (1, stride, last, outer, side)
            last = outer
    return found


def count_params(**sizes):
    """Parameters of the model with these sizes, as `parse` gives them. -> int"""
    if "layers" not in sizes:
        return _vit_params(**sizes)
    plan = list(convolutions(**sizes).values())
    # Each has a batch norm after it, with a scale and a bias.
    weights = sum(k * k * m * n + 2 * n for k, _, m, n, _ in plan)
    return weights + sizes.get("num_classes", 1000) * (plan[-1][3] + 1)


def count_flops(**sizes):
    """FLOPs of one forward pass of one image: 2 for each multiply-add of products and convolutions.

    Attention's two products count; norms, softmax and GELU do not (they are below 1 %). timm's
    "GMACs" are half of this. A training step costs three times as much. -> int
    """
    if "layers" not in sizes:
        return _vit_flops(**sizes)
    plan = list(convolutions(**sizes).values())
    products = sum(k * k * m * n * side**2 for k, _, m, n, side in plan)
    return 2 * (products + sizes.get("num_classes", 1000) * plan[-1][3])


def _vit_params(
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


def _vit_flops(
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
