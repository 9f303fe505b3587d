"""What a model sees in pictures: the most probable classes of each image.

python -m vit_jax.tools.predict --workdir=runs/digits test:0 test:1
python -m vit_jax.tools.predict --weights=FILE.safetensors --model=vit_small_patch16_224 cat.jpg
"""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

from absl import flags

from vit_jax import cli, folders
from vit_jax.cli import UserError

MAX_PIXELS, MAX_FIGURE = 50_000_000, 48  # of a file, which may be a stranger's; images
BATCH, BAR = 64, 24  # images at a time; characters of a bar at probability 1


def define_flags():
    flags.DEFINE_string("workdir", None, "folder of a run")
    flags.DEFINE_string("weights", None, "file.safetensors, instead of --workdir")
    flags.DEFINE_string("model", None, "of --weights: its name, such as vit_small_patch16_224")
    flags.DEFINE_integer("topk", 5, "classes an image", lower_bound=1)
    flags.DEFINE_bool("json", False, "print one JSON object an image")
    flags.DEFINE_string("figure", None, "picture to write: .png, .pdf or .svg")
    flags.DEFINE_string("checkpoint", "best", "of --workdir: best, latest or a step")
    flags.DEFINE_bool("raw", False, "of --workdir: the trained weights, not their average")
    flags.DEFINE_list("mean", None, "of images in [0, 1], one a channel or one for all")
    flags.DEFINE_list("std", None, "likewise")
    flags.DEFINE_float("crop", None, "side of the centre crop / short side of the image")
    flags.DEFINE_string("class_names", None, "of --weights: a text file with a class a line")


def main(flags, words):
    if not words:
        raise UserError("name one image or more: a file, or test:0 with --workdir")
    if (flags.workdir is None) == (flags.weights is None):
        raise UserError("say either --workdir=DIR or --weights=FILE; see --help")
    figure = flags.figure and check_figure(flags.figure, len(words))
    model = load_run(flags) if flags.workdir else load_file(flags)
    override(model, flags)
    pictures, broken = open_images(words, model)
    if pictures:
        probabilities = predict(model, [p.view for p in pictures])
        k = min(flags.topk, probabilities.shape[1])
        for picture, row in zip(pictures, probabilities, strict=True):
            picture.top = [(int(i), float(row[i])) for i in (-row).argsort(kind="stable")[:k]]
        lines = [] if flags.json else [model.title]
        lines += [(as_json if flags.json else as_table)(p, model) for p in pictures]
        print("\n".join(lines))
        if figure:
            write_figure(figure, pictures, model, flags.workdir)
    return 2 if broken else 0


def load_run(flags):
    """A run's model and how its images are prepared."""
    if flags.model or flags.class_names:
        raise UserError("--model and --class_names go with --weights; a run knows its own")
    cli.load_config(flags.workdir)  # before the wait for jax
    from vit_jax import checkpoint

    config, run, model, params, step = checkpoint.load_weights(
        flags.workdir, flags.checkpoint, flags.raw
    )
    return SimpleNamespace(
        apply=model.apply,
        params=params,
        config=config,
        image=config.model.image,
        channels=config.model.channels,
        names=run["data"]["class_names"],
        mean=config.data.mean,
        std=config.data.std,
        crop=config.augment.eval_crop,
        title=f"{flags.workdir}, step {step:,}",
    )


def load_file(flags):
    """The model of a weight file; its images are prepared as its name says (timm's settings)."""
    from vit_jax import models, pretrained

    if flags.raw or flags.checkpoint != "best":
        raise UserError("--raw and --checkpoint go with --workdir; a file has one set of weights")
    if folders.is_folder(flags.weights):
        raise UserError(f"{flags.weights} is a folder; if it is of a run, say --workdir")
    model = pretrained.load(flags.weights, flags.model)
    if not model.num_classes:
        raise UserError(f"{flags.weights} has no classifier, so it cannot name classes")
    apply, params = models.functional(model)
    return SimpleNamespace(
        apply=apply,
        params=params,
        config=None,
        image=model.image,
        channels=model.channels,
        names=class_names(flags.class_names, model.num_classes),
        **pretrained.prepared(model, flags.model),
        title=flags.weights,
    )


def class_names(path, count):
    if path is None:
        return [f"class {i}" for i in range(count)]
    try:
        names = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names={path} cannot be read: {error}") from None
    if len(names) != count:
        raise UserError(f"--class_names={path} has {len(names)} lines; the model {count} classes")
    return names


