"""What is known about weights before they are loaded; imports no JAX.

Names and shapes of the tensors, the config.json next to a file, the name that the user passes and
config.model must agree.
"""

import dataclasses
import math
from typing import NamedTuple

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.pretrained import _card, _files, _names, hf_config, hub, runs, timm_config
from vit_jax.schema import member, members
from vit_jax.variants import SIZE_OPTIONS, ViTConfig
from vit_jax.workdir import storage

# Options that can be changed freely, because the weights of a model do not depend on them.
FREE_OPTIONS = {
    *("image", "num_classes", "dtype", "patch_embed", "drop_path", "dropout", "remat", "scan"),
    *("attn", "init"),
}
ARCHITECTURE_OPTIONS = tuple(
    field.name
    for field in dataclasses.fields(ViTConfig)
    if field.name not in FREE_OPTIONS | {*SIZE_OPTIONS}
)
# Options that neither names nor shapes of tensors determine. A wrong one gives wrong numbers.
UNDETERMINED = ("num_heads", "norm", "act", "rope")
# Further ones, whose defaults fit most models; layouts and config.json files state the others.
DEFAULTED = ("norm_eps", "rope_temperature", "rope_order", "rope_grid")
# Options of fine-tuned weights that may differ: those of the head, and of resizing.
MAY_DIFFER = (*("pool", "fc_norm", "rep_size", "pos_resize", "no_embed_class", "embed_reg"),)
CARD_OPTIONS = (*UNDETERMINED, *DEFAULTED, "pool")  # that are taken from a config.json


class Description(NamedTuple):
    """What is known about weights without loading them.

    Attributes:
      model: keys of `config.model` for a model with these weights: "variant" if the sizes are
        published ones, otherwise each size; and the options that differ from their defaults.
      mean: mean of images scaled to [0, 1], one value per channel.
      std: standard deviation of images scaled to [0, 1], one value per channel.
      crop: crop ratio for evaluation.
      certain: whether mean, std and crop are known; False: they are assumed.
      image: image size of the weights, pixels.
      num_classes: number of classes; 0: no classifier.
      source: where mean, std and crop are from, for messages.
      class_names: names of the classes; None: unknown.
      assumed: names of what is assumed, such as "norm", "act", "mean", "std" and "crop".
      notes: what the user should know about how the weights are used, as texts.
    """

    model: dict
    mean: tuple
    std: tuple
    crop: float
    certain: bool
    image: int
    num_classes: int
    source: str
    class_names: list | None = None
    assumed: tuple = ()
    notes: tuple = ()


class _Weights(NamedTuple):
    """What the names and shapes of a file, and the config.json next to it, determine.

    Attributes:
      spec: the file.
      names: {name of a tensor in the model: name in the file}.
      layout: module of this package.
      options: options of `ViTConfig` that are determined.
      card: a `_card.Card`, or None.
      notes: what the user should know about the file, as texts.
    """

    spec: str
    names: dict
    layout: object
    options: dict
    card: _card.Card | None
    notes: tuple

    def read(self):
        """Read the tensors as {name in the model: float32 array}."""
        tensors = _files.read(self.spec, self.names.values())
        return {name: tensors[key] for name, key in self.names.items()}


def describe(spec, variant=None):
    """Describe weights from the header of a file or the config of a run; imports no JAX.

    Args:
      spec: a weight file or the workdir of a run, as in `load`.
      variant: name of the model, for a file that does not determine it.

    Returns:
      A `Description`.

    Raises:
      UserError: if the weights cannot be read, are not supported, or contradict `variant`.
    """
    if _files.is_run(spec):
        return _describe_run(spec)[1]
    weights = determine(spec)
    config, assumed = resolve(weights, variant, {})
    return _describe_file(weights, config, variant, assumed)


