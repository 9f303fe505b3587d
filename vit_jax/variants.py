"""Model options, and the names and sizes of the published models. Imports no JAX.

A model name is that of the paper ("S/16", "resnet50") or of timm ("vit_small_patch16_224"), with
or without timm's tag (".augreg_in1k"), optionally followed by comma-separated `key=value` overrides
("S/16,depth=4,pool=gap"). The module `catalog` has further names of timm.
"""

import difflib
import re
from ast import literal_eval
from dataclasses import dataclass

from vit_jax import catalog
from vit_jax.errors import UserError
from vit_jax.schema import SIZE, one_of, option, options, pair, parse_size, size_of, size_text


def enum_option(choices, doc):
    """Define an `option` with a fixed set of choices; the first is the default."""
    return option(choices[0], doc, choices=choices)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Options shared by all models."""

    image: int | tuple = option(
        224, "size of an image, pixels: side of a square, or (height, width)", kind=SIZE, minimum=1
    )
    channels: int = option(3, "channels of an image; 3: color, 1: gray", minimum=1)
    num_classes: int = option(1000, "number of classes; 0: no classifier", minimum=0)
    dtype: str = enum_option(
        ("float32", "bfloat16", "float64"), "dtype of activations; parameters are float32"
    )

    def __post_init__(self):
        for name, key in options(type(self)).items():
            value = getattr(self, name)
            key.check(name, value)
            if key.kind is SIZE:
                object.__setattr__(self, name, size_of(*pair(value)))  # (4, 4) is the same as 4

    @property
    def size(self):
        """Size of an image in pixels, (height, width)."""
        return pair(self.image)


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ModelConfig):
    """Options of a Vision Transformer.

    `vit.ViT`, its layers and `flops` take this config, and the group `model` of a run's config has
    its fields as keys. Raises UserError for options that cannot be combined.
    """

    width: int = option(doc="width of a token (embedding dimension)", kind=int, minimum=1)
    depth: int = option(doc="number of encoder blocks", kind=int, minimum=1)
    num_heads: int = option(doc="attention heads per block", kind=int, minimum=1)
    mlp_dim: int = option(doc="hidden units of the MLP", kind=int, minimum=1)
    patch: int | tuple = option(
        doc="size of a patch, pixels: side of a square, or (height, width)", kind=SIZE, minimum=1
    )
    pool: str = enum_option(
        ("cls", "gap", "map", "cls_gap"),
        "pooling before the classifier: [CLS] token, mean over patches, attention pooling, or "
        "[CLS] and mean concatenated (linear head of DINOv2)",
    )
    class_token: bool | None = option(
        None, "[CLS] token; None: only if pool is cls or cls_gap", kind=bool
    )
    reg_tokens: int = option(
        0, "register tokens, between [CLS] and the patches (arXiv:2309.16588)", minimum=0
    )
    dist_token: bool = option(
        False,
        "distillation token after [CLS], with its own classifier (DeiT); evaluation averages the "
        "logits of both",
    )
    fc_norm: bool | None = option(
        None, "final LayerNorm after pooling; None: only if pool is gap", kind=bool
    )
    rep_size: int = option(
        0, "units of a linear layer with tanh before the classifier (AugReg); 0: none", minimum=0
    )
    pos_embed: str = enum_option(
        ("learned", "sincos2d", "none"),
        "learned positions, fixed 2-D sin x, cos x, sin y, cos y as in big_vision, or none",
    )
    no_embed_class: bool = option(
        False, "learned positions for patches only, not for [CLS] (DeiT III)"
    )
    embed_reg: bool = option(
        False, "learned positions for register tokens too, unless no_embed_class is true"
    )
    pos_resize: str = enum_option(
        ("timm", "dino", "deit"),
        "how learned positions are resized: as timm, DINO, or DeiT's and MAE's fine-tuning",
    )
    rope: str = enum_option(
        ("none", "axial", "dinov3", "mixed"),
        "rotary position embedding of patches in every block: none; of the row and column index "
        "(EVA-02, RoPE-ViT axial); of coordinates normalized to [-1, 1] (DINOv3); or of the index "
        "with learned frequencies (RoPE-ViT mixed)",
    )
    rope_temperature: float = option(
        100.0,
        "base of the frequencies of rope: 100 in DINOv3 and RoPE-ViT axial, 10000 in EVA-02; if "
        "rope is mixed, of the initial frequencies, 10 in RoPE-ViT",
        minimum=1,
    )
    rope_order: str = enum_option(
        ("yx", "xy"),
        "coordinate that the first half of the frequencies of rope applies to: y, or x (RoPE-ViT)",
    )
    rope_grid: int | None = option(
        None,
        "patches per side that the coordinates of axial rope are scaled to (EVA-02: 16); None: not "
        "scaled",
        kind=int,
        minimum=1,
    )
    patch_embed: str = enum_option(
        ("auto", "conv", "linear"),
        "strided convolution, or unfold and a linear layer, the same function; auto: linear on "
        "GPU, conv elsewhere",
    )
    patch_bias: bool = option(True, "bias in the patch embedding")
    embed_norm: bool = option(False, "LayerNorm of the embedded tokens before the blocks (CLIP)")
    norm: str = enum_option(
        ("pre", "post", "res_post"),
        "LayerNorm of the input of attention and MLP; of the sum with their output; or of their "
        "output, before the sum (timm's rpn models)",
    )
    norm_eps: float = option(
        1e-6, "epsilon of LayerNorm, added to the variance; 1e-5 in CLIP and DINOv3", greater_than=0
    )
    mlp: str = enum_option(
        ("mlp", "swiglu"),
        "two linear layers, or SwiGLU: silu(a) * b in place of the activation, with a and b of "
        "mlp_dim units (arXiv:2002.05202)",
    )
    mlp_norm: bool = option(False, "LayerNorm of the hidden units of the MLP (EVA-02)")
    act: str = enum_option(
        ("gelu", "gelu_tanh", "quick_gelu"),
        "activation of the MLP: exact GELU (erf), its tanh approximation as in big_vision, or "
        "x sigmoid(1.702 x) as in CLIP",
    )
    qkv_bias: bool = option(True, "bias in the projections to queries, keys and values")
    k_bias: bool = option(True, "bias of the keys, if qkv_bias is true; false in DINOv3 and EVA")
    qk_norm: bool = option(
        False, "LayerNorm of the queries and keys of each head (arXiv:2302.05442)"
    )
    attn_norm: bool = option(
        False, "LayerNorm of the heads' concatenated outputs, before the projection (EVA-02-CLIP)"
    )
    layer_scale_init: float | None = option(
        None, "initial value of LayerScale; None: no LayerScale", kind=float, minimum=0
    )
    drop_path: float = option(
        0.0,
        "stochastic depth: drop rate of the last block, linear in depth",
        minimum=0,
        less_than=1,
    )
    drop_path_uniform: bool = option(
        False, "drop rate of drop_path in all blocks, instead of linear in depth (DeiT III)"
    )
    dropout: float = option(
        0.0, "dropout rate after each projection and MLP layer", minimum=0, less_than=1
    )
    remat: str = enum_option(
        ("none", "dots", "full"),
        "rematerialized in the backward pass: nothing, all but linear layers, whole blocks",
    )
    scan: str = enum_option(
        ("auto", "on", "off"),
        "lax.scan over blocks; auto: off up to 12 blocks, on GPU up to 32, on above",
    )
    attn: str = enum_option(
        ("auto", "matmul", "xla", "cudnn", "pallas"),
        "attention kernel; auto: matmul on CPU, cudnn on GPU and pallas on TPU where they apply, "
        "xla elsewhere",
    )
    init: str = enum_option(
        ("deit", "big_vision", "xavier"),
        "initialization of DeiT; of big_vision (with MLP biases of 0, not normal(1e-6)); or Xavier "
        "kernels, a zero classifier, and the patch embedding of DeiT, for narrow models",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.num_heads:
            raise UserError(
                f"width = {self.width} must be divisible by num_heads = {self.num_heads}"
            )
        if any(side % p for side, p in zip(self.size, self.patch_size, strict=True)):
            raise UserError(
                f"image = {size_text(self.image)} must be a multiple of patch = "
                f"{size_text(self.patch)}"
            )
        self._check_tokens()
        self._check_attention()

    def _check_tokens(self):
        """Raise UserError for pooling and position embeddings that cannot be combined."""
        if self.pool in ("cls", "cls_gap") and not self.has_class_token:
            raise UserError(f"pool = {self.pool!r} needs class_token = True; or set pool = 'gap'")
        if self.pool == "cls_gap" and self.fc_norm:
            raise UserError("pool = 'cls_gap' needs fc_norm = False")
        if self.dist_token and (self.pool != "cls" or self.fc_norm or self.rep_size):
            raise UserError(
                "dist_token = True needs pool = 'cls', fc_norm = False and rep_size = 0"
            )
        if self.pos_embed == "sincos2d" and self.width % 4:
            raise UserError(
                f"width = {self.width} must be divisible by 4 for pos_embed = 'sincos2d'"
            )
        if self.rope != "none" and self.head_size % 4:
            raise UserError(
                f"width / num_heads = {self.head_size} must be divisible by 4 for rope = "
                f"{self.rope!r}"
            )
        if self.rope_grid is not None and self.rope != "axial":
            raise UserError("rope_grid needs rope = 'axial'")

    def _check_attention(self):
        """Raise UserError for attention kernels that do not support the model."""
        if self.attn == "pallas" and not self.plain_attention:
            raise UserError("attn = 'pallas' supports neither qk_norm nor rope; set it to 'auto'")
        if self.attn == "cudnn" and self.dtype != "bfloat16":
            raise UserError("attn = 'cudnn' needs dtype = 'bfloat16'")
        if self.attn == "cudnn" and (self.head_size % 8 or self.head_size > 128):
            raise UserError(
                f"attn = 'cudnn' needs width / num_heads = {self.head_size} to be divisible by 8 "
                "and at most 128; set it to 'auto'"
            )

    @property
    def has_class_token(self):
        """Whether the first token is [CLS]."""
        return self.pool in ("cls", "cls_gap") if self.class_token is None else self.class_token

    @property
    def prefix(self):
        """Number of tokens before the patches: [CLS], distillation and register tokens."""
        return self.has_class_token + self.dist_token + self.reg_tokens

    @property
    def pos_prefix(self):
        """Number of tokens before the patches that have learned positions, the first ones."""
        if self.no_embed_class:
            return 0
        return self.prefix if self.embed_reg else self.prefix - self.reg_tokens

    @property
    def head_size(self):
        """Size of an attention head."""
        return self.width // self.num_heads

    @property
    def plain_attention(self):
        """Whether queries and keys are outputs of the qkv layer, without QK norm and RoPE."""
        return not self.qk_norm and self.rope == "none"

    @property
    def num_features(self):
        """Width of the pooled features, the input of the classifier."""
        if self.rep_size and self.num_classes:
            return self.rep_size
        return self.width * (2 if self.pool == "cls_gap" else 1)

    @property
    def grid(self):
        """Number of rows and columns of patches."""
        return tuple(side // p for side, p in zip(self.size, self.patch_size, strict=True))

    @property
    def patch_size(self):
        """Size of a patch in pixels, (height, width)."""
        return pair(self.patch)

    @property
    def norm_after_pool(self):
        """Whether the final LayerNorm comes after pooling."""
        return self.pool == "gap" if self.fc_norm is None else self.fc_norm


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(ModelConfig):
    """Options of a ResNet. `image` only affects FLOPs: a ResNet accepts any image size."""

    block: str = option(doc="type of residual block", kind=str, choices=("basic", "bottleneck"))
    layers: tuple = option(
        doc="blocks per stage; four stages: ImageNet stem, three: CIFAR stem", kind=tuple
    )
    width: int = option(doc="channels of the first stage", kind=int, minimum=1)


# size: (width, depth, num_heads, mlp_dim). Ti to H: Table 1 of arXiv:2010.11929 and Table 1 of
# arXiv:2012.12877; g and G: Table 2 of arXiv:2106.04560. pico to midi can be trained on a laptop;
# the tests use mu.
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
# name: (top-1 accuracy on ImageNet in %, its source), at 224 pixels, trained on ImageNet-1k alone:
# Ti, S and B of DeiT; L and H trained from scratch by the authors of MAE (appendix A.2).
PUBLISHED = {
    "Ti/16": (72.2, "arXiv:2012.12877"),
    "S/16": (79.9, "arXiv:2012.12877"),
    "B/16": (81.8, "arXiv:2012.12877"),
    "L/16": (82.6, "arXiv:2111.06377"),
    "H/14": (83.1, "arXiv:2111.06377"),
}
# name: (type of residual block, blocks per stage). Four stages: Table 1 of arXiv:1512.03385. Three
# stages: its CIFAR-10 models with 6 n + 2 layers (section 4.2).
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

# Options of `ViTConfig` that the size and the patch in a name determine.
SIZE_OPTIONS = ("width", "depth", "num_heads", "mlp_dim", "patch")


def parse(name, **overrides):
    """Return the config of a model by name.

        parse("S/16")
        parse("vit_small_patch16_224,depth=4")
        parse("resnet50", num_classes=10)

    Args:
      name: a name of the papers or of timm, with optional comma-separated `key=value` overrides.
      **overrides: options of `ViTConfig` or `ResNetConfig`, which take precedence over those in the
        name. None is ignored. If only width is overridden, mlp_dim scales with it.

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
    """Split "S/16,depth=4" into "S/16" and {"depth": 4}.

    Raises:
      UserError: if an override is not KEY=VALUE.
    """
    base, *assignments = name.split(",")
    named = {}
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if not value:
            raise UserError(f"{assignment!r} in the model name {name!r} must be KEY=VALUE")
        named[key.strip()] = _literal(value.strip())
    return base, named


