"""Compose the report of one model, or of two models side by side."""

from datetime import UTC, datetime

from vit_jax import progress
from vit_jax.errors import UserError
from vit_jax.figures.catalog import LANGUAGES
from vit_jax.report import image_sections, model_sections, page, pair_sections, run_sections
from vit_jax.report.inspection import inspect
from vit_jax.report.words import Phrases


def compose(models, pictures=(), *, langs=LANGUAGES, split="test", max_images=10_000, raw=False):
    """Compose a report as one self-contained HTML page.

    Args:
      models: one `inference.LoadedModel`, or two to compare.
      pictures: `data.pictures.Picture`s for the attention and Grad-CAM figures; empty: see
        `inspection.inspect`.
      langs: languages of the page; the reader can switch between them.
      split: key of config.data with the dataset split to evaluate.
      max_images: evaluate only the first images of the split.
      raw: whether the weights are the trained ones instead of their EMA or DINO's teacher.

    Returns:
      The page, a string.

    Raises:
      UserError: if an image does not fit the model.
    """
    phrases = Phrases(langs)
    model = models[0]
    is_run = model.config is not None
    has_pair = len(models) > 1
    with progress.steps("report", total=3 + 3 * is_run + has_pair) as start_step:
        sections = []
        if is_run:
            start_step("drawing the training curves")
            sections += [
                run_sections.setup(phrases, model),
                run_sections.training(phrases, model),
                run_sections.diagnostics(phrases, model),
            ]
            start_step("reading the first training batch")
            sections.append(run_sections.input_batch(phrases, model))
        try:
            start_step("computing receptive fields")
            inspections = inspect(models, pictures, split)
            _ = inspections[0].fields  # computed on first access
            start_step("drawing Grad-CAM" if model.is_cnn else "drawing attention maps")
            about_images = image_sections.sections(phrases, inspections[0])
        except UserError as error:
            if pictures:
                raise
            inspections = []
            name = "gradcam" if model.is_cnn else "attention"
            about_images = [page.section(name, page.text(phrases("left_out", why=str(error))))]
        start_step("drawing the architecture and weights")
        sections.append(model_sections.architecture(phrases, model))
        inspection = inspections[0] if inspections else None
        sections.append(model_sections.weights(phrases, model, inspection))
        sections += about_images
        if is_run:
            start_step(f"evaluating on {split}")
            sections.append(model_sections.predictions(phrases, model, split, max_images))
        if has_pair:
            start_step("comparing both models")
            sections.append(pair_sections.comparison(phrases, models, inspections))
    subtitle = _subtitle(phrases, models, raw)
    facts = run_sections.facts(phrases, model)
    return page.render(phrases, model.short_name, subtitle, facts, sections)


def _subtitle(phrases, models, raw):
    model = models[0]
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if model.config is None:
        subtitle = phrases("of_file", name=model.variant, made=made)
    else:
        subtitle = phrases("of_run", name=model.variant, step=model.step, made=made)
    if raw:
        subtitle += phrases("raw")
    if len(models) > 1:
        subtitle += phrases("beside", other=models[1].name)
    return subtitle
