"""Classify images and print the most probable classes.

python -m vit_jax.tools.predict --workdir=runs/digits test:0 test:1
python -m vit_jax.tools.predict --weights=FILE.safetensors --model=vit_small_patch16_224 cat.jpg
python -m vit_jax.tools.predict --workdir=runs/pets --format=csv pets/val > predictions.csv

IMAGE is a file, a directory, a pattern such as "*.jpg" or, with a run, a row of its dataset: test:0
is the first test image. Images are resized, center-cropped and normalized as for evaluation. The
preprocessing for a weight file depends on --model; --mean, --std, --crop and --image override it.

CSV has one line per class: image, rank from 1, class, name and probability. An image that cannot be
read is reported on stderr; the others are classified, and the exit code is 2.
"""

import csv
import json
import sys
from itertools import tee

from absl import flags

from vit_jax import cli, progress
from vit_jax.data.pictures import list_files
from vit_jax.errors import UserError, printable
from vit_jax.tools import model_flags

MAX_FIGURE_IMAGES = 48
BATCH_SIZE = 64  # images
BAR_WIDTH = 24  # characters of a bar at probability 1


def define_flags():
    model_flags.define_flags(against=False)
    model_flags.define_view_flags()
    flags.DEFINE_integer("topk", 5, "number of classes per image", lower_bound=1)
    flags.DEFINE_enum(
        "format", "text", ["text", "csv", "jsonl"], "table, CSV, or one JSON object per image"
    )
    flags.DEFINE_bool("json", False, "the same as --format=jsonl")
    flags.DEFINE_string("output", None, "figure to write: .png, .pdf or .svg")


def main(flags, args):
    if not args:
        raise UserError(
            "pass at least one image: a file, a directory or, with --workdir, a row such as test:0"
        )
    if flags.json and flags.format == "csv":
        raise UserError("--json and --format=csv exclude each other; leave out one of them")
    kind = "jsonl" if flags.json else flags.format
    names = list_files(args)
    model_flags.check_flags(flags, names)
    if flags.output:
        if len(names) > MAX_FIGURE_IMAGES:
            raise UserError(
                f"--output supports at most {MAX_FIGURE_IMAGES} images; got {len(names)}"
            )
        cli.figure_path("output", flags.output)
    (model,) = model_flags.load(flags)
    check_classifier(model)
    errors = []
    title = f"predict: running the model on {len(names):,} images"
    opened = model_flags.read_images(progress.track(names, title), [model], errors)
    pictures, copies = tee(opened)  # classify reads some of them ahead
    views = (picture.view(model) for picture in copies)
    shown, tops = [], []
    for picture, top in zip(pictures, classify(model, views, topk=flags.topk), strict=False):
        write(model, picture, top, kind, first=not shown)
        if flags.output or not shown:
            shown.append(picture)
            tops.append(top)
    if flags.output and shown:
        draw(model, shown, tops).savefig(flags.output, dpi=150)
    return 2 if errors else 0


def write(model, picture, top, kind, *, first):
    """Print the prediction for an image.

    Args:
      model: the `inference.LoadedModel`.
      picture: the `data.pictures.Picture`.
      top: a list of (class index, probability).
      kind: "text", "csv" or "jsonl".
      first: whether it is the first image, which follows the header.
    """
    if kind == "jsonl":
        print(as_json(model, picture, top))
        return
    if kind == "text":
        if first:
            print(printable(model.name + model_flags.preprocessing(model)))
        print(as_table(model, picture, top))
        return
    table = csv.writer(sys.stdout, lineterminator="\n")
    if first:
        table.writerow(("image", "rank", "class", "name", "probability"))
    for rank, (i, probability) in enumerate(top, 1):
        names = [printable(text) for text in (picture.name, model.class_names[i])]
        table.writerow((names[0], rank, i, names[1], round(probability, 6)))


def predict(model, images, *, topk=5):
    """Classify images.

    Args:
      model: an `inference.LoadedModel` with a classifier.
      images: a list of uint8 [h, w, c] of any size, preprocessed here as for evaluation.
      topk: number of classes per image.

    Returns:
      A list per image of (class index, probability), in descending order of probability.

    Raises:
      UserError: if the model has no classifier.
    """
    check_classifier(model)
    return list(classify(model, (model.view(image) for image in images), topk=topk))


def check_classifier(model):
    """Raise UserError if a model has no classifier."""
    if not model.module.config.num_classes:
        raise UserError(f"{model.name} has no classifier")


def classify(model, views, *, topk=5):
    """Classify preprocessed images, an iterable over uint8 [h, w, channels]; see `predict`."""
    import jax
    import numpy as np

    for outputs in model.stream(views, batch_size=BATCH_SIZE):
        probabilities = np.asarray(jax.nn.softmax(outputs["logits"]))
        order = (-probabilities).argsort(axis=1, kind="stable")[:, :topk]
        for best, row in zip(order, probabilities, strict=True):
            yield [(int(i), float(row[i])) for i in best]


def as_json(model, picture, top):
    """Format a prediction as a line of JSON."""
    names = model.class_names
    rows = [{"class": i, "name": names[i], "probability": round(p, 6)} for i, p in top]
    result = {"image": picture.name, "top": rows}
    if picture.label is not None:
        result["label"] = picture.label
    text = json.dumps(result, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(result)
    return text if text.isprintable() else json.dumps(result)


def as_table(model, picture, top):
    """Format a prediction as a table of name, probability and bar; mark the true class if known."""
    names = [printable(model.class_names[i]) for i, _ in top]
    width = max(map(len, names))
    title = printable(picture.name)
    if picture.label is not None:
        title += f"  (true class: {printable(model.class_names[picture.label])})"
    lines = ["", title]
    for (i, p), name in zip(top, names, strict=True):
        mark = "<- correct" if i == picture.label else ""
        bar = "█" * round(BAR_WIDTH * p) or "▏"
        lines.append(f"  {name:{width}}  {p:6.1%}  {bar:{BAR_WIDTH}} {mark}".rstrip())
    return "\n".join(lines)


def draw(model, pictures, tops):
    """Return a matplotlib Figure of images, predictions and, for a run, the training curves."""
    from vit_jax.figures.predictions import predictions

    names = model.class_names
    return predictions(
        [picture.view(model) for picture in pictures],
        [[(names[i], p) for i, p in top] for top in tops],
        titles=[picture.name for picture in pictures],
        labels=[None if p.label is None else names[p.label] for p in pictures],
        rows=model.metrics,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="IMAGE...")
