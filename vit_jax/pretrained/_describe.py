"""What is known about weights before they are loaded; imports no JAX.

Names and shapes of the tensors, the config.json next to a file, and the name that the user passes
must agree.
"""

import dataclasses
import re
from typing import NamedTuple

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.pretrained import (
    _card,
    _files,
    _names,
    _own_card,
    _safetensors,
    hf_config,
    hub,
    runs,
    timm_config,
)
from vit_jax.pretrained._match import (
    RESNET_OPTIONS,
    compare,
    contradictions,
    published_size,
    resolve,
)
from vit_jax.schema import member, members, size_text
from vit_jax.variants import SIZE_OPTIONS, ViTConfig

# Options that can be changed freely, because the weights of a model do not depend on them.
FREE_OPTIONS = {"image", "num_classes"} | _own_card.RUNTIME_OPTIONS
ARCHITECTURE_OPTIONS = tuple(
    field.name
    for field in dataclasses.fields(ViTConfig)
    if field.name not in FREE_OPTIONS | {*SIZE_OPTIONS}
)


class Description(NamedTuple):
    """What is known about weights without loading them.

    Attributes:
      model: keys of `config.model` for a model with these weights: "variant" if the sizes are
        published ones, otherwise each size; and the options that differ from their defaults.
      mean: mean of images scaled to [0, 1], one value per channel.
      std: standard deviation of images scaled to [0, 1], one value per channel.
      crop: crop ratio for evaluation.
      image: image size of the weights, pixels.
      num_classes: number of classes; 0: no classifier.
      source: where mean, std and crop are from, for messages.
      class_names: names of the classes; None: unknown.
      assumed: names of what is assumed, such as "norm", "act", "mean", "std" and "crop".
      notes: what the user should know about how the weights are used, as texts.
      interpolation: interpolation of images, "bicubic" or "bilinear".
      crop_mode: "center": center crop; "squash": images are resized to the square.
    """

    model: dict
    mean: tuple
    std: tuple
    crop: float
    image: int
    num_classes: int
    source: str
    class_names: list | None = None
    assumed: tuple = ()
    notes: tuple = ()
    interpolation: str = "bicubic"
    crop_mode: str = "center"

    @property
    def certain(self):
        """Whether mean and std are known rather than assumed."""
        return not {"mean", "std"} & {*self.assumed}


