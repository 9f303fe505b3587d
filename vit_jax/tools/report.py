"""A run, or the weights in a file, as one HTML page that needs no other file and no network.

python -m vit_jax.tools.report --workdir=runs/digits
python -m vit_jax.tools.report --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --output=report.html cat.jpg
python -m vit_jax.tools.report --workdir=runs/resnet14 --against=runs/micro --output=both.html

The page of a run is DIR/report.html: config, environment, curves, a batch, what the model has
learned, where it looks, what it predicts for the test images. That of a weight file is about the
model alone. --against adds a section that compares it with another run or file.
"""

from types import SimpleNamespace

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.figures.catalog import LANGUAGES
from vit_jax.tools import model_flags
from vit_jax.workdir import storage


def define_flags():
    model_flags.define_flags()
    flags.DEFINE_string("output", None, ".html to write (default: DIR/report.html of a run)")
    flags.DEFINE_enum("lang", "both", [*LANGUAGES, "both"], "English, Korean or both")
    flags.DEFINE_enum("split", "test", ["val", "test"], "whose images are predicted: val or test")
    flags.DEFINE_integer(
        "max_images", 10_000, "evaluate only the first N images of the split", lower_bound=1
    )


def main(flags, words):
    model_flags.check_flags(flags)
    path = report(
        flags.workdir or flags.weights,
        words,
        model=flags.model,
        class_names=flags.class_names,
        checkpoint=flags.checkpoint,
        raw=flags.raw,
        against=flags.against,
        against_model=flags.against_model,
        output=flags.output,
        lang=flags.lang,
        split=flags.split,
        max_images=flags.max_images,
    )
    print(f"{path}  {len(path.read_bytes()) / 1e6:.2f} MB")


def report(
    weights,
    images=(),
    *,
    model=None,
    class_names=None,
    checkpoint="best",
    raw=False,
    against=None,
    against_model=None,
    output=None,
    lang="both",
    split="test",
    max_images=10_000,
):
    """Write a report.

    Args:
      weights: the workdir of a run, or a weight file.
      images: paths, or rows of a run's data such as "test:0"; (): the first images of the split.
      model: of a weight file: its name, such as "vit_small_patch16_224".
      class_names: of a weight file: a text file, one class per line.
      checkpoint: of runs: "best", "latest" or a step.
      raw: of runs: the trained weights, not their moving average or the teacher.
      against: a second workdir or weight file to compare with.
      against_model: of a weight file `against`: its name.
      output: .html to write; None: report.html in the workdir.
      lang: "en", "ko" or "both".
      split: "val" or "test", whose images are predicted.
      max_images: predict only the first images of the split.

    Returns:
      The path of the page.

    Raises:
      UserError: for what cannot be loaded, read or written.
    """
    named = SimpleNamespace(
        workdir=None,
        weights=weights,
        model=model,
        class_names=class_names,
        checkpoint=checkpoint,
        raw=raw,
        against=against,
        against_model=against_model,
    )
    model_flags.check_flags(named)
    path = place(weights, output)
    from vit_jax.report.compose import compose

    models = model_flags.load(named)
    pictures, _ = model_flags.open_images(images, models)
    if images and not pictures:
        raise UserError("none of the images can be read")
    langs = LANGUAGES if lang == "both" else (lang,)
    options = dict(langs=langs, split=split, max_images=max_images, raw=raw)
    storage.write_text(path, compose(models, pictures, **options))
    return path


def place(weights, output):
    """Where to write the page. Raises UserError."""
    if output is None:
        if not storage.is_folder(weights):
            raise UserError(f"{weights} is a file; pass --output=report.html")
        return storage.place(weights) / "report.html"
    path = storage.place(output)
    if path.suffix != ".html" or not path.parent.is_dir():
        raise UserError(f"--output={output} must be a .html file in a directory that exists")
    return path


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="[IMAGE...]")
