"""Sections about a model: architecture and size, weights, predictions on a split.

Arguments named `phrases` are `words.Phrases`; `model` is an `inference.LoadedModel`.
"""

from functools import partial

import numpy as np

from vit_jax import data
from vit_jax.analysis import effective_fields, stages, weight_stats
from vit_jax.errors import UserError
from vit_jax.figures import diagrams, internals
from vit_jax.figures.drawing import format_size
from vit_jax.figures.sizes import bars, count
from vit_jax.report import image_sections, inline, run_sections, scores
from vit_jax.report.inspection import load_image
from vit_jax.report.page import cards, figure, section, table, text
from vit_jax.report.words import phrase

NUM_EXAMPLES = 8  # images of the split shown with their predictions
MAX_ERRORS = 12  # wrong predictions shown
TOP_K = 5  # classes shown per image
MAX_TABLE_CLASSES = 20  # up to this many, the confusion matrix is a table
MAX_CONFUSED_PAIRS = 10


def architecture(phrases, model):
    """Stages of the model, its size compared with published models, and diagrams of its parts."""
    config = model.module.config
    rows, _ = stages.from_config(config)
    values = dict(name=model.variant, count=model.parameters)
    caption = phrases("whole", flops=count(model.flops), **values)
    blocks = [figure(phrases, "whole", partial(diagrams.whole, rows, model.variant), caption)]
    tested = [
        100 * row[key] for split, key, row in run_sections.final_scores(model) if split == "test"
    ]
    top1 = tested[0] if tested else None
    dataset = run_sections.dataset(model)
    rows = weight_stats.compare_with_published(model.variant, config, top1, dataset)
    blocks.append(figure(phrases, "size-bars", partial(bars, rows), phrases("sizes", **values)))
    return section("model", *blocks, *diagram_figures(phrases, model))


