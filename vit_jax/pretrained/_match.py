"""Combine what weights determine with what the user states; imports no JAX."""

from vit_jax import catalog, variants
from vit_jax.errors import UserError
from vit_jax.pretrained import timm, timm_config
from vit_jax.variants import SIZE_OPTIONS, ResNetConfig

# Options that neither names nor shapes of tensors determine. A wrong one gives wrong numbers.
UNDETERMINED = ("num_heads", "norm", "act", "rope")
# Further ones, whose defaults fit most models; layouts and config.json files state the others.
DEFAULTED = ("norm_eps", "rope_temperature", "rope_order", "rope_grid")
# Options that timm changes when it converts the weights of other codebases.
CONVERTED = ("no_embed_class", "embed_reg", "patch_bias")
CIFAR_IMAGE = 32  # pixels, of a ResNet of three stages
RESNET_OPTIONS = ("block", "layers", "width")  # that the name of a ResNet determines


def resolve(weights, name, overrides):
    """Combine what weights determine with what the user states.

    Args:
      weights: `_Weights`.
      name: name of the model, as in `load`.
      overrides: options of the model, as in `load`.

    Returns:
      The `ViTConfig` or `ResNetConfig`, and the names of the options in it that are assumed.

    Raises:
      UserError: if they contradict each other, or the number of heads is unknown.
    """
    spec, options = weights.spec, weights.options
    name = name or ""
    base, stated = variants.split_name(f",{name}" if "=" in name.split(",")[0] else name)
    stated = {key: x for key, x in (stated | overrides).items() if x is not None}
    if base and variants.is_cnn(base) != is_resnet(options):
        variants.parse(base)  # raises for an unknown name
        raise UserError(
            f"{spec}: file holds {_facts(options)}; --model says {base}; "
            f"{_remedy(base, options, stated)}"
        )
    if options["channels"] == 3:  # from which the patch embedding can be adapted
        options = options | {"channels": stated.get("channels", 3)}
    if "patch" in stated and "patch" in options:  # it is resized, as in FlexiViT
        changed = {"patch", "image"} & options.keys() & stated.keys()
        options = options | {key: stated[key] for key in changed}
    if different := contradictions(options, stated):
        ours, theirs = compare(different, options, stated, " = ")
        raise UserError(f"{spec}: the weights have {ours}, but {theirs} was passed; leave it out")
    if is_resnet(options):
        return _resolve_resnet(spec, options, base, stated), ()
    named = _named(base, weights, stated)
    if "pos_embed" not in options | named | stated:
        published = _catalog_name(options)
        hint = f"did you mean --model={published}? If" if published else "if"
        raise UserError(
            f"{spec}: the weights have no position embeddings; {hint} they are fixed 2-D sin-cos "
            "embeddings, pass pos_embed=sincos2d; if they are rotary, pass pos_embed=none and rope="
        )
    if base:
        rest = {key: x for key, x in options.items() if key not in SIZE_OPTIONS}
        config = variants.parse(base, **rest | stated)
        named |= {key: getattr(config, key) for key in SIZE_OPTIONS}
        if different := contradictions(options, named):
            _, theirs = compare(different, options, named)
            further = [key for key in different if key not in ("width", "depth", "patch")]
            ours = f" with {compare(further, options, named)[0]}" if further else ""
            raise UserError(
                f"{spec}: file holds {_facts(options)}{ours}; --model says {base} ({theirs}); "
                f"{_remedy(base, options, stated)}"
            )
        return config, ()
    missing = [key for key in UNDETERMINED if key not in options | stated]
    if missing and (not stated or "num_heads" in missing):
        raise UserError(
            f"{spec}: file holds {_facts(options)}; it does not determine {', '.join(missing)}; "
            f"{_question(options, missing)}"
        )
    try:
        config = variants.parse("S/16", **stated | options)
    except UserError as error:
        raise UserError(f"{spec}: {error}") from None
    return config, tuple(missing)


def _resolve_resnet(spec, options, base, stated):
    """Return the `ResNetConfig` of weights; arguments as the variables in `resolve`."""
    if base:
        config = variants.parse(base)
        named = {key: getattr(config, key) for key in RESNET_OPTIONS}
        if different := contradictions(options, named):
            ours, theirs = compare(different, options, named)
            raise UserError(
                f"{spec}: file holds {resnet_name(options) or 'a ResNet'} ({ours}); --model says "
                f"{base} ({theirs}); {_remedy(base, options, stated)}"
            )
    sizes = {row["image"] for row in catalog.weights(base).values()} if base else set()
    if not sizes and len(options["layers"]) == 3:
        sizes = {CIFAR_IMAGE}
    image = {"image": sizes.pop()} if len(sizes) == 1 else {}
    try:
        return variants.parse(base or "resnet18", **image | stated | options)
    except UserError as error:
        raise UserError(f"{spec}: {error}") from None


def is_resnet(options):
    """Return whether options that weights determine are those of a `ResNetConfig`."""
    return "layers" in options


