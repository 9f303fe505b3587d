"""Draw the attention of any layers and heads of a Vision Transformer, and features as colors.

python -m vit_jax.tools.attend --workdir=runs/dino --output=seen.png test:0 test:1 cat.jpg
python -m vit_jax.tools.attend --weights=FILE.safetensors --model=vit_small_patch8_224.dino \\
    --image=480 --layers=last --heads=all --style=mask --output=heads.png cat.jpg
python -m vit_jax.tools.attend --workdir=runs/dino --terminal --animate=layers.gif test:0

Draws the attention of the class token or, without one, the mean over the patches. Layers are side
by side or, with several heads, one below the other. A directory stands for the images in it. The
arrays are written beside a figure as .npz: maps [images, layers, heads, rows, columns], and more.
"""

import re
import shutil
from functools import partial
from pathlib import Path

from absl import flags

from vit_jax import cli, variants
from vit_jax.errors import UserError
from vit_jax.tools import features, model_flags

MAX_IMAGES = 16  # of a figure
MAX_FRAMES = 500  # of an animation
MAX_MAPS = 600  # of a figure, which is a square meter then
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")  # of the formats of `decode`
STYLES = ("overlay", "map", "mask")


def define_flags():
    model_flags.define_flags()
    model_flags.define_view_flags()
    flags.DEFINE_list(
        "layers",
        None,
        "numbers from 1, such as 1,6,12; last; all (default: first, middle and last; with "
        "--against the last; with --animate of one image all)",
    )
    flags.DEFINE_list(
        "heads",
        None,
        "numbers from 0, such as 0,2,5; all; or over all heads mean, max, rollout, which goes "
        "through all layers up to this one (default: mean, of a single layer the first three too)",
    )
    flags.DEFINE_enum(
        "style", "overlay", STYLES, "over the image; the map; the --keep of the image"
    )
    flags.DEFINE_float("keep", 0.6, "share of a map's sum inside an outline or a mask")
    flags.DEFINE_integer("image", None, "side in pixels; positions are resized to it")
    flags.DEFINE_string("output", None, "figure to write: .png, .pdf or .svg")
    flags.DEFINE_string(
        "animate", None, "a frame per layer or, of several images, per image: .gif, .apng or .png"
    )
    flags.DEFINE_float("fps", None, "of --animate: frames per second (2 of layers, 10 of images)")
    flags.DEFINE_bool("terminal", False, "print the maps as text")


def main(flags, words):
    words = list_images(words)
    configs = model_flags.check_flags(flags)
    for config in filter(None, configs):
        if variants.is_cnn(config.model.variant):
            raise UserError(f"a {config.model.variant} has no attention; name the run of a ViT")
    check(len(words), **cli.arguments(check, flags))
    models = model_flags.load(flags)
    if flags.image is not None:
        models = [model.replace(image=flags.image) for model in models]
    pictures, errors = model_flags.open_images(words, models)
    if pictures:
        for model in models:
            if said := model_flags.preprocessing(model):
                print(f"{model.name}{said}")
        attend(models, pictures, **cli.arguments(attend, flags))
    return 2 if errors else 0


def attend(
    models,
    pictures,
    *,
    layers=None,
    heads=None,
    style="overlay",
    keep=0.6,
    output=None,
    animate=None,
    fps=None,
    terminal=False,
):
    """Draw attention maps, and write the arrays beside the figure.

    Args:
      models: one `inference.LoadedModel` or two, of ViTs.
      pictures: `data.pictures.Picture`s, of any size.
      layers: numbers from 1, "last" or "all"; None: first, middle and last, or the last of two
        models, or all for the animation of one image.
      heads: numbers from 0, "all", "mean", "max" or "rollout"; None: the mean and, of a single
        layer, the first three.
      style: "overlay", "map" or "mask".
      keep: share of a map's sum inside an outline or a mask.
      output: .png, .pdf or .svg to write.
      animate: .gif, .apng or .png to write, a frame per layer or, of several images, per image.
      fps: frames per second.
      terminal: whether to print the maps as text.

    Returns:
      {"maps" [images, layers, heads, rows, columns], "images", "mask", "colors", ...}, numpy; those
      of a second model begin with "against_".

    Raises:
      UserError: for layers or heads that do not exist, or images of a size that does not fit.
    """
    from vit_jax.analysis import attention_maps

    output, animate = check(
        len(pictures), output=output, animate=animate, terminal=terminal, keep=keep, fps=fps
    )
    if any(model.is_cnn for model in models):
        raise UserError("a ResNet has no attention; name a ViT")
    by_frame = bool(animate) and len(pictures) == 1  # a frame per layer
    default = ["all"] if by_frame else ["last"] if len(models) > 1 else None
    layers = [pick_layers(layers or default, model.depth) for model in models]
    most = max(map(len, layers))
    heads = pick_heads(heads, min(model.num_heads for model in models), most)
    by_layer = len(heads) > 1 and most > 1  # layers below each other
    check_size(len(pictures) if output else 1, layers, heads, by_layer or by_frame)
    names = [picture.name for picture in pictures]
    views = [[model.view(picture.image) for picture in pictures] for model in models]
    rolled = "rollout" in heads
    seen = [attention_maps.extract(*one, rolled) for one in zip(models, views, layers, strict=True)]
    if terminal:
        from vit_jax.figures import terminal as text

        print(text.text(names, seen, heads, shutil.get_terminal_size((100, 24)).columns))
    arrays = collect(names, views[0], seen, keep)
    if output or animate:
        from vit_jax.figures import overlay
        from vit_jax.figures.attention import drawing

        draw = partial(drawing, names, views[0], seen, heads, style=style, keep=keep)
        rows = list(range(most)) if by_layer else None
    if output:
        draw(range(len(names)), rows).savefig(output, dpi=150)
        save(output, arrays)
    if animate:
        frames = (draw([i], rows) for i in range(len(names)))
        if by_frame:
            frames = (draw([0], [layer]) for layer in range(most))
        overlay.animate(animate, frames, fps=fps or (2 if by_frame else 10))
        save(animate, arrays)
    return arrays


