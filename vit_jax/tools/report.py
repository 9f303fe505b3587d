"""A run, or the weights in a file, as one HTML page that needs no other file and no network.

python -m vit_jax.tools.report --workdir=runs/digits
python -m vit_jax.tools.report --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --output=report.html cat.jpg

The page of a run is DIR/report.html: config, environment, curves, a batch, what the model has
learned, where it looks, what it says of the test images. That of weights is about the model alone.
"""

from datetime import UTC, datetime

from absl import flags

from vit_jax import cli, folders
from vit_jax.cli import UserError

SHOWN = 4  # images of which attention and features are drawn, if none is named


def define_flags():
    flags.DEFINE_string("workdir", None, "folder of a run; an image may be test:0, a row of it")
    flags.DEFINE_string("weights", None, "file.safetensors, instead of --workdir")
    flags.DEFINE_string("model", None, "of --weights: its name, such as vit_small_patch16_224")
    flags.DEFINE_string("output", None, ".html to write (of a run: DIR/report.html)")
    flags.DEFINE_enum("lang", "both", ["en", "ko", "both"], "English, Korean or both")
    flags.DEFINE_enum("split", "test", ["val", "test"], "whose images are predicted: val or test")
    flags.DEFINE_integer("most", 10_000, "images of it that are, the first ones", lower_bound=1)
    flags.DEFINE_string("checkpoint", "best", "of --workdir: best, latest or a step")
    flags.DEFINE_bool("raw", False, "of --workdir: the trained weights, not their average")


def main(flags, words):
    output = check(flags)
    if flags.workdir:
        cli.load_config(flags.workdir)  # before the wait for jax
    from vit_jax.report import subject
    from vit_jax.report.words import LANGS, Words

    if flags.workdir:
        model = subject.of_run(flags.workdir, flags.checkpoint, flags.raw)
    else:
        model = subject.of_weights(flags.weights, flags.model)
    say = Words(LANGS if flags.lang == "both" else (flags.lang,))
    html = compose(say, model, words, flags)
    folders.write_text(output, html)
    print(f"{output}  {len(html.encode()) / 1e6:.2f} MB")


def check(flags):
    """-> where to write. Raises UserError."""
    if (flags.workdir is None) == (flags.weights is None):
        raise UserError("say either --workdir=DIR or --weights=FILE; see --help")
    if flags.workdir and flags.model:
        raise UserError("--model goes with --weights; a run knows its own")
    if flags.weights and (flags.raw or flags.checkpoint != "best"):
        raise UserError("--raw and --checkpoint go with --workdir; a file has one set of weights")
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
        subtitle = say("of_file", name=model.name, made=made)
    else:
        subtitle = say("of_run", name=model.name, step=model.step, made=made)
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
    return page.render(say, model.title, subtitle, facts, sections)


def look(say, model, words):
    """The sections about images: those that are named, else the first of test, else samples."""
    from vit_jax.report import of_model, page, subject
    from vit_jax.tools import predict

    if words:
        found, _ = predict.open_images(words, model)
        pictures = [(one.name, one.view, one.label) for one in found]
        if not pictures:
            raise UserError("none of the images can be read")
    elif model.config is None:
        pictures = subject.samples(model)
    else:
        try:
            pictures = subject.examples(model, "test", SHOWN)
        except UserError as error:
            return [page.section("attention", page.text(say("no_data", why=str(error))))]
    arrays = subject.compute(model, [view for _, view, _ in pictures])
    return [make(say, model, pictures, arrays) for make in (of_model.looks, of_model.tokens)]


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="[IMAGE...]")
