"""A run, or the weights in a file, as one HTML page that needs no other file and no network.

python -m vit_jax.tools.report --workdir=runs/digits
python -m vit_jax.tools.report --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --output=report.html cat.jpg
python -m vit_jax.tools.report --workdir=runs/resnet14 --against=runs/micro --output=both.html

The page of a run is DIR/report.html: config, environment, curves, a batch, what the model has
learned, where it looks, what it predicts for the test images. That of a weight file is about the
model alone. --against adds a section that compares it with another run or file.
"""

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
    path = place(flags.workdir or flags.weights, flags.output)
    models = model_flags.load(flags)
    pictures, _ = model_flags.open_images(words, models)
    if words and not pictures:
        raise UserError("none of the images can be read")
    loaded = dict(zip(("model", "against"), models, strict=False))
    report(pictures=pictures, **cli.arguments(report, flags) | loaded)
    print(f"{path}  {len(path.read_bytes()) / 1e6:.2f} MB")


def report(
    model,
    pictures=(),
    *,
    against=None,
    output=None,
    lang="both",
    split="test",
    max_images=10_000,
    raw=False,
):
    """Write a report.

    Args:
      model: `inference.LoadedModel` of a run or a weight file.
      pictures: `data.pictures.Picture`s; (): the first images of the split.
      against: a second `LoadedModel` to compare with.
      output: .html to write; None: report.html in the workdir of the run.
      lang: "en", "ko" or "both".
      split: "val" or "test", whose images are predicted.
      max_images: predict only the first images of the split.
      raw: whether the page says that the weights are neither averages nor the teacher's.

    Returns:
      The path of the page.

    Raises:
      UserError: for images that do not fit, and for a page that cannot be written.
    """
    from vit_jax.report.compose import compose

    path = place(model.workdir or model.name, output)
    models = [model] if against is None else [model, against]
    langs = LANGUAGES if lang == "both" else (lang,)
    options = dict(langs=langs, split=split, max_images=max_images, raw=raw)
    storage.write_text(path, compose(models, pictures, **options))
    return path


def place(weights, output):
    """Where to write the page. Raises UserError."""
    if output is None:
        if not storage.is_directory(weights):
            raise UserError(f"{weights} is a file; pass --output=report.html")
        return storage.resolve(weights) / "report.html"
    path = storage.resolve(output)
    if path.suffix != ".html" or not path.parent.is_dir():
        raise UserError(f"--output={output} must be a .html file in a directory that exists")
    return path


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="[IMAGE...]")
