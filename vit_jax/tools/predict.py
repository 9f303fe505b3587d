"""Classify images and print the most probable classes.

python -m vit_jax.tools.predict --workdir=runs/digits test:0 test:1
python -m vit_jax.tools.predict --weights=FILE.safetensors --model=vit_small_patch16_224 cat.jpg

IMAGE is a file or, with a run, a row of its dataset: test:0 is the first test image. Images are
resized, center-cropped and normalized as for evaluation. The preprocessing for a weight file
depends on --model; --mean, --std and --crop override it.
"""

import json
import sys

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, printable
from vit_jax.tools import model_flags

MAX_FIGURE_IMAGES = 48
BAR_WIDTH = 24  # characters of a bar at probability 1


def define_flags():
    model_flags.define_flags(against=False)
    model_flags.define_view_flags()
    flags.DEFINE_integer("topk", 5, "number of classes per image", lower_bound=1)
    flags.DEFINE_bool("json", False, "print one JSON object per image")
    flags.DEFINE_string("output", None, "figure to write: .png, .pdf or .svg")


def main(flags, args):
    if not args:
        raise UserError("pass at least one image: a file or, with --workdir, a row such as test:0")
    model_flags.check_flags(flags, args)
    if flags.output:
        if len(args) > MAX_FIGURE_IMAGES:
            raise UserError(
                f"--output supports at most {MAX_FIGURE_IMAGES} images; got {len(args)}"
            )
        cli.figure_path("output", flags.output)
    (model,) = model_flags.load(flags)
    pictures, errors = model_flags.open_images(args, [model])
    if pictures:
        tops = classify(model, [picture.view(model) for picture in pictures], topk=flags.topk)
        if not flags.json:
            print(printable(model.name + model_flags.preprocessing(model)))
        for picture, top in zip(pictures, tops, strict=True):
            print((as_json if flags.json else as_table)(model, picture, top))
        if flags.output:
            draw(model, pictures, tops).savefig(flags.output, dpi=150)
    return 2 if errors else 0


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
    return classify(model, [model.view(image) for image in images], topk=topk)


def classify(model, views, *, topk=5):
    """Classify preprocessed images, uint8 [image, image, channels] each; see `predict`."""
    import jax
    import numpy as np

    if not model.module.config.num_classes:
        raise UserError(f"{model.name} has no classifier")
    outputs = model.run(views, batch_size=64, title="predict")
    probabilities = np.asarray(jax.nn.softmax(outputs["logits"]))
    order = (-probabilities).argsort(axis=1, kind="stable")[:, :topk]
    return [
        [(int(i), float(row[i])) for i in best]
        for best, row in zip(order, probabilities, strict=True)
    ]


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