def list_images(words):
    """Images as they are, and for each directory the image files in it, 2.png before 10.png."""

    def natural(path):
        return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path)]

    found = []
    for word in words:
        if not Path(word).is_dir():
            found.append(word)
            continue
        inside = [str(p) for p in Path(word).iterdir() if p.suffix.lower() in SUFFIXES]
        if not inside:
            raise UserError(f"{word} holds no image: {', '.join(SUFFIXES)}")
        found += sorted(inside, key=natural)
    return found


def check(count, *, output, animate, terminal, keep, fps):
    """The paths of the figure and the animation, or None; their directories are made.

    count: of the images. Raises UserError.
    """
    if not (output or animate or terminal):
        raise UserError("pass --output=FILE.png, --animate=FILE.gif or --terminal")
    most = MAX_IMAGES if output or terminal else MAX_FRAMES
    if not 0 < count <= most:
        raise UserError(
            f"name 1 to {most} images, not {count}: files, directories or rows of data (test:0)"
        )
    if not 0 < keep <= 1:
        raise UserError(f"--keep={keep} must be above 0 and at most 1")
    if fps is not None and not 0.1 <= fps <= 50:
        raise UserError(f"--fps={fps} must be from 0.1 to 50")
    film = Path(animate).expanduser() if animate else None
    if film:
        if film.suffix not in (".gif", ".apng", ".png"):
            raise UserError(f"--animate={film} must be a .gif, .apng or .png")
        cli.figure_path("animate", film.with_suffix(".png"))  # makes the directory
    figure = cli.figure_path("output", output) if output else None
    if figure and figure == film:
        raise UserError(f"--animate and --output are both {film}")
    return figure, film


def pick_layers(words, depth):
    """Layers as numbers from 1. Raises UserError."""
    from vit_jax.analysis import attention_maps

    if words is None:
        return attention_maps.first_middle_last(depth)
    numbers = range(1, depth + 1)
    return pick("layers", words, numbers, {"all": numbers, "last": [depth]})


def pick_heads(words, count, layers):
    """Heads as numbers from 0, "mean", "max" and "rollout". Raises UserError.

    count: heads that every model has. layers: how many layers are drawn.
    """
    if words is None:
        return ["mean", *range(min(3, count))] if layers == 1 and count > 1 else ["mean"]
    named = {"all": range(count)} | {word: [word] for word in ("mean", "max", "rollout")}
    return pick("heads", words, range(count), named)


def pick(flag, words, numbers, named):
    """Words, each a number or a name for several -> values, each once. Raises UserError."""
    known = {str(number): [number] for number in numbers} | named
    try:
        return list(dict.fromkeys(x for word in words for x in known[str(word)]))
    except KeyError:
        raise UserError(
            f"--{flag}={','.join(map(str, words))} must be numbers from {numbers[0]} to "
            f"{numbers[-1]}, {', '.join(named)}"
        ) from None


def check_size(images, layers, heads, by_layer):
    """Raise UserError if the figure would be too large."""
    counts = [len(numbers) for numbers in layers]
    if by_layer and len(set(counts)) > 1:
        raise UserError("the two have different numbers of layers; name them: --layers=1,2,3")
    if images * sum(counts) * len(heads) > MAX_MAPS:
        raise UserError(
            f"these are {images * sum(counts) * len(heads)} maps, more than {MAX_MAPS}; name "
            "fewer images, --layers or --heads"
        )


def collect(names, views, seen, keep):
    """The arrays that are drawn."""
    import numpy as np

    from vit_jax.analysis.attention import mass_mask
    from vit_jax.figures.attention import geometry, whose

    arrays = {"names": np.array(names), "images": np.stack(views)}
    for prefix, model in zip(("", "against_"), seen, strict=False):
        found = {
            "maps": model.maps,
            "layers": model.layers,
            "heads": range(model.maps.shape[2]),
            "mask": mass_mask(model.maps.mean(2), keep),
            "colors": model.colors,
            "note": f"{model.name}: attention of {whose(model)}; {geometry(model)}",
        }
        if model.rollout is not None:
            found["rollout"] = model.rollout
        arrays |= {prefix + name: np.asarray(array) for name, array in found.items()}
    return arrays


def save(path, arrays):
    """Write the arrays beside a figure; print what was written."""
    features.write(path.with_suffix(".npz"), arrays)
    print(f"{path}\n{path.with_suffix('.npz')}")


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="IMAGE...")