def override(model, flags):
    """--mean, --std and --crop in place of what goes with the weights; says what holds."""
    for key in ("mean", "std"):
        if getattr(flags, key) is None:
            continue
        try:
            values = tuple(float(word) for word in getattr(flags, key))
        except ValueError:
            raise UserError(f"--{key} is numbers, such as 0.5,0.5,0.5") from None
        values *= model.channels if len(values) == 1 else 1
        if len(values) != model.channels or key == "std" and min(values) <= 0:
            raise UserError(f"--{key}={values} must be {model.channels} numbers, std above 0")
        setattr(model, key, values)
    if flags.crop is not None:
        if not 0 < flags.crop <= 1:
            raise UserError(f"--crop={flags.crop} must be above 0 and at most 1")
        model.crop = flags.crop
    if model.config is None:
        mean, std = (",".join(f"{x:g}" for x in values) for values in (model.mean, model.std))
        model.title += f" (mean {mean}, std {std}, crop {model.crop:g}; --mean, --std, --crop)"


def open_images(words, model):
    """-> pictures with name, label (None: not known) and view; the number of broken ones.

    What is wrong with a broken one is printed; the others go on.
    """
    from vit_jax import augment, decode

    pictures, broken, sources = [], 0, {}
    for word in words:
        try:
            label, row = None, re.fullmatch(r"(train|val|test):(\d+)", word)
            if row and not Path(word).exists():
                image, label = example(model.config, row[1], int(row[2]), sources)
            else:
                channels = 1 if model.channels == 1 else 3
                image = decode.decode(word, channels, max_pixels=MAX_PIXELS)
            view = augment.eval_view(
                image, size=model.image, channels=model.channels, eval_crop=model.crop
            )
            pictures.append(SimpleNamespace(name=word, label=label, view=view))
        except (decode.DecodeError, UserError) as error:
            print(f"error: {error}", file=sys.stderr)
            broken += 1
    return pictures, broken


def example(config, split, i, sources):
    """Image and label of row i of a split of the run's own data."""
    from vit_jax import data

    if config is None:
        raise UserError(f"{split}:{i}: rows of a data set go with --workdir")
    if split not in sources:
        sources[split] = data.make(config, config.data[split])
    if i >= len(sources[split]):
        raise UserError(f"{split}:{i}: there are {len(sources[split])} images, counted from 0")
    found = sources[split][i]
    return found["image"], found["label"]


def predict(model, views):
    """uint8 images [h, w, c] -> probabilities [n, k], numpy."""
    import jax
    import numpy as np

    from vit_jax import augment

    @jax.jit
    def apply(params, images):
        images = augment.normalise(images, model.mean, model.std)
        return jax.nn.softmax(model.apply(params, images)["logits"])

    size, rows = min(BATCH, len(views)), []
    for start in range(0, len(views), size):
        images = np.stack(views[start : start + size])
        padded = np.pad(images, [(0, size - len(images)), *[(0, 0)] * 3])
        rows.append(np.asarray(apply(model.params, padded))[: len(images)])
    return np.concatenate(rows)


def as_json(picture, model):
    top = [{"class": i, "name": model.names[i], "probability": round(p, 6)} for i, p in picture.top]
    label = {} if picture.label is None else {"label": picture.label}
    return json.dumps({"image": picture.name, "top": top} | label, ensure_ascii=False)


def as_table(picture, model):
    """Lines for a person: name, bar, probability; the true class is marked where it is known."""
    known = picture.label is not None
    wide = max(len(model.names[i]) for i, _ in picture.top)
    lines = ["", picture.name + (f"  (is {model.names[picture.label]})" if known else "")]
    for i, p in picture.top:
        mark = "<- right" if known and i == picture.label else ""
        bar = "█" * round(BAR * p) or "▏"
        lines.append(f"  {model.names[i]:{wide}}  {p:6.1%}  {bar:{BAR}} {mark}".rstrip())
    return "\n".join(lines)


def check_figure(path, count):
    if count > MAX_FIGURE:
        raise UserError(f"--figure has room for {MAX_FIGURE} images, not {count}")
    return cli.figure_path("figure", path)


def write_figure(path, pictures, model, workdir):
    from vit_jax import log
    from vit_jax.figures.predictions import predictions

    figure = predictions(
        [p.view for p in pictures],
        [[(model.names[i], probability) for i, probability in p.top] for p in pictures],
        titles=[p.name for p in pictures],
        labels=[None if p.label is None else model.names[p.label] for p in pictures],
        rows=log.read_metrics(workdir) if workdir else [],
    )
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="IMAGE...")
