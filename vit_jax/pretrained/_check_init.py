"""Check that pretrained weights fit a config; imports no JAX."""

import math

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.pretrained import _files
from vit_jax.pretrained._describe import (
    ARCHITECTURE_OPTIONS,
    describe_file,
    describe_run,
    determine,
)
from vit_jax.pretrained._match import (
    DEFAULTED,
    RESNET_OPTIONS,
    UNDETERMINED,
    compare,
    contradictions,
    is_resnet,
    published_size,
    resnet_name,
    resolve,
)
from vit_jax.variants import SIZE_OPTIONS, ViTConfig
from vit_jax.workdir import storage

# Options of fine-tuned weights that may differ: those of the head, and of resizing.
MAY_DIFFER = ("pool", "fc_norm", "rep_size", "pos_resize", "no_embed_class", "embed_reg")


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
    if description.interpolation != config.augment.interpolation:
        notes.append(
            f"{spec} expects {description.interpolation} interpolation; training uses "
            f"config.augment.interpolation = '{config.augment.interpolation}'"
        )
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
        found = describe_run(path) if is_run else determine(path)
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
    cnn = is_resnet(found.options)
    if cnn == isinstance(ours, ViTConfig):
        kind = "ResNet" if cnn else "ViT"
        name = (resnet_name(found.options) or "resnet50") if cnn else "S/16"
        raise UserError(
            f"config.model_init = '{spec}' has the weights of a {kind}, but config.model.variant "
            f"= '{config.model.variant}'; pass a {kind}, such as --config.model.variant={name}"
        )
    if cnn:
        resolved, _ = resolve(found, None, {})
        if variants.resnet_name(resolved) is None:
            layers = "-".join(map(str, resolved.layers))
            raise UserError(
                f"config.model_init = '{spec}' is a ResNet of {layers} {resolved.block} blocks, "
                "which no config.model.variant has; use other weights"
            )
        theirs = {key: found.options[key] for key in (*RESNET_OPTIONS, "channels")}
        description = describe_file(found, resolved, config.model.variant, ())
        _check_architecture(config, theirs, ours, description.model)
        return description
    _check_architecture(config, {"pos_embed": "sincos2d"} | found.options, ours)
    resolved, _ = resolve(found, None, undetermined(ours))
    assumed = tuple(key for key in UNDETERMINED if key not in found.options)
    return describe_file(found, resolved, config.model.variant, assumed)


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
        return {key: getattr(config, key) for key in (*RESNET_OPTIONS, "channels")}
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
    if theirs["channels"] == 3:
        wanted["channels"] = 3  # from which the patch embedding or the stem can be adapted
    if "map" in (theirs.get("pool"), wanted.get("pool")):
        # Other kinds of pooling have no weights.
        theirs = {"pool": "cls" if theirs["class_token"] else "gap"} | theirs
        wanted["pool"] = ours.pool
    if not (different := contradictions(theirs, wanted)):
        return
    has, expected = compare(different, theirs, wanted)
    flags = {key: theirs[key] for key in different}
    if not isinstance(ours, ViTConfig):
        flags = cnn
    elif flags.keys() & {*SIZE_OPTIONS}:
        size = published_size(theirs)
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
