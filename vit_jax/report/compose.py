"""The page of one model or of two."""

from datetime import UTC, datetime

from vit_jax.errors import UserError
from vit_jax.figures.catalog import LANGUAGES
from vit_jax.report import of_images, of_model, of_pair, of_run, page
from vit_jax.report.seen import see
from vit_jax.report.words import Words


def compose(models, pictures=(), *, langs=LANGUAGES, split="test", max_images=10_000, raw=False):
    """Compose a report as one HTML page that needs no other file.

    Args:
      models: one `inference.LoadedModel`, or two to compare.
      pictures: `data.pictures.Picture`s that are looked at, as in `seen.see`.
      langs: the languages of the page; the reader chooses one.
      split: of a run: whose images are predicted.
      max_images: only the first images of the split.
      raw: whether the weights are the trained ones, not their average or the teacher.

    Raises:
      UserError: for images that do not fit.
    """
    say, model = Words(langs), models[0]
    sections = []
    if model.config is not None:
        about = (of_run.setup, of_run.course, of_run.health, of_run.given)
        sections = [make(say, model) for make in about]
    try:
        seen = see(models, pictures, split)
        found = of_images.sections(say, seen[0])
    except UserError as error:
        if pictures:
            raise
        seen, name = [], "gradcam" if model.is_cnn else "attention"
        found = [page.section(name, page.text(say("left_out", why=str(error))))]
    sections.append(of_model.parts(say, model))
    sections.append(of_model.weights(say, model, seen[0] if seen else None))
    sections += found
    if model.config is not None:
        sections.append(of_model.answers(say, model, split, max_images))
    if len(models) > 1:
        sections.append(of_pair.side_by_side(say, models, seen))
    subtitle, facts = _subtitle(say, models, raw), of_run.facts(say, model)
    return page.render(say, model.short, subtitle, facts, sections)


def _subtitle(say, models, raw):
    model, made = models[0], datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if model.config is None:
        words = say("of_file", name=model.variant, made=made)
    else:
        words = say("of_run", name=model.variant, step=model.step, made=made)
    words += say("raw") if raw else ""
    return words + (say("beside", other=models[1].name) if len(models) > 1 else "")
