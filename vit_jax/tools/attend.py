"""Draw attention maps of a Vision Transformer, for any layers and heads.

python -m vit_jax.tools.attend --workdir=runs/dino --output=attention.png test:0 test:1 cat.jpg
python -m vit_jax.tools.attend --weights=FILE.safetensors --model=vit_small_patch8_224.dino \\
    --image=480 --layers=last --heads=all --style=mask --output=heads.png cat.jpg
python -m vit_jax.tools.attend --workdir=runs/dino --terminal --animate=layers.gif test:0

IMAGE is a file, a directory, a pattern such as "*.jpg" or, with a run, a row of its dataset: test:0
is the first test image. --image=keep does not crop a picture to a square.

A map shows the attention from the class token; for a model without one, the mean over all patches.
Layers are drawn side by side, or one per row if there are several heads. Figures with one row per
image also show the patch features, their first three principal components as colors. The arrays are
saved next to the figure as .npz: maps [images, layers, heads, rows, columns], and others.

Each map has its own scale. Below it are its maximum and the share of a patch in uniform attention;
a map with a maximum below twice its mean is marked as nearly uniform, on a scale up to four times
its mean.

--lens draws the logit lens of a model with a classifier: the class probabilities if the blocks
after a layer were skipped, and the probability of the predicted class for each patch alone.
"""

import re
import shutil
from functools import partial
from pathlib import Path

from absl import flags

from vit_jax import cli, progress, variants
from vit_jax.data.pictures import list_files
from vit_jax.errors import UserError, printable
from vit_jax.figures import INTERPOLATIONS
from vit_jax.tools import features, model_flags

MAX_FIGURE_IMAGES = 16
MAX_ANIMATED_IMAGES = 500
MAX_FIGURE_MAPS = 600  # a figure of 600 maps covers about one square meter
STYLES = ("overlay", "map", "mask")


def define_flags():
    model_flags.define_flags()
    model_flags.define_view_flags()
    flags.DEFINE_list(
        "layers",
        None,
        "layer numbers from 1, such as 1,6,12; last; or all (default: first, middle and last; with "
        "--against: last; to animate a single image: all)",
    )
    flags.DEFINE_list(
        "heads",
        None,
        "head numbers from 0, such as 0,2,5; all; mean or max over all heads; or rollout, which "
        "combines all layers up to the drawn one (default: mean; for a single layer also the first "
        "three heads)",
    )
    flags.DEFINE_enum(
        "style", "overlay", STYLES, "map over the image, map alone, or image masked by --keep"
    )
    flags.DEFINE_enum(
        "interpolation", "nearest", INTERPOLATIONS, "of the maps: one square per patch, or smooth"
    )
    flags.DEFINE_float("keep", 0.6, "share of the attention inside the outline or mask")
    flags.DEFINE_string("output", None, "figure to write: .png, .pdf or .svg")
    flags.DEFINE_string(
        "animate",
        None,
        "animation to write: .gif, .apng or .png; one frame per layer, or per image if there are "
        "several images",
    )
    flags.DEFINE_float(
        "fps", None, "frames per second of --animate (default: 2 for layers, 10 for images)"
    )
    flags.DEFINE_bool("terminal", False, "print the maps as text")
    flags.DEFINE_string("lens", None, "figure of the logit lens to write: .png, .pdf or .svg")


def main(flags, args):
    names = list_files(args, natural_key)
    configs = model_flags.check_flags(flags, names)
    for config in filter(None, configs):
        if variants.is_cnn(config.model.variant):
            raise UserError(f"{config.model.variant} has no attention maps; pass a ViT")
    models = model_flags.model_configs(flags)  # before JAX is imported
    for model in models:
        pick_layers(flags.layers or ["last"], model.depth)
    pick_heads(flags.heads or ["mean"], min(model.num_heads for model in models), 1)
    only_lens = flags.lens and not (flags.output or flags.animate or flags.terminal)
    if flags.lens:
        lens_path = check_lens(flags.lens, models)
    if not only_lens:
        check(len(names), **cli.arguments(check, flags))
    models = model_flags.load(flags)
    opened, errors = model_flags.open_images(names, models)
    if opened:
        for model in models:
            if preprocessing := model_flags.preprocessing(model):
                print(printable(f"{model.name}{preprocessing}"))
        if not only_lens:
            attend(models, opened, **cli.arguments(attend, flags))
        if flags.lens:
            draw_lens(models[0], opened, lens_path)
    return 2 if errors else 0


def check_lens(text, configs):
    """Return the Path of --lens=text. Raises UserError if the models cannot be drawn."""
    if len(configs) > 1:
        raise UserError("--lens draws one model; leave out the one of --against")
    if not configs[0].num_classes:
        raise UserError("--lens needs a classifier, which this model does not have")
    return cli.figure_path("lens", text)


