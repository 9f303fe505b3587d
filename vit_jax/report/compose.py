"""The page of one model or of two."""

from datetime import UTC, datetime

from vit_jax.errors import UserError
from vit_jax.figures.catalog import LANGUAGES
from vit_jax.report import image_sections, model_sections, page, pair_sections, run_sections
from vit_jax.report.inspection import inspect
from vit_jax.report.words import Words


def compose(models, pictures=(), *, langs=LANGUAGES, split="test", max_images=10_000, raw=False):
    """Compose a report as one HTML page that needs no other file.

    Args:
      models: one `inference.LoadedModel`, or two to compare.
      pictures: `data.pictures.Picture`s that are looked at, as in `inspection.inspect`.
      langs: the languages of the page; the reader chooses one.
      split: of a run: whose images are predicted.
      max_images: only the first images of the split.
      raw: whether the weights are the trained ones, not their average or the teacher.

    Raises:
      UserError: for images that do not fit.
    """
    phrases, model = Words(langs), models[0]
    sections = []
    if model.config is not None:
        about = (run_sections.setup, run_sections.course, run_sections.health, run_sections.given)
        sections = [make(phrases, model) for make in about]
    try:
        seen = inspect(models, pictures, split)
        found = image_sections.sections(phrases, seen[0])
    except UserError as error:
        if pictures:
            raise
        seen, name = [], "gradcam" if model.is_cnn else "attention"
        found = [page.section(name, page.text(phrases("left_out", why=str(error))))]
    sections.append(model_sections.parts(phrases, model))
    sections.append(model_sections.weights(phrases, model, seen[0] if seen else None))
    sections += found
    if model.config is not None:
        sections.append(model_sections.answers(phrases, model, split, max_images))
    if len(models) > 1:
        sections.append(pair_sections.side_by_side(phrases, models, seen))
    subtitle, facts = _subtitle(phrases, models, raw), run_sections.facts(phrases, model)
    return page.render(phrases, model.short, subtitle, facts, sections)


def _subtitle(phrases, models, raw):
    model, made = models[0], datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if model.config is None:
        words = phrases("of_file", name=model.variant, made=made)
    else:
        words = phrases("of_run", name=model.variant, step=model.step, made=made)
    words += phrases("raw") if raw else ""
    return words + (phrases("beside", other=models[1].name) if len(models) > 1 else "")
