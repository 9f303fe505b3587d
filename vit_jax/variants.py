"""The options of the models, and the names and sizes of the published ones. Imports no JAX.

A name is the papers' ("S/16", "resnet50") or timm's ("vit_small_patch16_224"), with `key=value`
overrides after commas for unusual sizes ("S/16,depth=4,pool=gap").
"""

import re
from ast import literal_eval
from dataclasses import dataclass

from vit_jax.errors import UserError
from vit_jax.schema import one_of, option, options


def enum_option(choices, doc):
    """An `option` with few values, the first of them the default."""
    return option(choices[0], doc, choices=choices)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The options that every model has."""

    image: int = option(224, "side of the square image, pixels", least=1)
    channels: int = option(3, "3: color, 1: gray", least=1)
    num_classes: int = option(1000, "outputs of the classifier; 0: no classifier", least=0)
    dtype: str = enum_option(
        ("float32", "bfloat16", "float64"), "of activations; parameters are float32"
    )

    def __post_init__(self):
        for name, key in options(type(self)).items():
            key.check(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ModelConfig):
    """Every option of a Vision Transformer: `ViTConfig(width=384, depth=12, ...)`.

    `vit.ViT` and its layers take it, `flops` counts from it, and the group `model` of a run's
    config is made of its fields. Raises UserError for options that cannot be combined.
    """

    width: int = option(doc="features of a token", kind=int, least=1)
    depth: int = option(doc="number of blocks", kind=int, least=1)
    num_heads: int = option(doc="attention heads per block", kind=int, least=1)
    mlp_dim: int = option(doc="hidden units of the MLP", kind=int, least=1)
    patch: int = option(doc="side of a square patch, pixels", kind=int, least=1)
    pool: str = enum_option(
        ("cls", "gap", "map"),
        "what the classifier sees: the [CLS] token, the mean of the patches, attention pooling",
    )
    class_token: bool | None = option(None, "None: only where pool is cls", kind=bool)
    fc_norm: bool | None = option(None, "LayerNorm after pooling; None: if pool is gap", kind=bool)
    pos_embed: str = enum_option(("learned", "sincos2d"), "learned or fixed 2-D sin-cos positions")
    no_embed_class: bool = option(False, "learned positions of the patches alone (DeiT III)")
    pos_resize: str = enum_option(("timm", "dino"), "rule that resizes learned positions")
    patch_embed: str = enum_option(("conv", "linear"), "strided convolution, or unfold and linear")
    norm: str = enum_option(("pre", "post"), "LayerNorm before attention and MLP, or after them")
    act: str = enum_option(("gelu", "gelu_tanh"), "exact (erf), or big_vision's tanh approximation")
    qkv_bias: bool = option(True, "biases of queries, keys and values")
    layer_scale_init: float | None = option(None, "LayerScale; None: off", kind=float, least=0)
    drop_path: float = option(0.0, "stochastic depth: rate of the last block", least=0, below=1)
    dropout: float = option(0.0, "rate after each projection and MLP layer", least=0, below=1)
    remat: str = enum_option(
        ("none", "dots", "full"),
        "rematerialize in the backward pass: nothing, all but matrix products, whole blocks",
    )
    scan: str = enum_option(("auto", "on", "off"), "lax.scan over blocks; auto: off up to 12 (CPU)")
    attn: str = enum_option(
        ("auto", "matmul", "xla", "cudnn"), "attention kernel; auto: matmul on CPU, xla elsewhere"
    )
    init: str = enum_option(
        ("deit", "big_vision"), "normal(0.02), or big_vision's: Xavier and a classifier of zeros"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.num_heads:
            raise UserError(
                f"width = {self.width} must be divisible by num_heads = {self.num_heads}"
            )
        if self.image % self.patch:
            raise UserError(f"image = {self.image} must be a multiple of patch = {self.patch}")
        if self.pool == "cls" and not self.prefix:
            raise UserError("pool = 'cls' needs class_token = True; or set pool = 'gap'")
        if self.pos_embed == "sincos2d" and self.width % 4:
            raise UserError(
                f"width = {self.width} must be divisible by 4 for pos_embed = 'sincos2d'"
            )
        if self.attn == "cudnn" and self.dtype != "bfloat16":
            raise UserError("attn = 'cudnn' needs dtype = 'bfloat16'")

    @property
    def prefix(self):
        """Tokens before those of the patches."""
        return int(self.pool == "cls" if self.class_token is None else self.class_token)

    @property
    def grid(self):
        """Rows and columns of patches."""
        return (self.image // self.patch,) * 2

    @property
    def norm_after_pool(self):
        """Whether the final LayerNorm comes after pooling."""
        return self.pool == "gap" if self.fc_norm is None else self.fc_norm


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(ModelConfig):
    """Every option of a ResNet. `image` matters for FLOPs alone: a ResNet takes any size."""

    block: str = option(doc="residual block", kind=str, choices=("basic", "bottleneck"))
    layers: tuple = option(doc="blocks per stage; four stages: a stem for large images", kind=tuple)
    width: int = option(doc="channels of the first stage", kind=int, least=1)


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
TIMM_SIZES = dict(tiny="Ti", small="S", base="B", large="L", huge="H", giant="g", gigantic="G")
PAPER_NAME = re.compile(r"(?P<size>\w+)/(?P<patch>\d+)")
TIMM_NAME = re.compile(r"(vit|deit)_(?P<size>[a-z]+)_patch(?P<patch>\d+)_(?P<image>\d+)(\.\w+)?")

# Options of a ViT that its name determines.
SIZES = ("width", "depth", "num_heads", "mlp_dim", "patch")


def parse(name, **overrides):
    """The config of a model by name: "S/16", "vit_small_patch16_224,depth=4", "resnet50".

    Args:
      name: the papers' or timm's name, with `key=value` overrides after commas.
      **overrides: options of `ViTConfig` or `ResNetConfig`; None counts as absent. They overrule
        those in the name. Another width without another mlp_dim keeps the ratio of the two.

    Returns:
      A `ViTConfig` or a `ResNetConfig`.

    Raises:
      UserError: for an unknown name or option, or options that cannot be combined.
    """
    base, named = split_name(name)
    changes = {key: x for key, x in (*named.items(), *overrides.items()) if x is not None}
    cls, sizes = (ResNetConfig, _resnet(base)) if is_cnn(base) else (ViTConfig, _vit(base))
    known = options(cls)
    if unknown := changes.keys() - known.keys():
        key = min(unknown)
        raise UserError(f"{base} has no option {key!r}; pass {one_of(sorted(known), key)}")
    if "width" in changes and "mlp_dim" in sizes:
        known["width"].check("width", changes["width"])
        sizes["mlp_dim"] = changes["width"] * sizes["mlp_dim"] // sizes["width"]
    return cls(**sizes | changes)


def split_name(name):
    """ "S/16,depth=4" -> "S/16", {"depth": 4}. Raises UserError."""
    base, *words = name.split(",")
    named = {}
    for word in words:
        key, _, value = word.partition("=")
        if not value:
            raise UserError(f"{word!r} in the model name {name!r} must be KEY=VALUE")
        named[key.strip()] = _literal(value.strip())
    return base, named


def _resnet(name):
    block, layers = RESNETS[name]
    return {"block": block, "layers": layers, "width": 64 if len(layers) == 4 else 16}


def _vit(name):
    """The options of `ViTConfig` that a name determines."""
    match = PAPER_NAME.fullmatch(name) or TIMM_NAME.fullmatch(name)
    found = match.groupdict() if match else {}
    size = TIMM_SIZES.get(found.get("size"), found.get("size"))
    patch = int(found.get("patch") or 0)
    if size not in VARIANTS or not patch:
        raise UserError(
            f"unknown model {name!r}; pass SIZE/PATCH, such as S/16, with SIZE {one_of(VARIANTS)}; "
            f"or timm's name, such as vit_small_patch16_224; or {one_of(RESNETS)}"
        )
    sizes = dict(zip(SIZES, (*VARIANTS[size], patch), strict=True))
    if found.get("image"):
        sizes["image"] = int(found["image"])
    return sizes


def from_config(model, classes=None):
    """The `ViTConfig` or `ResNetConfig` of a run.

    Args:
      model: the group `config.model`.
      classes: the number of classes of the data, for a config that does not set num_classes.

    Raises:
      UserError: if the options cannot be combined, or would be ignored by a ResNet.
    """
    changes = {key: value for key, value in model.items() if key != "variant"}
    if "," in model.variant:
        variant, *words = model.variant.split(",")
        keys = " ".join(f"--config.model.{word}" for word in words)
        raise UserError(f"variant = {model.variant!r} must be a name alone; pass {keys}")
    if is_cnn(model.variant):
        # An option that a ResNet ignores must not seem to have an effect.
        known, ignored = options(ResNetConfig), {}
        for name, key in options(ViTConfig).items():
            if name not in known and changes.pop(name) != key.default:
                ignored[name] = key.default
        if ignored:
            words = " ".join(f"--config.model.{name}={x}" for name, x in ignored.items())
            raise UserError(f"{model.variant} has no {', '.join(ignored)}; pass {words}")
    if changes["num_classes"] is None:
        changes["num_classes"] = classes
    return parse(model.variant, **changes)


def is_cnn(name):
    """Whether the name, with or without overrides, is a ResNet's."""
    return name.split(",")[0] in RESNETS