def _describe_run(workdir):
    """Return the `ViTConfig` or `ResNetConfig` of a run, and the `Description`."""
    c, record = runs.read(workdir)
    config = variants.from_config(c.model, record["data"]["num_classes"])
    return config, Description(
        model=_model_keys(config, c.model.variant),
        mean=c.data.mean,
        std=c.data.std,
        crop=c.augment.eval_crop,
        certain=True,
        image=config.image,
        num_classes=config.num_classes,
        source=f"the config of {workdir}",
        class_names=record["data"]["class_names"],
    )


def _describe_file(weights, config, name, assumed):
    """Return the `Description` of a file that is loaded as a model with this `ViTConfig`."""
    card = weights.card
    name = name if name and "=" not in name.split(",")[0] else None
    label = card.name if card and card.name else name
    dino = config.pos_resize == "dino"
    mean, std, crop, certain = timm_config.preprocessing(
        label, config.image, config.channels, dino=dino
    )
    source = f"the name {label.split(',')[0]}" if certain and label else "DINO's code"
    if card and card.preprocessing:
        mean, std, crop = card.preprocessing
        if not len(mean) == len(std) == config.channels:
            raise UserError(
                f"{card.path}: mean and std must have {config.channels} values, one per channel; "
                "correct or remove it"
            )
        certain = True
        source = str(card.path)
    if not certain:
        assumed += ("mean", "std", "crop")
        source = "an assumption"
    notes = weights.notes + (card.notes if card else ())
    match = variants.TIMM_NAME.fullmatch(timm_config.plain_name((name or "").split(",")[0])[0])
    if match and int(match["image"]) != config.image:
        notes += (f"image size {config.image} as in the file, not {match['image']}",)
    return Description(
        model=_model_keys(config),
        mean=mean,
        std=std,
        crop=crop,
        certain=certain,
        image=config.image,
        num_classes=config.num_classes,
        source=source,
        class_names=card.class_names if card else None,
        assumed=assumed,
        notes=notes,
    )


def determine(spec):
    """Determine the layout and the options of the weights of a file, as `_Weights`."""
    path, which = _files.locate(spec)
    shapes = _files.read_shapes(spec)
    try:
        names, note = _names.unwrap(shapes, which)
        tensors = {name: shapes[key] for name, key in names.items()}
        layouts = (member("pretrained", name) for name in members("pretrained"))
        layout = next((m for m in layouts if m.matches(tensors)), None)
        if layout is None:
            examples = ", ".join(sorted(names)[:3]) or "no weights"
            raise UserError(f"unknown weight layout, with keys such as {examples}")
        determined = layout.options(tensors)
        defaults = layout.defaults(tensors) if hasattr(layout, "defaults") else {}
    except UserError as error:
        raise UserError(f"{spec}: {error}") from None
    except KeyError as error:
        raise UserError(f"{spec}: missing tensor {error}") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{spec}: the tensor shapes do not match a ViT") from error
    card = _read_card(path)
    if card:
        stated = card.options
        if different := _contradictions(determined, stated):
            ours, theirs = _compare(different, determined, stated)
            raise UserError(
                f"{spec}: the weights have {ours}, but {card.path} has {theirs}; remove the "
                "config.json if it is of other weights"
            )
        # All models of timm whose names are supported in its config.json are of this kind.
        implied = {"norm": "pre", "act": "gelu"} if card.name else {}
        known = {key: stated[key] for key in CARD_OPTIONS if key in stated}
        determined = implied | known | determined
    determined = defaults | determined
    notes = [note] if note else []
    if hub.is_hub(spec):
        notes.append(f"commit {hub.commit(path)}")
    return _Weights(spec, names, layout, determined, card, tuple(notes))


def _read_card(path):
    """Return the `_card.Card` next to a weight file; None if there is none."""
    path = (path if path.is_dir() else path.parent) / "config.json"
    config = _card.read(path)
    try:
        return (timm_config if "architecture" in config else hf_config).card(path, config)
    except (OverflowError, TypeError, ValueError, AttributeError) as error:
        what = _card.shown(error)
        raise UserError(f"{path} cannot be used: {what}; correct or remove it") from None