def diagram_figures(phrases, model):
    """Collapsible diagrams of the parts of a ViT and of the run's objective."""
    config = model.module.config
    rows = []
    if not model.is_cnn:
        _, patches, _, n = diagrams.token_counts(config)
        width, heads = config.width, config.num_heads
        kind = phrase("learned" if config.pos_embed == "learned" else "fixed")
        size = format_size(config.patch_size)
        rows = [
            ("self", diagrams.self_attention, phrases("self", n=n)),
            ("heads", diagrams.multi_head, phrases("heads", heads=heads, dim=width // heads)),
            ("patch", diagrams.patch_embedding, phrases("patch", n=patches, size=size)),
            ("where", diagrams.positions, phrases("where", n=patches, width=width, kind=kind)),
        ][: 3 if config.pos_embed == "none" else 4]
    if model.config is not None and (name := run_sections.make_objective(model).drawing):
        draw = partial(getattr(diagrams, name), config=model.config)
        key = f"drawing_{name}" if f"drawing_{name}" in phrases else "drawing"
        rows.append((name, draw, phrases(key, **model.config.objective)))
    return [
        figure(phrases, f"drawing-{name}", partial(draw, config), caption, fold=caption)
        for name, draw, caption in rows
    ]


def weights(phrases, model, inspection):
    """First-layer filters; position embeddings of a ViT, receptive fields of a CNN.

    Args:
      phrases: `words.Phrases`.
      model: an `inference.LoadedModel`.
      inspection: an `Inspection`; None without images.
    """
    first = model.module.stem if model.is_cnn else model.module.patch_embed
    kernel = np.asarray(first.kernel[...])
    components, shares = weight_stats.filters(kernel)
    *size, d = kernel.shape
    variance = dict(first=shares[0], all=min(shares.sum(), 1.0))
    caption = phrases("filters", n=len(shares), d=d, size=format_size(size), **variance)
    draw = partial(internals.filters, components, shares)
    filters = figure(phrases, "filter-components", draw, caption)
    if model.is_cnn:
        maps = image_sections.effective_fields(phrases, inspection) if inspection else None
        return section("filters-fields", filters, _field_table(phrases, model, inspection), maps)
    if model.module.config.pos_embed == "none":
        return section("weights", filters)
    similarity = weight_stats.position_similarity(weight_stats.positions(model.module))
    near, far = weight_stats.neighbor_similarity(similarity)
    h, w = similarity.shape[:2]
    kind = phrase("learned" if model.module.config.pos_embed == "learned" else "fixed")
    caption = phrases("positions", h=h, w=w, kind=kind, near=near, far=far)
    draw = partial(internals.positions, similarity)
    return section("weights", filters, figure(phrases, "position-similarity", draw, caption))


def _field_table(phrases, model, inspection):
    rows = inspection.fields[0] if inspection else effective_fields.theoretical_fields(model)
    rows = [row for row in rows if "/" not in row["layer"]]
    columns = {"layer": "{layer}", "field": "{field}", "stride": "{jump}"}
    sizes = dict(first=rows[0]["field"], last=rows[-1]["field"], image=format_size(model.size))
    caption = phrases("fields", **sizes)
    if "side95" in rows[0]:
        columns |= {"effective": "{side95:.1f}", "filled": "{share95:.0%}"}
        caption += phrases("side_is")
    cells = [[template.format(**row) for template in columns.values()] for row in rows]
    return table("receptive-fields", [phrases(name) for name in columns], cells, caption)


def predictions(phrases, model, split, max_images):
    """Predictions and errors on a split, confusion matrix and per-class accuracy."""
    try:
        source = data.make(model.config, model.config.data[split])
        labels, probabilities, k = scores.evaluate_split(model, split, max_images)
    except UserError as error:
        return section("answers", text(phrases("left_out", why=str(error))))
    predicted = probabilities.argmax(1)
    correct = predicted == labels
    names = model.class_names
    summary = phrases("scored", count=len(labels), of=len(source), acc=correct.mean())
    if k:
        summary += phrases("by_knn", k=k)

    def card(i):
        picture = load_image(source, split, i)
        order = (-probabilities[i]).argsort(kind="stable")[:TOP_K]
        true = int(labels[i])
        return {
            "src": inline.data_url(picture.view(model)),
            "alt": picture.name,
            "name": picture.name,
            "true": names[true],
            "right": bool(correct[i]),
            "bars": [(names[j], float(probabilities[i, j]), j == true) for j in order],
        }

    examples = [card(i) for i in range(min(NUM_EXAMPLES, len(labels)))]
    errors = [card(i) for i in scores.confident_errors(labels, probabilities, MAX_ERRORS)]
    blocks = [text(summary), cards("predictions", examples, phrases("some", count=len(examples)))]
    if errors:
        caption = phrases("mistakes", count=len(errors), wrong=int((~correct).sum()))
        blocks.append(cards("mistakes", errors, caption))
    else:
        blocks.append(text(phrases("no_mistakes")))
    return section("answers", *blocks, *class_tables(phrases, labels, predicted, names))


def class_tables(phrases, labels, predicted, names):
    """Yield the confusion matrix, the most confused pairs of classes and per-class accuracy."""
    matrix = scores.confusion(labels, predicted, len(names))
    caption = phrases("confusion", count=len(labels), right=int(np.trace(matrix)))
    if len(names) > MAX_TABLE_CLASSES:
        yield figure(phrases, "confusion", partial(internals.confusion, matrix), caption)
    else:
        rows = [[name, *_confusion_cells(i, matrix[i])] for i, name in enumerate(names)]
        yield table("confusion", ["", *names], rows, caption, classes="matrix")
    pairs = scores.confused_pairs(matrix, MAX_CONFUSED_PAIRS)
    rows = [[names[i], names[j], f"{n:,}"] for i, j, n in pairs]
    head = [phrases("true"), phrases("predicted"), phrases("images")]
    yield table("pairs", head, rows, phrases("confused"))
    counts = matrix.sum(1)
    accuracies = [(matrix[i, i] / counts[i], names[i], counts[i]) for i in np.nonzero(counts)[0]]
    accuracies.sort(key=lambda row: row[0])
    rows = [[name, _cell(f"{x:.1%}", x, False), f"{n:,}"] for x, name, n in accuracies]
    low, high = accuracies[0][0], accuracies[-1][0]
    caption = phrases("per_class", low=low, high=high, count=len(accuracies))
    kind = "fold" if len(accuracies) > MAX_TABLE_CLASSES else "caption"
    head = [phrases("true"), phrases("accuracy"), phrases("images")]
    yield table("per-class", head, rows, classes="bars", **{kind: caption})


def _confusion_cells(i, row):
    """Return the cells of a row of the confusion matrix.

    The color of an error scales with the square root of its share, so that rare errors are visible.
    """
    shares = row / max(row.sum(), 1)
    return [
        _cell(int(n) or "·", x if i == j else x**0.5, i == j)
        for j, (n, x) in enumerate(zip(row, shares, strict=True))
    ]


def _cell(text, share, is_true):
    return {"text": text, "share": f"{share:.3f}", "is_true": is_true}