def count_layers(config):
    """Layers as the papers count them: blocks, or convolutions without shortcuts and classifier."""
    if isinstance(config, ViTConfig):
        return config.depth
    return 1 + sum(not path.endswith("shortcut") for path in convolutions(config))


def convolutions(config):
    """The convolutions of a ResNet: {path: (kernel, stride, inputs, outputs, side of the output)}.

    config: a `ResNetConfig`.

    Paths are "stem", "layer1/block0/conv1", ... and "layer1/block0/shortcut", where a shortcut
    needs one. The stride of a bottleneck is that of its 3x3, as torchvision has it.
    """
    small = len(config.layers) == 3
    width = config.width
    side = config.image if small else -(-config.image // 2)
    found = {"stem": (3 if small else 7, 1 if small else 2, config.channels, width, side)}
    side = side if small else -(-side // 2)  # the pooling after the stem
    last = width
    for i, count in enumerate(config.layers):
        inner = width * 2**i
        outer = inner * (4 if config.block == "bottleneck" else 1)
        for j in range(count):
            path = f"layer{i + 1}/block{j}"
            stride = 2 if i and not j else 1
            before = side
            side = -(-side // stride)
            plan = [(3, stride, last, inner, side), (3, 1, inner, inner, side)]
            if config.block == "bottleneck":
                plan = [
                    (1, 1, last, inner, before),
                    (3, stride, inner, inner, side),
                    (1, 1, inner, outer, side),
                ]
            found |= {f"{path}/conv{n + 1}": words for n, words in enumerate(plan)}
            if stride > 1 or last != outer:
                found[f"{path}/shortcut"] = (1, stride, last, outer, side)
            last = outer
    return found


def _literal(text):
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)
