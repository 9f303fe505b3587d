"""Sections about a model: its parts and sizes, its weights, its predictions on a split."""

from functools import partial

import numpy as np

from vit_jax import data
from vit_jax.analysis import effective_fields, stages, weight_stats
from vit_jax.errors import UserError
from vit_jax.figures import diagrams, internals
from vit_jax.figures.sizes import bars, count
from vit_jax.report import image_sections, inline, run_sections, scores
from vit_jax.report.inspection import pick
from vit_jax.report.page import cards, figure, section, table, text
from vit_jax.report.words import phrase

EXAMPLES, MISTAKES, TOP = 8, 12, 5  # images of the split, mistakes; classes of each
MAX_CLASSES, PAIRS = 20, 10  # of a confusion matrix as a table; pairs of classes


def parts(phrases, model):
    """The whole as a drawing, its size beside published ones, and its parts as drawings."""
    config, total = model.module.config, model.parameters
    rows, _ = stages.from_config(config)
    caption = phrases("whole", name=model.variant, count=total, flops=count(model.flops))
    blocks = [figure(phrases, "whole", partial(diagrams.whole, rows, model.variant), caption)]
    tested = [100 * row[key] for split, key, row in run_sections.scores(model) if split == "test"]
    rows = weight_stats.beside_published(model.variant, config, tested[0] if tested else None)
    caption = phrases("sizes", name=model.variant, count=total)
    blocks.append(figure(phrases, "size-bars", partial(bars, rows), caption))
    return section("model", *blocks, *drawings(phrases, model))