def resnet_name(options):
    """Return the name of a ResNet with these options, such as "resnet50", or None."""
    name = variants.resnet_name(ResNetConfig(**{key: options[key] for key in RESNET_OPTIONS}))
    return name if name and variants.parse(name).width == options["width"] else None


def _named(base, weights, stated):
    """Return the options that a name of the catalog determines, besides the sizes.

    Other names only determine the sizes, so that weights may have further parts. Fine-tuning may
    change the pooling; if the weights do not determine it, the final norm must be where it is in
    the architecture.
    """
    if not base or variants.TIMM_NAME.fullmatch(base) or not catalog.architecture(base):
        return {}
    ignored = {"pool", *SIZE_OPTIONS, *stated}
    ignored |= {"fc_norm"} if "pool" in weights.options else set()
    ignored |= set() if weights.layout is timm else set(CONVERTED)
    options = timm_config.architecture_options(base)
    return {key: x for key, x in options.items() if key not in ignored}


def _facts(options):
    """Describe the size of weights, such as "ViT-S/16 (width 384, depth 12)" or "resnet50"."""
    if is_resnet(options):
        return resnet_name(options) or "a ResNet"
    size = published_size(options)
    keys = ("width", "depth") if size else ("width", "depth", "patch")
    sizes = ", ".join(f"{key} {options[key]}" for key in keys)
    return f"ViT-{size}/{options['patch']} ({sizes})" if size else f"a ViT ({sizes})"


def _question(options, missing):
    """Return what to pass if weights do not determine some options."""
    values = {"num_heads": published_heads(options["width"]) or "N", "norm": "pre", "act": "gelu"}
    values["rope"] = "axial"
    stated = "--model=" + ",".join(f"{key}={values[key]}" for key in missing)
    name = _similar_name(options)
    keys = "with config.model_init, set config.model.variant or these keys of config.model"
    return f"{f'did you mean --model={name}? Or pass' if name else 'pass'} {stated}; {keys}"


def contradictions(options, stated):
    """Return the sorted names of the options whose stated values contradict the determined ones."""
    different = [
        key for key, x in stated.items() if key in options and not _agree(key, options[key], x)
    ]
    # mlp_dim follows from the width.
    hidden = {"mlp_dim"} if "width" in different and "mlp_dim" in different else set()
    return sorted(set(different) - hidden, key=list(options).index)


def _agree(key, a, b):
    """Return whether two values of an option allow the same weights."""
    if key == "layer_scale_init":
        return (a is None) == (b is None)
    return a == b


def compare(keys, options, stated, equals=" "):
    """Describe determined and stated options, such as "width 384, depth 12"."""
    ours = ", ".join(f"{key}{equals}{options[key]}" for key in keys)
    return ours, ", ".join(f"{key}{equals}{stated[key]}" for key in keys)


def _remedy(base, options, stated):
    """Return what to pass instead of a model name that contradicts the weights."""
    if name := _similar_name(options):
        if variants.PAPER_NAME.fullmatch(base) and variants.TIMM_NAME.fullmatch(name):
            name = f"{published_size(options)}/{options['patch']}"
        return f"did you mean --model={name}?"
    heads = is_resnet(options) or "num_heads" in options or published_heads(options["width"])
    if not heads:
        stated = {"num_heads": "N"} | stated
    overrides = ",".join(f"{key}={x}" for key, x in stated.items())
    return f"pass --model={overrides}" if overrides else "leave out --model"


def _similar_name(options):
    """Return a name of timm that the options of weights may be of, or None."""
    if is_resnet(options):
        return resnet_name(options)
    return _catalog_name(options) or _timm_name(options)


def _catalog_name(options):
    """Return the name of an architecture of the catalog with these options, or None."""
    free = ("num_classes", "channels", "rep_size", "pos_resize", "image")
    fixed = {key: x for key, x in options.items() if key not in free}
    image = options.get("image")
    plain = _timm_name(options)
    found = []
    for name in catalog.names(weights=False):
        published = timm_config.architecture_options(name)
        if not contradictions(fixed, published):
            size = catalog.architecture(name).get("image", 224)
            found.append((name != plain, image is not None and size != image, len(name), name))
    return min(found)[-1] if found else None


def _timm_name(options):
    """Return timm's name for published sizes, such as "vit_small_patch16_224", or None."""
    timm_sizes = {ours: theirs for theirs, ours in variants.TIMM_SIZES.items()}
    size = timm_sizes.get(published_size(options))
    return size and f"vit_{size}_patch{options['patch']}_{options.get('image', 224)}"


def published_size(options):
    """Return the name of the published size with these options, such as "S", or None."""
    keys = [key for key in SIZE_OPTIONS[:-1] if key in options]
    for size, values in variants.VARIANTS.items():
        if all(options[k] == x for k, x in zip(SIZE_OPTIONS, values, strict=False) if k in keys):
            return size
    return None


def published_heads(width):
    """Return the number of heads of the published sizes of this width, or None."""
    # Looked up by width, because the heads of H, g and G are not 64 wide.
    heads = {width: heads for width, _, heads, _ in variants.VARIANTS.values() if width >= 192}
    return heads.get(width)
