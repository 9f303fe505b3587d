"""Draw a model in ten drawings, with its own shapes and numbers, and one image on its way through.

python -m vit_jax.tools.drawings --workdir=runs/digits --output=drawings
python -m vit_jax.tools.drawings --weights=FILE.safetensors --model=vit_base_patch16_224 \\
    --output=drawings cat.jpg
python -m vit_jax.tools.drawings --model=B/16 --output=drawings cat.jpg

The drawings are: the whole model, self-attention, the heads, patch embedding, positions, DINO's
student and teacher, a ViT and a CNN side by side, the attention of the first, middle and last layer
in three shades, the sizes of published models, and the way of the image to its top classes. A
ResNet has those that apply, with Grad-CAM in place of attention. Writes one SVG per drawing, and
index.html with all of them in English and Korean, which loads nothing.

IMAGE is a file or, with a run, a row of its dataset (default: test:0). A model name alone has
randomly initialized weights, which the page says.
"""

from pathlib import Path

from absl import flags

from vit_jax import cli, variants
from vit_jax.errors import UserError, printable
from vit_jax.figures.catalog import LANGUAGES
from vit_jax.tools import model_flags
from vit_jax.workdir import storage


def define_flags():
    model_flags.define_flags(against=False)
    flags.DEFINE_string("output", None, "directory to write", required=True)
    flags.DEFINE_enum(
        "lang", "both", [*LANGUAGES, "both"], "language of the page: English, Korean or both"
    )


def main(flags, args):
    names = args or (["test:0"] if flags.workdir else [])
    if len(names) != 1:
        raise UserError(f"got {len(names)} images; pass one: a file or, with a run, test:0")
    random = flags.model is not None and flags.workdir is None and flags.weights is None
    if random:
        variants.parse(flags.model)
    else:
        model_flags.check_flags(flags, names)
    folder = create(flags.output)
    models = [random_model(flags.model)] if random else model_flags.load(flags)
    pictures, _ = model_flags.open_images(names, models)
    if not pictures:
        return 2
    langs = LANGUAGES if flags.lang == "both" else (flags.lang,)
    for path in write(folder, models[0], pictures[0], langs, random):
        print(printable(path))


def create(text):
    """Create the directory of the drawings and return its Path. Raises UserError."""
    cli.check_local("output", text)
    folder = Path(text).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder} cannot be written: {error.strerror}") from None
    return folder


def random_model(name):
    """Return a `LoadedModel` with random weights, named like --model."""
    from vit_jax import inference, resnet, vit

    kind = resnet if variants.is_cnn(name) else vit
    return inference.from_module(kind.create(name), name)


def write(folder, model, picture, langs=LANGUAGES, random=False):
    """Write the drawings of a model.

    Args:
      folder: Path of an existing directory.
      model: an `inference.LoadedModel`.
      picture: a `data.pictures.Picture`.
      langs: languages of the page; the SVG files are in the first one.
      random: as in `report.drawings.compose`.

    Returns:
      The paths of the files.

    Raises:
      UserError: if the image does not fit the model, or a file cannot be written.
    """
    from vit_jax.figures.catalog import Catalog
    from vit_jax.report import drawings

    html, draws = drawings.compose(model, picture, langs=langs, random=random)
    paths = [folder / "index.html"]
    try:
        storage.write_text(paths[0], html)
        for name, draw in draws.items():
            paths.append(folder / f"{name}.svg")
            drawn = draw(phrases=Catalog("figures", langs[0]))
            if isinstance(drawn, str):
                storage.write_text(paths[-1], drawn)
            else:
                drawn.savefig(paths[-1])
    except OSError as error:
        raise UserError(f"--output={folder} cannot be written: {error.strerror}") from None
    return paths


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="IMAGE")