class _Weights(NamedTuple):
    """What the names and shapes of a file, and the config.json next to it, determine.

    Attributes:
      spec: the file.
      names: {name of a tensor in the model: name in the file}.
      layout: module of this package.
      options: options of `ViTConfig` or `ResNetConfig` that are determined.
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
        image=config.image,
        num_classes=config.num_classes,
        source=f"the config of {workdir}",
        class_names=record["data"]["class_names"],
        interpolation=c.augment.interpolation,
        crop_mode=c.augment.crop_mode,
    )


def describe_file(weights, config, name, assumed):
    """Return the `Description` of a file that is loaded as a model with this config."""
    card = weights.card
    name = name if name and "=" not in name.split(",")[0] else None
    label = card.name if card and card.name else name
    dino = getattr(config, "pos_resize", None) == "dino"
    cnn = None if isinstance(config, ViTConfig) else variants.resnet_name(config)
    channels = weights.options["channels"]
    view, unknown = timm_config.preprocessing(label or cnn, config.image, channels, dino=dino)
    notes = weights.notes + (card.notes if card else ())
    if cnn and not label:  # published weights of the architecture; these may be others
        unknown = ("mean", "std", "crop")
    if cnn and not label and not card and len(config.layers) == 4:
        notes += (f"loaded as {cnn}; a ResNet with anti-aliasing has the same tensors",)
    source = "an assumption" if unknown == ("mean", "std", "crop") else f"the name {label}"
    source = "DINO's code" if view == timm_config.DINO else source
    if card and card.preprocessing:
        view = _card.View(*card.preprocessing)
        if not len(view.mean) == len(view.std) == channels:
            raise UserError(
                f"{card.path}: mean and std must have {channels} values, one per channel; correct "
                "or remove it"
            )
        unknown = ()
        source = str(card.path)
    match = re.search(r"_patch\d+\w*_(\d+)(\.|$)", (name or "").split(",")[0])
    if match and int(match[1]) != config.image:
        notes += (f"image size {config.image} as in the file, not {match[1]}",)
    patch = weights.options.get("patch")
    if patch is not None and patch != config.patch:
        sizes = f"from {size_text(patch)} to {size_text(config.patch)} pixels"
        notes += (f"patch embedding resized {sizes}, as in FlexiViT",)
    if channels != config.channels:
        mean, std = (_adapt_channels(values, config.channels) for values in (view.mean, view.std))
        view = view._replace(mean=mean, std=std)
    return Description(
        model=_model_keys(config, cnn),
        **view._asdict(),
        image=config.image,
        num_classes=config.num_classes,
        source=source,
        class_names=card.class_names if card else None,
        assumed=(*assumed, *unknown),
        notes=notes,
    )


def _adapt_channels(values, channels):
    """Adapt values per channel as the patch embedding (`adapt_kernel`): averaged or repeated."""
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))


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
        raise UserError(f"{spec}: the tensor shapes do not match a ViT or a ResNet") from error
    card = _read_card(path)
    if card is None and hub.is_hub(spec):
        card = timm_config.catalog_card(path, hub.REPOSITORY.match(spec[len(hub.PREFIX) :])["id"])
    if card:
        stated = card.options
        if different := contradictions(determined, stated):
            ours, theirs = compare(different, determined, stated)
            raise UserError(
                f"{spec}: the weights have {ours}, but {card.path} has {theirs}; remove the "
                "config.json if it is of other weights"
            )
        determined = stated | determined
    determined = defaults | determined
    notes = [note] if note else []
    if hub.is_hub(spec):
        notes.append(f"commit {hub.commit(path)}")
    return _Weights(spec, names, layout, determined, card, tuple(notes))


def _read_card(path):
    """Return the `_card.Card` in a weight file or next to it; None if there is none."""
    config = _safetensors.metadata(path)
    if _own_card.KEY not in config:
        path = (path if path.is_dir() else path.parent) / "config.json"
        config = _card.read(path)
    try:
        if _own_card.KEY in config:
            return _own_card.card(path, config[_own_card.KEY])
        return (timm_config if "architecture" in config else hf_config).card(path, config)
    except (OverflowError, TypeError, ValueError, AttributeError) as error:
        what = _card.shown(error)
        raise UserError(f"{path} cannot be used: {what}; correct or remove it") from None


def _model_keys(config, cnn=None):
    """Return the keys of `config.model` for a model with this config; cnn: the name of a ResNet.

    A ResNet without a name has the options block and layers, which are no keys of `config.model`.
    """
    if not isinstance(config, ViTConfig):
        cnn = cnn or "resnet18"
        base = variants.parse(cnn)
        options = {key: getattr(config, key) for key in (*RESNET_OPTIONS, "channels")}
        return {"variant": cnn} | {k: x for k, x in options.items() if x != getattr(base, k)}
    sizes = {key: getattr(config, key) for key in SIZE_OPTIONS}
    size = isinstance(config.patch, int) and published_size(sizes)
    default = variants.parse("S/16", pool=config.pool)
    options = {key: getattr(config, key) for key in ARCHITECTURE_OPTIONS}
    class_token = config.has_class_token
    options["class_token"] = None if class_token == default.has_class_token else class_token
    norm_after_pool = config.norm_after_pool
    options["fc_norm"] = None if norm_after_pool == default.norm_after_pool else norm_after_pool
    options = {k: x for k, x in options.items() if k == "pool" or x != getattr(default, k)}
    if options["pool"] == "cls":
        del options["pool"]
    return ({"variant": f"{size}/{config.patch}"} if size else sizes) | options
