"""What a model looks at: its attention, of any layers and heads, and its features as colors.

python -m vit_jax.tools.attend --workdir=runs/dino --output=seen.png test:0 test:1 cat.jpg
python -m vit_jax.tools.attend --weights=FILE.safetensors --model=vit_small_patch8_224.dino \\
    --image=480 --layers=last --heads=all --style=mask --output=heads.png cat.jpg
python -m vit_jax.tools.attend --workdir=runs/dino --terminal --animate=layers.gif test:0

Draws the row of the class token, or the mean of the patches' where there is none. Layers are side
by side or, where several heads are, one below the other. A folder stands for the images in it. The
arrays lie beside a picture as .npz: maps [images, layers, heads, rows, columns], and more.
"""

import re
import shutil
from functools import partial
from pathlib import Path

from absl import flags

from vit_jax import cli, variants
from vit_jax.errors import UserError
from vit_jax.tools import features, model_flags

MOST, MOST_FRAMES = 16, 500  # images of a figure, of an animation
MOST_MAPS = 600  # of a figure; it is a square metre then
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")  # of the formats of `decode`
STYLES = ("overlay", "map", "mask")


def define_flags():
    model_flags.define_flags()
    model_flags.define_view_flags()
    flags.DEFINE_list(
        "layers",
        None,
        "from 1, such as 1,6,12; last, all; none said: first, middle and last; with --against the "
        "last; with --animate of one image all",
    )
    flags.DEFINE_list(
        "heads",
        None,
        "from 0, such as 0,2,5; all; over all of them mean, max, rollout (through all layers up to "
        "the one named); none said: mean, and of a single layer the first three too",
    )
    flags.DEFINE_enum("style", "overlay", STYLES, "over the image; alone; the --keep of the image")
    flags.DEFINE_float("keep", 0.6, "share of a map's sum inside an outline or a mask")
    flags.DEFINE_integer("image", None, "side in pixels; positions are resized to it")
    flags.DEFINE_string("output", None, "picture to write: .png, .pdf or .svg")
    flags.DEFINE_string(
        "animate", None, "a frame a layer, of several images one an image: .gif, .apng or .png"
    )
    flags.DEFINE_float("fps", None, "of --animate, frames a second; 2 of layers, 10 of images")
    flags.DEFINE_bool("terminal", False, "print the maps as text")


def main(flags, words):
    words = list_images(words)
    output, film = check(flags, words)

    from vit_jax.analysis import attention_maps
    from vit_jax.data import pictures

    models = model_flags.of_flags(flags)
    of_layers = film is not None and len(words) == 1
    for model in models:
        prepare(model, flags)
    layers = [pick_layers(flags, attention_maps.count(m.module)[0], of_layers) for m in models]
    fewest = min(attention_maps.count(m.module)[1] for m in models)
    heads = pick_heads(flags.heads, fewest, max(map(len, layers)))
    by_layer = len(heads) > 1 and max(map(len, layers)) > 1
    check_size(len(words) if output else 1, layers, heads, by_layer or of_layers)
    found, broken = pictures.open_images(words, models[0])
    if not found:
        return 2
    names, views = [p.name for p in found], [[p.view for p in found]]
    for model in models[1:]:  # rows of the first run's data, prepared for this model
        found, _ = pictures.open_images(names, model, models[0].config)
        views.append([p.view for p in found])
    rolled = "rollout" in heads
    seen = [attention_maps.see(*one, rolled) for one in zip(models, views, layers, strict=True)]
    show(flags, output, film, names, views[0], seen, heads, by_layer, of_layers)
    return 2 if broken else 0


def show(flags, output, film, names, views, seen, heads, by_layer, of_layers):
    """Text, picture and animation, as far as the flags say."""
    if flags.terminal:
        from vit_jax.figures import terminal

        print(terminal.text(names, seen, heads, shutil.get_terminal_size((100, 24)).columns))
    if not (output or film):
        return

    from vit_jax.figures import overlay
    from vit_jax.figures.seeing import drawing

    draw = partial(drawing, names, views, seen, heads, style=flags.style, keep=flags.keep)
    every = list(range(len(seen[0].layers)))
    if output:
        draw(range(len(names)), every if by_layer else None).savefig(output, dpi=150)
        save(output, names, views, seen, flags.keep)
    if film:
        if of_layers:
            frames = (draw([0], [layer]) for layer in every)
        else:
            frames = (draw([i], every if by_layer else None) for i in range(len(names)))
        overlay.animate(film, frames, fps=flags.fps or (2 if of_layers else 10))
        save(film, names, views, seen, flags.keep)