def drawings(phrases, model):
    """The parts of a ViT and the objective of a run, each to be unfolded."""
    config, found = model.module.config, []
    if not model.is_cnn:
        _, patches, _, n = diagrams.grid_of(config)
        width, heads = config.width, config.num_heads
        kind = phrase("learned" if config.pos_embed == "learned" else "fixed")
        found = [
            ("self", diagrams.self_attention, phrases("self", n=n)),
            ("heads", diagrams.multi_head, phrases("heads", heads=heads, dim=width // heads)),
            ("patch", diagrams.patch_embedding, phrases("patch", n=patches, p=config.patch)),
            ("where", diagrams.positions, phrases("where", n=patches, width=width, kind=kind)),
        ]
    if model.config is not None and (name := run_sections.objective_of(model).drawing):
        draw = partial(getattr(diagrams, name), config=model.config)
        own = f"drawing_{name}" if f"drawing_{name}" in phrases else "drawing"
        found.append((name, draw, phrases(own, **model.config.objective)))
    return [
        figure(phrases, f"drawing-{name}", partial(draw, config), words, fold=words)
        for name, draw, words in found
    ]


def weights(phrases, model, seen):
    """The first layer's filters; of a ViT the positions, of a CNN the receptive fields.

    seen: a `Inspection`; None where there are no images.
    """
    first = model.module.stem if model.is_cnn else model.module.patch_embed
    kernel = np.asarray(first.kernel[...])
    components, shares = weight_stats.filters(kernel)
    p, _, c, d = kernel.shape
    variance = dict(first=shares[0], all=min(shares.sum(), 1.0))
    caption = phrases("filters", n=len(shares), d=d, p=p, c=c, **variance)
    draw = partial(internals.filters, components, shares)
    filters = figure(phrases, "filter-components", draw, caption)
    if model.is_cnn:
        reach = image_sections.reach(phrases, seen) if seen else None
        return section("filters-fields", filters, _fields(phrases, model, seen), reach)
    similarity = weight_stats.position_similarity(weight_stats.positions(model.module))
    near, far = weight_stats.neighbor_similarity(similarity)
    h, w = similarity.shape[:2]
    kind = phrase("learned" if model.module.config.pos_embed == "learned" else "fixed")
    caption = phrases("positions", h=h, w=w, kind=kind, near=near, far=far)
    draw = partial(internals.positions, similarity)
    return section("weights", filters, figure(phrases, "position-similarity", draw, caption))


def _fields(phrases, model, seen):
    rows = seen.fields[0] if seen else effective_fields.layers_of_cnn(model)
    rows = [row for row in rows if "/" not in row["layer"]]
    columns = {"layer": "{layer}", "field": "{field}", "stride": "{jump}"}
    caption = phrases("fields", first=rows[0]["field"], last=rows[-1]["field"], image=model.image)
    if "side95" in rows[0]:
        columns |= {"effective": "{side95:.1f}", "filled": "{share95:.0%}"}
        caption += phrases("side_is")
    cells = [[form.format(**row) for form in columns.values()] for row in rows]
    return table("receptive-fields", [phrases(name) for name in columns], cells, caption)


def answers(phrases, model, split, max_images):
    """Predictions and mistakes on a split, the confusion matrix, every class's accuracy."""
    try:
        source = data.make(model.config, model.config.data[split])
        labels, shares, neighbors = scores.of_split(model, split, max_images)
    except UserError as error:
        return section("answers", text(phrases("left_out", why=str(error))))
    predicted, names = shares.argmax(1), model.class_names
    right = predicted == labels
    words = phrases("scored", count=len(labels), of=len(source), acc=right.mean())
    words += phrases("by_knn", k=neighbors) if neighbors else ""

    def card(i):
        name, image, _ = pick(source, split, i)
        order = (-shares[i]).argsort(kind="stable")[:TOP]
        own = int(labels[i])
        top = [(names[k], float(shares[i, k]), k == own) for k in order]
        found = {"src": inline.picture(model.view(image)), "alt": name, "name": name}
        return found | {"true": names[own], "right": bool(right[i]), "bars": top}

    some = [card(i) for i in range(min(EXAMPLES, len(labels)))]
    wrong = [card(i) for i in scores.mistakes(labels, shares, MISTAKES)]
    blocks = [text(words), cards("predictions", some, phrases("some", count=len(some)))]
    if wrong:
        caption = phrases("mistakes", count=len(wrong), wrong=int((~right).sum()))
        blocks.append(cards("mistakes", wrong, caption))
    else:
        blocks.append(text(phrases("no_mistakes")))
    return section("answers", *blocks, *classes(phrases, labels, predicted, names))


def classes(phrases, labels, predicted, names):
    """The confusion matrix, the pairs that are confused most, and the accuracy of every class."""
    matrix = scores.confusion(labels, predicted, len(names))
    caption = phrases("confusion", count=len(labels), right=int(np.trace(matrix)))
    if len(names) > MAX_CLASSES:
        yield figure(phrases, "confusion", partial(internals.confusion, matrix), caption)
    else:
        rows = [[name, *_cells(i, matrix[i])] for i, name in enumerate(names)]
        yield table("confusion", ["", *names], rows, caption, classes="matrix")
    pairs = [[names[i], names[j], f"{n:,}"] for i, j, n in scores.confused(matrix, PAIRS)]
    head = [phrases("true"), phrases("predicted"), phrases("images")]
    yield table("pairs", head, pairs, phrases("confused"))
    counts = matrix.sum(1)
    found = [(matrix[i, i] / counts[i], names[i], counts[i]) for i in np.nonzero(counts)[0]]
    found.sort(key=lambda row: row[0])
    rows = [[name, _cell(f"{x:.1%}", x, False), f"{n:,}"] for x, name, n in found]
    caption = phrases("per_class", low=found[0][0], high=found[-1][0], count=len(found))
    kind = "fold" if len(found) > MAX_CLASSES else "caption"
    head = [phrases("true"), phrases("accuracy"), phrases("images")]
    yield table("per-class", head, rows, classes="bars", **{kind: caption})


def _cells(i, row):
    """The cells of a row of the confusion matrix. Of mistakes the color follows the square root of
    their share: few of many can be seen."""
    shares = row / max(row.sum(), 1)
    return [
        _cell(int(n) or "·", x if i == j else x**0.5, i == j)
        for j, (n, x) in enumerate(zip(row, shares, strict=True))
    ]


def _cell(text, share, own):
    return {"text": text, "share": f"{share:.3f}", "own": own}
