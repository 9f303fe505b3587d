"""Write a self-contained HTML report of a run or of a weight file.

python -m vit_jax.tools.report --workdir=runs/digits
python -m vit_jax.tools.report --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --output=report.html cat.jpg
python -m vit_jax.tools.report --workdir=runs/resnet14 --against=runs/micro --output=comparison.html

The report of a run has its config, environment, training curves, a training batch, learned weights,
attention maps (Grad-CAM for a ResNet) and predictions for the test images. The report of a weight
file describes the model only. --against adds a comparison with another run or weight file.

IMAGE is a file or, with a run, a row of its dataset: test:0 is the first test image. By default,
the report of a run shows the first images of the split.
"""

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, printable
from vit_jax.figures.catalog import LANGUAGES
from vit_jax.tools import model_flags
from vit_jax.workdir import storage


def define_flags():
    model_flags.define_flags()
    flags.DEFINE_string(
        "output", None, ".html file to write (default: report.html in the workdir of the run)"
    )
    flags.DEFINE_enum(
        "lang", "both", [*LANGUAGES, "both"], "language of the report: English, Korean or both"
    )
    flags.DEFINE_enum("split", "test", ["val", "test"], "split to evaluate")
    flags.DEFINE_integer(
        "max_images", 10_000, "evaluate only the first N images of the split", lower_bound=1
    )


def main(flags, args):
    model_flags.check_flags(flags, args)
    path = output_path(flags.workdir or flags.weights, flags.output)
    models = model_flags.load(flags)
    pictures, errors = model_flags.open_images(args, models)
    if args and not pictures:
        raise UserError("none of the images can be read")
    loaded = dict(zip(("model", "against"), models, strict=False))
    report(pictures=pictures, **cli.arguments(report, flags) | loaded)
    print(f"{printable(path)}  {len(path.read_bytes()) / 1e6:.2f} MB")
    return 2 if errors else 0


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
    """Write an HTML report of a model.

    Args:
      model: an `inference.LoadedModel` of a run or weight file.
      pictures: images to show, each a `data.pictures.Picture`; (): the first images of the split.
      against: a second `LoadedModel` to compare with; None: no comparison.
      output: .html file to write; None: report.html in the workdir of the run.
      lang: "en", "ko" or "both".
      split: split to evaluate, "val" or "test".
      max_images: evaluate only the first N images of the split.
      raw: whether the model has the trained parameters rather than their EMA or the teacher; if
        so, the report says so in its header.

    Returns:
      The path of the report.

    Raises:
      UserError: if the images do not fit the model, or the output path is invalid.
    """
    from vit_jax.report.compose import compose

    path = output_path(model.workdir or model.name, output)
    models = [model] if against is None else [model, against]
    langs = LANGUAGES if lang == "both" else (lang,)
    options = dict(langs=langs, split=split, max_images=max_images, raw=raw)
    storage.write_text(path, compose(models, pictures, **options))
    return path


def output_path(weights, output):
    """Return the path of the report.

    Args:
      weights: workdir of a run, or a weight file.
      output: .html file to write; None: report.html in the workdir of the run.

    Raises:
      UserError: if the path is invalid, or missing for a weight file.
    """
    if output is None:
        from vit_jax import pretrained

        if not pretrained.is_run(weights):
            raise UserError(f"{weights} is not a run; pass --output=report.html")
        return storage.resolve(weights) / "report.html"
    path = storage.resolve(output)
    if path.suffix != ".html" or not path.parent.is_dir():
        raise UserError(f"--output={output} must be a .html file in an existing directory")
    return path


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="[IMAGE...]")
