"""A run, or the weights in a file, as one HTML page that needs no other file and no network.

python -m vit_jax.tools.report --workdir=runs/digits
python -m vit_jax.tools.report --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --output=report.html cat.jpg

The page of a run is DIR/report.html: config, environment, curves, a batch, what the model has
learned, where it looks, what it says of the test images. That of weights is about the model alone.
"""

from datetime import UTC, datetime

from absl import flags

from vit_jax import cli, folders, trained
from vit_jax.cli import UserError

SHOWN = 4  # images of which attention and features are drawn, if none is named


def define_flags():
    trained.define_flags(against=False)
    flags.DEFINE_string("output", None, ".html to write (of a run: DIR/report.html)")
    flags.DEFINE_enum("lang", "both", ["en", "ko", "both"], "English, Korean or both")
    flags.DEFINE_enum("split", "test", ["val", "test"], "whose images are predicted: val or test")
    flags.DEFINE_integer("most", 10_000, "images of it that are, the first ones", lower_bound=1)


def main(flags, words):
    output = check(flags)
    from vit_jax.report import subject
    from vit_jax.report.words import LANGS, Words

    (model,) = map(subject.of, trained.of_flags(flags))
    say = Words(LANGS if flags.lang == "both" else (flags.lang,))
    html = compose(say, model, words, flags)
    folders.write_text(output, html)
    print(f"{output}  {len(html.encode()) / 1e6:.2f} MB")


def check(flags):
    """-> where to write. Raises UserError."""
    trained.check_flags(flags)
    if flags.output is None:
        if flags.weights:
            raise UserError("--weights needs --output=report.html")
        return folders.place(flags.workdir) / "report.html"
    output = folders.place(flags.output)
    if output.suffix != ".html" or not output.parent.is_dir():
        raise UserError(f"--output={flags.output} must be a .html in a folder that exists")
    return output


def compose(say, model, words, flags):
    """-> the page as text."""
    from vit_jax.report import of_model, of_run, page

    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if model.config is None:
        subtitle = say("of_file", name=model.variant, made=made)
    else:
        subtitle = say("of_run", name=model.variant, step=model.step, made=made)
    subtitle += say("raw") if flags.raw else ""
    sections = []
    if model.config is not None:
        about = (of_run.setup, of_run.course, of_run.health, of_run.given)
        sections += [make(say, model) for make in about]
    sections += [of_model.parts(say, model), of_model.weights(say, model)]
    if not model.cnn:
        sections += look(say, model, words)
    if model.config is not None:
        sections.append(of_model.answers(say, model, flags.split, flags.most))
    facts = of_run.facts(say, model)
    return page.render(say, model.short, subtitle, facts, sections)


def look(say, model, words):
    """The sections about images: those that are named, else the first of test, else samples."""
    from vit_jax import pictures
    from vit_jax.report import of_model, page, subject

    if words:
        found, _ = pictures.open_images(words, model)
        images = [(one.name, one.view, one.label) for one in found]
        if not images:
            raise UserError("none of the images can be read")
    elif model.config is None:
        images = subject.samples(model)
    else:
        try:
            images = subject.examples(model, "test", SHOWN)
        except UserError as error:
            return [page.section("attention", page.text(say("no_data", why=str(error))))]
    arrays = subject.compute(model, [view for _, view, _ in images])
    return [make(say, model, images, arrays) for make in (of_model.looks, of_model.tokens)]


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="[IMAGE...]")
