"""What is known about weights before they are loaded; imports no JAX.

Names and shapes of the tensors, the config.json next to a file, and the name that the user passes
must agree.
"""

import dataclasses
from typing import NamedTuple

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.pretrained import _card, _files, _names, hf_config, hub, runs, timm_config
from vit_jax.pretrained._match import (
    DEFAULTED,
    UNDETERMINED,
    compare,
    contradictions,
    published_size,
    resolve,
)
from vit_jax.schema import member, members
from vit_jax.variants import SIZE_OPTIONS, ViTConfig

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
        return describe_run(spec)[1]
    weights = determine(spec)
    config, assumed = resolve(weights, variant, {})
    return describe_file(weights, config, variant, assumed)


def describe_run(workdir):
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


def describe_file(weights, config, name, assumed):
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
        if different := contradictions(determined, stated):
            ours, theirs = compare(different, determined, stated)
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


def _model_keys(config, cnn=None):
    """Return the keys of `config.model` for a model with this config; cnn: the name of a ResNet."""
    if not isinstance(config, ViTConfig):
        base = variants.parse(cnn)
        options = {key: getattr(config, key) for key in ("width", "channels")}
        return {"variant": cnn} | {k: x for k, x in options.items() if x != getattr(base, k)}
    sizes = {key: getattr(config, key) for key in SIZE_OPTIONS}
    size = published_size(sizes)
    default = variants.parse("S/16", pool=config.pool)
    options = {key: getattr(config, key) for key in ARCHITECTURE_OPTIONS}
    options["class_token"] = None if config.prefix == default.prefix else bool(config.prefix)
    norm_after_pool = config.norm_after_pool
    options["fc_norm"] = None if norm_after_pool == default.norm_after_pool else norm_after_pool
    options = {k: x for k, x in options.items() if k == "pool" or x != getattr(default, k)}
    if options["pool"] == "cls":
        del options["pool"]
    return ({"variant": f"{size}/{config.patch}"} if size else sizes) | options