def resolve(weights, name, overrides):
    """Combine what weights determine with what the user states.

    Args:
      weights: `_Weights`.
      name: name of the model, as in `load`.
      overrides: options of `ViTConfig`, as in `load`.

    Returns:
      The `ViTConfig`, and the names of the options in it that are assumed.

    Raises:
      UserError: if they contradict each other, or the number of heads is unknown.
    """
    spec, options = weights.spec, weights.options
    if variants.is_cnn(name or ""):
        raise UserError(f"{spec}: {name} weights can only be loaded from a run; name a ViT")
    name = name or ""
    base, stated = variants.split_name(f",{name}" if "=" in name.split(",")[0] else name)
    stated = {key: x for key, x in (stated | overrides).items() if x is not None}
    if options["channels"] == 3:  # from which the patch embedding can be adapted
        options = options | {"channels": stated.get("channels", 3)}
    if different := _contradictions(options, stated):
        ours, theirs = _compare(different, options, stated, " = ")
        raise UserError(f"{spec}: the weights have {ours}, but {theirs} was passed; leave it out")
    if "pos_embed" not in options | stated:
        raise UserError(
            f"{spec}: the weights have no position embeddings; if they are fixed 2-D sin-cos "
            "embeddings, pass pos_embed=sincos2d; if they are rotary, pass pos_embed=none and rope="
        )
    if base:
        plain, named = timm_config.plain_name(base)
        rest = {key: x for key, x in options.items() if key not in SIZE_OPTIONS}
        config = variants.parse(plain, **named | rest | stated)
        named |= {key: getattr(config, key) for key in SIZE_OPTIONS}
        if different := _contradictions(options, named):
            _, theirs = _compare(different, options, named)
            further = [key for key in different if key not in ("width", "depth", "patch")]
            ours = f" with {_compare(further, options, named)[0]}" if further else ""
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


def _facts(options):
    """Describe the size of weights, such as "ViT-S/16 (width 384, depth 12)"."""
    size = _published_size(options)
    keys = ("width", "depth") if size else ("width", "depth", "patch")
    sizes = ", ".join(f"{key} {options[key]}" for key in keys)
    return f"ViT-{size}/{options['patch']} ({sizes})" if size else f"a ViT ({sizes})"


def _question(options, missing):
    """Return what to pass if weights do not determine some options."""
    values = {"num_heads": _published_heads(options["width"]) or "N", "norm": "pre", "act": "gelu"}
    values["rope"] = "axial"
    stated = "--model=" + ",".join(f"{key}={values[key]}" for key in missing)
    name = _timm_name(options)
    keys = "with config.model_init, set config.model.variant or these keys of config.model"
    return f"{f'did you mean --model={name}? Or pass' if name else 'pass'} {stated}; {keys}"


def _contradictions(options, stated):
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


def _compare(keys, options, stated, equals=" "):
    """Describe determined and stated options, such as "width 384, depth 12"."""
    ours = ", ".join(f"{key}{equals}{options[key]}" for key in keys)
    return ours, ", ".join(f"{key}{equals}{stated[key]}" for key in keys)


def _remedy(base, options, stated):
    """Return what to pass instead of a model name that contradicts the weights."""
    if name := _timm_name(options):
        if not variants.TIMM_NAME.fullmatch(base):
            name = f"{_published_size(options)}/{options['patch']}"
        return f"did you mean --model={name}?"
    if _published_heads(options["width"]) is None and "num_heads" not in options:
        stated = {"num_heads": "N"} | stated
    overrides = ",".join(f"{key}={x}" for key, x in stated.items())
    return f"pass --model={overrides}" if overrides else "leave out --model"


def _timm_name(options):
    """Return timm's name for published sizes, such as "vit_small_patch16_224", or None."""
    timm_sizes = {ours: theirs for theirs, ours in variants.TIMM_SIZES.items()}
    size = timm_sizes.get(_published_size(options))
    return size and f"vit_{size}_patch{options['patch']}_{options.get('image', 224)}"