def draw_lens(model, pictures, path):
    """Draw the logit lens of pictures and print the path of the figure.

    Args:
      model: `inference.LoadedModel` of a ViT with a classifier.
      pictures: `data.pictures.Picture`s; only the first MAX_FIGURE_IMAGES are drawn.
      path: Path of the figure.
    """
    from vit_jax.analysis import logit_lens
    from vit_jax.augment.host import to_channels
    from vit_jax.data.class_names import readable
    from vit_jax.figures import internals

    pictures = pictures[:MAX_FIGURE_IMAGES]
    names = [picture.name for picture in pictures]
    views = [picture.view(model) for picture in pictures]
    check_shapes(names, views)
    lens = logit_lens.extract(model, views, title="attend")
    shown = [to_channels(view, min(view.shape[2], 3)) for view in views]
    classes = readable(model.class_names)
    internals.logit_lens(shown, lens, classes, names).savefig(path, dpi=150)
    print(printable(path))


def attend(
    models,
    pictures,
    *,
    layers=None,
    heads=None,
    style="overlay",
    interpolation="nearest",
    keep=0.6,
    output=None,
    animate=None,
    fps=None,
    terminal=False,
):
    """Draw attention maps and save the arrays next to the figure.

    Args:
      models: one or two ViTs, each an `inference.LoadedModel`.
      pictures: `data.pictures.Picture`s, whose views must have one shape.
      layers: a list of numbers from 1, "last" or "all". None: first, middle and last; for two
        models the last; for the animation of a single image all.
      heads: a list of numbers from 0, "all", "mean", "max" or "rollout". None: the mean; for a
        single layer also the first three heads.
      style: "overlay", "map" or "mask".
      interpolation: of the maps, "nearest", one square per patch, or "bilinear".
      keep: share of the attention inside the outline or mask.
      output: .png, .pdf or .svg file to write.
      animate: .gif, .apng or .png file to write, with one frame per layer, or per image if there
        are several images.
      fps: frames per second; None: 2 for layers, 10 for images.
      terminal: whether to print the maps as text.

    Returns:
      A dict of numpy arrays: "maps" [images, layers, heads, rows, columns], "images", "mask",
      "colors" and others. Names for the second model have the prefix "against_".

    Raises:
      UserError: for unknown layers or heads, an invalid output or an unsuitable image size.
    """
    from vit_jax.analysis import attention_maps
    from vit_jax.augment.host import to_channels

    output, animate = check(
        len(pictures),
        output=output,
        animate=animate,
        terminal=terminal,
        style=style,
        interpolation=interpolation,
        keep=keep,
        fps=fps,
    )
    if any(model.is_cnn for model in models):
        raise UserError("a ResNet has no attention maps; pass a ViT")
    frame_per_layer = bool(animate) and len(pictures) == 1
    default = ["all"] if frame_per_layer else ["last"] if len(models) > 1 else None
    layers = [pick_layers(layers or default, model.depth) for model in models]
    num_layers = max(map(len, layers))
    heads = pick_heads(heads, min(model.num_heads for model in models), num_layers)
    row_per_layer = len(heads) > 1 and num_layers > 1
    check_size(len(pictures) if output else 1, layers, heads, row_per_layer or frame_per_layer)
    names = [picture.name for picture in pictures]
    views = [[picture.view(model) for picture in pictures] for model in models]
    for images in views:
        check_shapes(names, images)
    extracted = [
        attention_maps.extract(model, images, numbers, "rollout" in heads, title="attend")
        for model, images, numbers in zip(models, views, layers, strict=True)
    ]
    if terminal:
        from vit_jax.figures import terminal as text

        print(text.text(names, extracted, heads, shutil.get_terminal_size((100, 24)).columns))
    arrays = collect(names, views[0], extracted, keep)
    if output or animate:
        from vit_jax.figures import overlay
        from vit_jax.figures.attention import attention_figure

        shown = [to_channels(view, min(view.shape[2], 3)) for view in views[0]]
        options = dict(style=style, interpolation=interpolation, keep=keep)
        draw = partial(attention_figure, names, shown, extracted, heads, **options)
        rows = list(range(num_layers)) if row_per_layer else None
    if output:
        draw(range(len(names)), rows).savefig(output, dpi=150)
        save(output, arrays)
    if animate:
        frames = (draw([i], rows) for i in range(len(names)))
        if frame_per_layer:
            frames = (draw([0], [layer]) for layer in range(num_layers))
        count = num_layers if frame_per_layer else len(names)
        frames = progress.track(frames, "attend: drawing frames", total=count)
        overlay.animate(animate, frames, fps=fps or (2 if frame_per_layer else 10))
        save(animate, arrays)
    return arrays


def natural_key(path):
    """Return the sort key of natural order: 2.png before 10.png."""
    return [int(x) if x.isdigit() else x for x in re.split(r"([0-9]+)", path)]


