"""A run, or the weights in a file, as one HTML page that needs no other file and no network.

python -m vit_jax.tools.report --workdir=runs/digits
python -m vit_jax.tools.report --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --output=report.html cat.jpg
python -m vit_jax.tools.report --workdir=runs/resnet14 --against=runs/micro --output=both.html

The page of a run is DIR/report.html: config, environment, curves, a batch, what the model has
learned, where it looks, what it says of the test images. That of weights is about the model alone.
--against another run or file adds a section that has both side by side.
"""

from datetime import UTC, datetime

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.tools import model_flags
from vit_jax.workdir import storage

SHOWN = 4  # images of which attention and features are drawn, if none is named


def define_flags():
    model_flags.define_flags()
    flags.DEFINE_string("output", None, ".html to write (of a run: DIR/report.html)")
    flags.DEFINE_enum("lang", "both", ["en", "ko", "both"], "English, Korean or both")
    flags.DEFINE_enum("split", "test", ["val", "test"], "whose images are predicted: val or test")
    flags.DEFINE_integer("most", 10_000, "images of it that are, the first ones", lower_bound=1)


def main(flags, words):
    output = check(flags)
    from vit_jax.report import subject
    from vit_jax.report.words import LANGS, Words

    models = [subject.of(model) for model in model_flags.of_flags(flags)]
    say = Words(LANGS if flags.lang == "both" else (flags.lang,))
    html = compose(say, models, words, flags)
    storage.write_text(output, html)
    print(f"{output}  {len(html.encode()) / 1e6:.2f} MB")


def check(flags):
    """-> where to write. Raises UserError."""
    model_flags.check_flags(flags)
    if flags.output is None:
        if flags.weights:
            raise UserError("--weights needs --output=report.html")
        return storage.place(flags.workdir) / "report.html"
    output = storage.place(flags.output)
    if output.suffix != ".html" or not output.parent.is_dir():
        raise UserError(f"--output={flags.output} must be a .html in a folder that exists")
    return output


def compose(say, models, words, flags):
    """-> the page as text."""
    from vit_jax.report import of_model, of_pair, of_run, page

    made, model = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), models[0]
    if model.config is None:
        subtitle = say("of_file", name=model.variant, made=made)
    else:
        subtitle = say("of_run", name=model.variant, step=model.step, made=made)
    subtitle += say("raw") if flags.raw else ""
    subtitle += say("beside", other=models[1].name) if len(models) > 1 else ""
    sections = []
    if model.config is not None:
        about = (of_run.setup, of_run.course, of_run.health, of_run.given)
        sections += [make(say, model) for make in about]
    try:
        seen, why = see(models, words, flags.split), ""
    except UserError as error:
        if words:
            raise
        seen, why = [], page.text(say("no_data", why=str(error)))
    sections += [
        of_model.parts(say, model),
        of_model.weights(say, model, seen[0] if seen else None),
    ]
    if seen:
        sections += look(say, seen[0])
    else:
        sections.append(page.section("gradcam" if model.cnn else "attention", why))
    if model.config is not None:
        sections.append(of_model.answers(say, model, flags.split, flags.most))
    if len(models) > 1:
        sections.append(of_pair.side_by_side(say, models, seen))
    return page.render(say, model.short, subtitle, of_run.facts(say, model), sections)


def see(models, words, split):
    """The same images for every model: those that are named, else the first of the split of the
    first run among the models, else samples. -> [subject.Seen, ...]"""
    from vit_jax.data import pictures
    from vit_jax.report import subject

    owner = next((model for model in models if model.config is not None), None)
    config = owner and owner.config
    found = []
    for model in models:
        if words:
            opened, _ = pictures.open_images(words, model, config)
            words = [one.name for one in opened]  # a broken one is spoken of once
            images = [(one.name, one.view, one.label) for one in opened]
        elif config is None:
            images = subject.samples(model)
        else:
            images = subject.examples(model, config, split, SHOWN)
        if not images:
            raise UserError("none of the images can be read")
        names = owner.class_names if owner else []
        images = [(n, view, None if i is None else names[i]) for n, view, i in images]
        found.append(subject.Seen(model, images))
    return found


def look(say, seen):
    """The sections about images, of the first model."""
    from vit_jax.report import of_images

    if seen.model.cnn:
        return [of_images.gradcam(say, seen)]
    return [of_images.looks(say, seen), of_images.tokens(say, seen)]


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="[IMAGE...]")
