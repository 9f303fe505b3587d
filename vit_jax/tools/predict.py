"""What a model sees in pictures: the most probable classes of each image.

python -m vit_jax.tools.predict --workdir=runs/digits test:0 test:1
python -m vit_jax.tools.predict --weights=FILE.safetensors --model=vit_small_patch16_224 cat.jpg
"""

import json

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.tools import model_flags

MAX_FIGURE = 48  # images
BATCH, BAR = 64, 24  # images at a time; characters of a bar at probability 1


def define_flags():
    model_flags.define_flags(against=False)
    model_flags.define_view_flags()
    flags.DEFINE_integer("topk", 5, "classes an image", lower_bound=1)
    flags.DEFINE_bool("json", False, "print one JSON object an image")
    flags.DEFINE_string("figure", None, "picture to write: .png, .pdf or .svg")


def main(flags, words):
    if not words:
        raise UserError("name one image or more: a file, or test:0 with --workdir")
    model_flags.check_flags(flags)
    figure = flags.figure and check_figure(flags.figure, len(words))
    (model,) = model_flags.of_flags(flags)
    if not model.module.config.num_classes:
        raise UserError(f"{model.name} has no classifier, so it cannot name classes")
    title = model.name + model_flags.override(model, flags)

    from vit_jax.data.pictures import open_images

    pictures, broken = open_images(words, model)
    if pictures:
        probabilities = predict(model, [p.view for p in pictures])
        k = min(flags.topk, probabilities.shape[1])
        for picture, row in zip(pictures, probabilities, strict=True):
            picture.top = [(int(i), float(row[i])) for i in (-row).argsort(kind="stable")[:k]]
        lines = [] if flags.json else [title]
        lines += [(as_json if flags.json else as_table)(p, model) for p in pictures]
        print("\n".join(lines))
        if figure:
            write_figure(figure, pictures, model, flags.workdir)
    return 2 if broken else 0


def predict(model, views):
    """uint8 images [h, w, c] -> probabilities [n, k], numpy."""
    import jax
    import numpy as np

    from vit_jax import augment

    @jax.jit
    def apply(params, images):
        images = augment.normalize(images, model.mean, model.std)
        return jax.nn.softmax(model.model.apply(params, images)["logits"])

    size, rows = min(BATCH, len(views)), []
    for start in range(0, len(views), size):
        images = np.stack(views[start : start + size])
        padded = np.pad(images, [(0, size - len(images)), *[(0, 0)] * 3])
        rows.append(np.asarray(apply(model.params, padded))[: len(images)])
    return np.concatenate(rows)


def as_json(picture, model):
    top = [
        {"class": i, "name": model.class_names[i], "probability": round(p, 6)}
        for i, p in picture.top
    ]
    label = {} if picture.label is None else {"label": picture.label}
    return json.dumps({"image": picture.name, "top": top} | label, ensure_ascii=False)


def as_table(picture, model):
    """Lines for a person: name, bar, probability; the true class is marked where it is known."""
    known = picture.label is not None
    wide = max(len(model.class_names[i]) for i, _ in picture.top)
    lines = ["", picture.name + (f"  (is {model.class_names[picture.label]})" if known else "")]
    for i, p in picture.top:
        mark = "<- right" if known and i == picture.label else ""
        bar = "█" * round(BAR * p) or "▏"
        lines.append(f"  {model.class_names[i]:{wide}}  {p:6.1%}  {bar:{BAR}} {mark}".rstrip())
    return "\n".join(lines)


def check_figure(path, count):
    if count > MAX_FIGURE:
        raise UserError(f"--figure has room for {MAX_FIGURE} images, not {count}")
    return cli.figure_path("figure", path)


def write_figure(path, pictures, model, workdir):
    from vit_jax.figures.predictions import predictions
    from vit_jax.workdir import log

    figure = predictions(
        [p.view for p in pictures],
        [[(model.class_names[i], probability) for i, probability in p.top] for p in pictures],
        titles=[p.name for p in pictures],
        labels=[None if p.label is None else model.class_names[p.label] for p in pictures],
        rows=log.read_metrics(workdir) if workdir else [],
    )
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="IMAGE...")