def _published_size(options):
    """Return the name of the published size with these options, such as "S", or None."""
    keys = [key for key in SIZE_OPTIONS[:-1] if key in options]
    for size, values in variants.VARIANTS.items():
        if all(options[k] == x for k, x in zip(SIZE_OPTIONS, values, strict=False) if k in keys):
            return size
    return None


def _published_heads(width):
    """Return the number of heads of the published sizes of this width, or None."""
    # Looked up by width, because the heads of H, g and G are not 64 wide.
    heads = {width: heads for width, _, heads, _ in variants.VARIANTS.values() if width >= 192}
    return heads.get(width)


def _model_keys(config, cnn=None):
    """Return the keys of `config.model` for a model with this config; cnn: the name of a ResNet."""
    if not isinstance(config, ViTConfig):
        base = variants.parse(cnn)
        options = {key: getattr(config, key) for key in ("width", "channels")}
        return {"variant": cnn} | {k: x for k, x in options.items() if x != getattr(base, k)}
    sizes = {key: getattr(config, key) for key in SIZE_OPTIONS}
    size = _published_size(sizes)
    default = variants.parse("S/16", pool=config.pool)
    options = {key: getattr(config, key) for key in ARCHITECTURE_OPTIONS}
    options["class_token"] = None if config.prefix == default.prefix else bool(config.prefix)
    norm_after_pool = config.norm_after_pool
    options["fc_norm"] = None if norm_after_pool == default.norm_after_pool else norm_after_pool
    options = {k: x for k, x in options.items() if k == "pool" or x != getattr(default, k)}
    if options["pool"] == "cls":
        del options["pool"]
    return ({"variant": f"{size}/{config.patch}"} if size else sizes) | options


def check_init(config, num_classes=None):
    """Check that config.model_init fits config.model and config.data; imports no JAX.

    Args:
      config: a checked config with config.model_init.
      num_classes: number of classes of the dataset; None: unknown.

    Returns:
      A list of lines to print at the start of training; may be empty.

    Raises:
      UserError: if the weights cannot be read or do not fit. The message names the config keys.
    """
    spec = config.model_init
    ours = variants.from_config(config.model, num_classes)
    description = _fitting_description(config, ours)
    notes = [f"{spec}: {note}" for note in description.notes]
    if not description.certain:
        used = {key: f"config.data.{key} = {config.data[key]}" for key in ("mean", "std")}
        used |= {
            key: f"config.model.{key} = '{getattr(ours, key)}'"
            for key in ("norm", "act")
            if key in description.assumed
        }
        return [
            *notes,
            f"{spec} does not determine {_and(used)}: training uses {_and(used.values())}",
        ]
    flags = []
    for key in ("mean", "std"):
        values = getattr(description, key)
        if len(values) != len(config.data[key]):
            continue  # the patch embedding is adapted to other channels
        pairs = zip(values, config.data[key], strict=True)
        if not all(math.isclose(a, b, abs_tol=1e-3) for a, b in pairs):
            flags.append(f"--config.data.{key}='{tuple(values)}'")
    if flags:
        raise UserError(
            f"config.model_init = '{spec}' expects mean {description.mean} and std "
            f"{description.std} ({description.source}), but config.data has mean "
            f"{config.data.mean} and std {config.data.std}; pass {' '.join(flags)}"
        )
    return notes


def _and(items):
    """Join texts as "a, b and c"."""
    *first, last = items
    return f"{', '.join(first)} and {last}"