def _resnet(name):
    """Return the options of `ResNetConfig` that a name determines."""
    block, layers = RESNETS[name.partition(".")[0]]
    return {"block": block, "layers": layers, "width": 64 if len(layers) == 4 else 16}


def _vit(name):
    """Return the options of `ViTConfig` that a name determines."""
    match = PAPER_NAME.fullmatch(name) or TIMM_NAME.fullmatch(name)
    parts = match.groupdict() if match else {}
    size = TIMM_SIZES.get(parts.get("size"), parts.get("size"))
    patch = int(parts.get("patch") or 0)
    if size not in VARIANTS or not patch:
        if published := catalog.architecture(name):
            return dict(published)
        raise UserError(
            f"unknown model {name!r}{_similar(name)}; pass SIZE/PATCH, such as S/16, with SIZE "
            f"{one_of(VARIANTS)}; a timm name, such as vit_small_patch16_224; or {one_of(RESNETS)}"
        )
    sizes = dict(zip(SIZE_OPTIONS, (*VARIANTS[size], patch), strict=True))
    if parts.get("image"):
        sizes["image"] = int(parts["image"])
    return sizes


def _similar(name):
    """Return a hint with similar names of the catalog, or ""."""
    close = difflib.get_close_matches(name[:100], catalog.names(), 3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def from_config(model, classes=None):
    """Return the `ViTConfig` or `ResNetConfig` of a run.

    Args:
      model: the group `config.model`.
      classes: number of classes of the dataset, used if config.model.num_classes is None.

    Raises:
      UserError: if options cannot be combined, or are not supported by a ResNet.
    """
    changes = {key: value for key, value in model.items() if key != "variant"}
    if "," in model.variant:
        _, *assignments = model.variant.split(",")
        flags = " ".join(f"--config.model.{assignment}" for assignment in assignments)
        raise UserError(f"variant = {model.variant!r} must have no overrides; pass {flags}")
    if is_cnn(model.variant):
        # Reject changes to options that a ResNet would silently ignore.
        known = options(ResNetConfig)
        ignored = {}
        for name, key in options(ViTConfig).items():
            if name not in known and changes.pop(name) != key.default:
                ignored[name] = key.default
        if ignored:
            flags = " ".join(f"--config.model.{name}={x}" for name, x in ignored.items())
            raise UserError(f"{model.variant} has no {', '.join(ignored)}; pass {flags}")
    if changes["num_classes"] is None:
        changes["num_classes"] = classes
    config = parse(model.variant, **changes)
    if isinstance(config, ViTConfig):
        _check_published(model.variant, config)
    return config


def _check_published(name, config):
    """Raise UserError if a config does not have the options that its name has in the catalog.

    The group `config.model` has a value for every option but the sizes, which replaces that of the
    name.
    """
    published = _vit(name)
    effective = {"class_token": config.has_class_token, "fc_norm": config.norm_after_pool}
    flags = [
        f"--config.model.{key}={value}"
        for key, value in published.items()
        if key not in (*SIZE_OPTIONS, "image") and effective.get(key, getattr(config, key)) != value
    ]
    if flags:
        raise UserError(f"variant = {name!r} needs further options; pass {' '.join(flags)}")


def is_cnn(name):
    """Return whether a model name, with or without tag and overrides, is that of a ResNet."""
    return name.partition(",")[0].partition(".")[0] in RESNETS


def resnet_name(config):
    """Return the name of a `ResNetConfig` in `RESNETS`, or None."""
    kind = (config.block, config.layers)
    return next((name for name, sizes in RESNETS.items() if sizes == kind), None)


def count_layers(config):
    """Count layers as the papers do.

    These are the blocks of a ViT, or the convolutions of a ResNet, without those of shortcuts, plus
    its classifier.
    """
    if isinstance(config, ViTConfig):
        return config.depth
    return 1 + sum(not path.endswith("shortcut") for path in convolutions(config))


def convolutions(config):
    """List the convolutions of a ResNet.

    As in torchvision, the 3x3 convolution of a bottleneck has the stride.

    Args:
      config: a `ResNetConfig`.

    Returns:
      A dict of path to (kernel size, stride, input channels, output channels, size of the output),
      in the order of execution; sizes are (height, width) in pixels. Paths are "stem",
      "layer1/block0/conv1", ..., and "layer1/block0/shortcut" where a shortcut is not the identity.
    """

    def strided(size, stride):
        return tuple(-(-side // stride) for side in size)

    cifar_stem = len(config.layers) == 3
    width = config.width
    size = strided(config.size, 1 if cifar_stem else 2)
    kernel, stride = (3, 1) if cifar_stem else (7, 2)
    plan = {"stem": (kernel, stride, config.channels, width, size)}
    size = size if cifar_stem else strided(size, 2)  # max pooling after the stem
    inputs = width
    for i, count in enumerate(config.layers):
        hidden = width * 2**i
        outputs = hidden * (4 if config.block == "bottleneck" else 1)
        for j in range(count):
            path = f"layer{i + 1}/block{j}"
            stride = 2 if i and not j else 1
            input_size = size
            size = strided(size, stride)
            branch = [(3, stride, inputs, hidden, size), (3, 1, hidden, hidden, size)]
            if config.block == "bottleneck":
                branch = [
                    (1, 1, inputs, hidden, input_size),
                    (3, stride, hidden, hidden, size),
                    (1, 1, hidden, outputs, size),
                ]
            plan |= {f"{path}/conv{n + 1}": conv for n, conv in enumerate(branch)}
            if stride > 1 or inputs != outputs:
                plan[f"{path}/shortcut"] = (1, stride, inputs, outputs, size)
            inputs = outputs
    return plan


def _literal(text):
    """Parse a Python literal, "24x40", "true" or "false"; other text is returned unchanged."""
    try:
        return parse_size(text) if re.fullmatch(r"\d+x\d+", text) else literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)