def check(count, *, output, animate, terminal, style, interpolation, keep, fps):
    """Check the flags and create the directories of the output files.

    Args:
      count: number of images.
      output, animate, terminal, style, interpolation, keep, fps: as in `attend`.

    Returns:
      The paths of the figure and of the animation, each a Path or None.

    Raises:
      UserError: if a value is out of range or there is nothing to do.
    """
    if not (output or animate or terminal):
        raise UserError("pass --output=FILE.png, --animate=FILE.gif or --terminal")
    max_count = MAX_FIGURE_IMAGES if output or terminal else MAX_ANIMATED_IMAGES
    if not 0 < count <= max_count:
        raise UserError(
            f"got {count} images; pass 1 to {max_count}: files, directories or, with a run, rows "
            "such as test:0"
        )
    if style == "mask" and interpolation != "nearest":
        raise UserError(
            f"--interpolation={interpolation} does not apply to --style=mask, which shows whole "
            "patches; pass --style=overlay or --style=map"
        )
    if not 0 < keep <= 1:
        raise UserError(f"--keep={keep} must be above 0 and at most 1")
    if fps is not None and not 0.1 <= fps <= 50:
        raise UserError(f"--fps={fps} must be from 0.1 to 50")
    animation = Path(animate).expanduser() if animate else None
    if animation:
        if animation.suffix not in (".gif", ".apng", ".png"):
            raise UserError(f"--animate={animation} must be a .gif, .apng or .png file")
        cli.figure_path("animate", animation.with_suffix(".png"))  # creates the directory
    figure = cli.figure_path("output", output) if output else None
    if figure and figure == animation:
        raise UserError(f"--animate and --output are both {animation}; use different files")
    return figure, animation


def pick_layers(values, depth):
    """Return the selected layers as numbers from 1.

    Args:
      values: a list of numbers, "last" or "all"; None: first, middle and last.
      depth: number of layers of the model.

    Raises:
      UserError: for an unknown layer.
    """
    if values is None:
        from vit_jax.analysis import attention_maps

        return attention_maps.first_middle_last(depth)
    numbers = range(1, depth + 1)
    return pick("layers", values, numbers, {"all": numbers, "last": [depth]})


def pick_heads(values, num_heads, num_layers):
    """Return the selected heads as numbers from 0, "mean", "max" or "rollout".

    Args:
      values: a list of numbers, "all", "mean", "max" or "rollout"; None: the mean; for a single
        layer also the first three heads.
      num_heads: number of heads that all models have.
      num_layers: number of layers to draw.

    Raises:
      UserError: for an unknown head.
    """
    if values is None:
        single = num_layers == 1 and num_heads > 1
        return ["mean", *range(min(3, num_heads))] if single else ["mean"]
    named = {"all": range(num_heads)} | {name: [name] for name in ("mean", "max", "rollout")}
    return pick("heads", values, range(num_heads), named)


def pick(flag, values, numbers, named):
    """Look up each value among the numbers and names; return the selection without duplicates."""
    choices = {str(number): [number] for number in numbers} | named
    try:
        return list(dict.fromkeys(x for value in values for x in choices[str(value)]))
    except KeyError:
        raise UserError(
            f"--{flag}={','.join(map(str, values))} must be numbers from {numbers[0]} to "
            f"{numbers[-1]}, or {', '.join(named)}"
        ) from None


def check_size(num_images, layers, heads, aligned):
    """Check the number of maps in the figure.

    Args:
      num_images: number of images.
      layers: the layers of each model.
      heads: the selected heads.
      aligned: whether the models share one row or frame per layer.

    Raises:
      UserError: if the figure would be too large, or the layers of two models cannot be aligned.
    """
    counts = [len(numbers) for numbers in layers]
    if aligned and len(set(counts)) > 1:
        raise UserError("the models have different depths; select layers, as in --layers=1,2,3")
    num_maps = num_images * sum(counts) * len(heads)
    if num_maps > MAX_FIGURE_MAPS:
        raise UserError(
            f"the figure would have {num_maps} maps, but the maximum is {MAX_FIGURE_MAPS}; select "
            "fewer images, --layers or --heads"
        )


def check_shapes(names, views):
    """Raise UserError if views, whose shapes are kept, have different shapes."""
    for name, view in zip(names, views, strict=True):
        if view.shape != views[0].shape:
            sizes = [f"{x.shape[0]}x{x.shape[1]}" for x in (views[0], view)]
            raise UserError(
                f"the views of {names[0]} and {name} have different shapes, {sizes[0]} and "
                f"{sizes[1]}; pass images of one shape, or --image=HEIGHTxWIDTH"
            )


def collect(names, views, extracted, keep):
    """Collect the drawn arrays of all models in one dict."""
    import numpy as np

    from vit_jax.analysis.attention import mass_mask
    from vit_jax.figures.attention import describe_grid, query_name

    arrays = {"names": np.array(names), "images": np.stack(views)}
    for prefix, model in zip(("", "against_"), extracted, strict=False):
        model_arrays = {
            "maps": model.maps,
            "layers": model.layers,
            "heads": range(model.maps.shape[2]),
            "mask": mass_mask(model.maps.mean(2), keep),
            "colors": model.colors,
            "note": f"{model.name}: attention of {query_name(model)}; {describe_grid(model)}",
        }
        if model.rollout is not None:
            model_arrays["rollout"] = model.rollout
        arrays |= {prefix + name: np.asarray(array) for name, array in model_arrays.items()}
    return arrays


def save(path, arrays):
    """Write the arrays next to a figure and print the paths of both files."""
    features.write(path.with_suffix(".npz"), arrays)
    print(f"{printable(path)}\n{printable(path.with_suffix('.npz'))}")


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="IMAGE...")