def list_images(words):
    """Images as they are, and for each folder the image files in it, 2.png before 10.png."""
    found = []
    for word in words:
        if not Path(word).is_dir():
            found.append(word)
            continue
        inside = [str(p) for p in Path(word).iterdir() if p.suffix.lower() in SUFFIXES]
        if not inside:
            raise UserError(f"{word} holds no image: {', '.join(SUFFIXES)}")
        parts = {p: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", p)] for p in inside}
        found += sorted(inside, key=parts.get)
    return found


def check(flags, words):
    """-> paths of the picture and of the animation, or None. Raises UserError, before any work."""
    configs = model_flags.check_flags(flags)
    if not (flags.output or flags.animate or flags.terminal):
        raise UserError("pass --output=FILE.png, --animate=FILE.gif or --terminal")
    most = MOST if flags.output or flags.terminal else MOST_FRAMES
    if not 0 < len(words) <= most:
        raise UserError(
            f"name 1 to {most} images, not {len(words)}: files, folders or rows of data (test:0)"
        )
    if not 0 < flags.keep <= 1:
        raise UserError(f"--keep={flags.keep} must be above 0 and at most 1")
    if flags.fps is not None and not 0.1 <= flags.fps <= 50:
        raise UserError(f"--fps={flags.fps} must be from 0.1 to 50")
    for folder, config in zip((flags.workdir, flags.against), configs, strict=False):
        if config and variants.is_cnn(name := config.model.variant):
            raise UserError(f"{folder} is of a {name}, which has no attention; name a ViT's run")
    film = flags.animate and Path(flags.animate).expanduser()
    if film:
        if film.suffix not in (".gif", ".apng", ".png"):
            raise UserError(f"--animate={film} must be a .gif, .apng or .png")
        cli.figure_path("animate", film.with_suffix(".png"))  # makes the folder
    output = flags.output and cli.figure_path("output", flags.output)
    if film and film == output:
        raise UserError(f"--animate and --output are both {film}")
    return output or None, film or None


def prepare(model, flags):
    """What the flags say of the images, in place of what goes with the weights."""
    from vit_jax.analysis import attention_maps

    if words := model_flags.override(model, flags):
        print(f"{model.name}{words}")
    if flags.image is not None:
        attention_maps.resize(model, flags.image)


def pick_layers(flags, depth, of_layers):
    """--layers as numbers from 1. Raises UserError."""
    from vit_jax.analysis import attention_maps

    words = flags.layers
    if words is None:
        some = ["last"] if flags.against else attention_maps.ends(depth)
        words = ["all"] if of_layers else some
    named = {"all": range(1, depth + 1), "last": [depth]}
    try:
        layers = [i for word in words for i in named.get(word) or [int(word)]]
    except ValueError:
        layers = [0]
    if any(not 1 <= layer <= depth for layer in layers):
        raise UserError(
            f"--layers={','.join(map(str, words))} must be numbers from 1 to {depth}, last or all"
        )
    return list(dict.fromkeys(layers))


def pick_heads(words, count, layers):
    """--heads as numbers from 0, "mean", "max" and "rollout". Raises UserError.

    count: how many heads every model has. layers: how many layers are drawn.
    """
    if words is None:
        return ["mean", *range(min(3, count))] if layers == 1 and count > 1 else ["mean"]
    named = {"all": range(count), "mean": ["mean"], "max": ["max"], "rollout": ["rollout"]}
    try:
        heads = [head for word in words for head in named.get(word) or [int(word)]]
    except ValueError:
        heads = [-1]
    if any(isinstance(head, int) and not 0 <= head < count for head in heads):
        raise UserError(
            f"--heads={','.join(words)} must be numbers from 0 to {count - 1}, all, mean, max or "
            "rollout"
        )
    return list(dict.fromkeys(heads))


def check_size(images, layers, heads, by_layer):
    """UserError where the picture would not fit."""
    counts = [len(numbers) for numbers in layers]
    if by_layer and len(set(counts)) > 1:
        raise UserError("the two have different numbers of layers; name them: --layers=1,2,3")
    if images * sum(counts) * len(heads) > MOST_MAPS:
        raise UserError(
            f"these are {images * sum(counts) * len(heads)} maps, more than {MOST_MAPS}; name "
            "fewer images, --layers or --heads"
        )


def save(path, names, views, seen, keep):
    """The arrays of a picture beside it; says what was written."""
    import numpy as np

    from vit_jax.analysis.attention import mass_mask

    arrays = {"names": np.array(names), "images": np.stack(views)}
    for prefix, model in zip(("", "against_"), seen, strict=False):
        found = dict(maps=model.maps, layers=model.layers, heads=range(model.maps.shape[2]))
        found |= dict(mask=mass_mask(model.maps.mean(2), keep), colors=model.colors)
        found |= {} if model.rollout is None else {"rollout": model.rollout}
        found["note"] = f"{model.name}: attention of {model.whose}; {model.size}"
        arrays |= {prefix + name: np.asarray(array) for name, array in found.items()}
    features.write(path.with_suffix(".npz"), arrays)
    print(f"{path}\n{path.with_suffix('.npz')}")


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="IMAGE...")