def _fitting_description(config, ours):
    """Return the `Description` of config.model_init.

    Args:
      config: the config of the run.
      ours: the `ViTConfig` or `ResNetConfig` of config.model.

    Raises:
      UserError: as in `check_init`, except for mean and std.
    """
    spec = config.model_init
    is_run = _files.is_run(spec)
    path = storage.resolve(spec) if is_run else spec
    try:
        found = _describe_run(path) if is_run else determine(path)
    except UserError as error:
        raise UserError(f"config.model_init: {error}") from None
    if is_run:
        source, description = found
        if type(source) is not type(ours):
            flags = " ".join(f"--config.model.{key}={x}" for key, x in description.model.items())
            raise UserError(
                f"config.model_init = '{spec}' is a {type(source).__name__.removesuffix('Config')}"
                f", but config.model.variant = '{config.model.variant}'; pass {flags}"
            )
        _check_architecture(config, _architecture(source), ours, description.model)
        return description
    if not isinstance(ours, ViTConfig):
        raise UserError(
            f"config.model_init = '{spec}' has the weights of a ViT, but config.model.variant "
            f"= '{config.model.variant}'; pass a ViT, such as --config.model.variant=S/16"
        )
    _check_architecture(config, {"pos_embed": "sincos2d"} | found.options, ours)
    resolved, _ = resolve(found, None, undetermined(ours))
    assumed = tuple(key for key in UNDETERMINED if key not in found.options)
    return _describe_file(found, resolved, config.model.variant, assumed)


def undetermined(config):
    """Return the options of a `ViTConfig` that the weights of a file may leave open."""
    options = {key: getattr(config, key) for key in (*UNDETERMINED, *DEFAULTED)}
    return options | ({"pos_embed": "sincos2d"} if config.pos_embed == "sincos2d" else {})


def _architecture(config):
    """Return the options of a model that must agree for fine-tuning, as {key of config.model: x}.

    What may differ is left out: image size, number of classes, the place of the final norm, and
    pooling other than attention pooling.
    """
    if not isinstance(config, ViTConfig):
        return {key: getattr(config, key) for key in ("block", "layers", "width", "channels")}
    options = {key: getattr(config, key) for key in (*SIZE_OPTIONS, *ARCHITECTURE_OPTIONS)}
    for key in MAY_DIFFER:
        del options[key]
    options["class_token"] = config.has_class_token
    if config.has_class_token and config.pos_embed == "learned":
        options["no_embed_class"] = config.no_embed_class
    if config.pool == "map":
        options["pool"] = "map"
    return options


def _check_architecture(config, theirs, ours, cnn=None):
    """Raise UserError if weights do not fit config.model.

    Args:
      config: the config of the run.
      theirs: options of the weights: all of `_architecture`, or those that a file determines.
      ours: the `ViTConfig` or `ResNetConfig` of config.model.
      cnn: for a ResNet: keys of config.model for a model with these weights.
    """
    wanted = _architecture(ours)
    if isinstance(ours, ViTConfig) and theirs["channels"] == 3:
        wanted["channels"] = 3  # from which the patch embedding can be adapted
    if "map" in (theirs.get("pool"), wanted.get("pool")):
        # Other kinds of pooling have no weights.
        theirs = {"pool": "cls" if theirs["class_token"] else "gap"} | theirs
        wanted["pool"] = ours.pool
    if not (different := _contradictions(theirs, wanted)):
        return
    has, expected = _compare(different, theirs, wanted)
    flags = {key: theirs[key] for key in different}
    if not isinstance(ours, ViTConfig):
        flags = cnn
    elif flags.keys() & {*SIZE_OPTIONS}:
        size = _published_size(theirs)
        if size and all(config.model[key] is None for key in SIZE_OPTIONS):
            variant = f"{size}/{theirs['patch']}"
            has = f"{has} ({variant})"
            expected = f"{expected} (config.model.variant = '{config.model.variant}')"
            flags = {k: x for k, x in flags.items() if k not in SIZE_OPTIONS}
            flags = {"variant": variant} | flags
        elif "width" in flags:  # heads and MLP follow from it unless they are set
            flags |= {k: theirs[k] for k in ("num_heads", "mlp_dim") if k in theirs}
    if flags.get("class_token") is False and ours.pool == "cls":
        flags = {"pool": "gap"} | {k: x for k, x in flags.items() if k != "class_token"}
    flags = " ".join(f"--config.model.{key}={x}" for key, x in flags.items())
    raise UserError(
        f"config.model_init = '{config.model_init}' has {has}, but config.model has {expected}; "
        f"pass {flags}"
    )
