"""Sections about a model: its parts and sizes, what its weights and tokens hold, what it says."""

import math

import numpy as np

from vit_jax.analysis import effective_fields, weight_stats
from vit_jax.errors import UserError
from vit_jax.figures import anatomy as figures
from vit_jax.figures import diagrams
from vit_jax.figures.sizes import bars, count
from vit_jax.report import drawn, inline, of_images, scores, subject
from vit_jax.report.of_run import last
from vit_jax.report.page import cards, figure, section, table, text
from vit_jax.report.words import Phrase

SHOWN, WRONG, TOP = 8, 12, 5  # test images, mistakes; classes of each
WIDEST, PAIRS = 20, 10  # classes of a table; pairs of them


def parts(say, model):
    """The whole as a drawing, its size beside published ones, and its parts as drawings."""
    options, (total, flops) = model.options, model.sizes
    rows = subject.stages(model)
    words = say("whole", name=model.variant, count=total, flops=count(flops))
    blocks = [figure("whole", diagrams.whole(rows, model.variant), words)]
    row = last(model.rows, "eval/test/acc1")
    beside = weight_stats.beside_published(
        model.variant, options, row and 100 * row["eval/test/acc1"]
    )
    near = [row for row in beside if not row.get("this")]
    near = min(near, key=lambda row: abs(math.log(row["parameters"] / total)))
    ratio = dict(ratio=total / near["parameters"], other=f"ViT-{near['model']}")
    words = say("sizes", name=model.variant, count=total, theirs=near["parameters"], **ratio)
    blocks.append(figure("size-bars", bars(beside), words))
    return section("model", *blocks, *([] if model.cnn else drawings(say, model)))


def drawings(say, model):
    """Drawings 2 to 6 of a ViT, each to be unfolded."""
    options = model.options
    _, patches, _, n = diagrams.grid_of(options)
    width, heads, p = options.width, options.num_heads, options.patch
    kind = "learned" if options.pos_embed == "learned" else "fixed"
    found = [
        ("self", diagrams.self_attention(options), dict(n=n)),
        ("heads", diagrams.multi_head(options), dict(heads=heads, dim=width // heads)),
        ("patch", diagrams.patch_embedding(options), dict(n=patches, p=p)),
        ("where", diagrams.positions(options), dict(n=patches, width=width, kind=Phrase(kind))),
    ]
    if model.config is not None and model.config.objective.name == "dino":
        drawing = diagrams.dino(options, model.config)
        found.append(("dino", drawing, dict(k=model.config.objective.out_dim)))
    return [
        figure(f"drawing-{name}", drawing, say(name, **values), fold=say(name, **values))
        for name, drawing, values in found
    ]


def weights(say, model, seen):
    """The first layer's filters; of a ViT the positions, of a CNN how far its layers see.

    seen: a `subject.Seen`; None where there are no images.
    """
    first = model.module.stem if model.cnn else model.module.patch_embed
    kernel = np.asarray(first.kernel[...])
    components, shares = weight_stats.filters(kernel)
    p, _, c, d = kernel.shape
    words = say(
        "filters", n=len(shares), d=d, p=p, c=c, first=shares[0], all=min(shares.sum(), 1.0)
    )
    blocks = [figure("filter-components", figures.filters(components, shares), words)]
    if model.cnn:
        blocks.append(_fields(say, model, seen))
        blocks += of_images.reach(say, seen) if seen else []
    else:
        similarity = weight_stats.position_similarity(weight_stats.positions(model.module))
        near, far = weight_stats.neighbor_similarity(similarity)
        h, w = similarity.shape[:2]
        kind = Phrase("learned" if model.options.pos_embed == "learned" else "fixed")
        words = say("positions", h=h, w=w, kind=kind, near=near, far=far)
        blocks.append(figure("position-similarity", figures.positions(similarity), words))
    return section("filters-fields" if model.cnn else "weights", *blocks)


def _fields(say, model, seen):
    rows = seen.fields[0] if seen else effective_fields.layers_of_cnn(model)
    rows = [row for row in rows if "/" not in row["layer"]]
    keys = {"layer": "layer", "field": "field", "stride": "jump"}
    keys |= {"effective": "side95", "filled": "share95"} if "side95" in rows[0] else {}
    forms = {"side95": "{:.1f}", "share95": "{:.0%}"}
    cells = [[forms.get(key, "{}").format(row[key]) for key in keys.values()] for row in rows]
    sides = dict(first=rows[0]["field"], last=rows[-1]["field"])
    words = say("fields", **sides, image=model.image)
    words += say("side_is") if "effective" in keys else ""
    return table("receptive-fields", [say(phrase) for phrase in keys], cells, words)


def answers(say, model, split, most):
    """Predictions and mistakes on a split, the confusion matrix, every class's accuracy."""
    try:
        found = scores.of_split(model.model, model.params, model.config, split, most)
        rows = subject.examples(model, model.config, split, SHOWN)
    except UserError as error:
        return section("answers", text(say("no_data", why=str(error))))
    labels, shares = found["labels"], found["scores"]
    said, names = shares.argmax(1), model.class_names
    right = said == labels
    words = say("scored", count=len(labels), of=found["of"], acc=right.mean())
    words += say("by_knn", k=found["knn"]) if found["knn"] else ""

    def card(name, view, i):
        order = (-shares[i]).argsort(kind="stable")[:TOP]
        own = int(labels[i])
        top = [(names[k], float(shares[i, k]), k == own) for k in order]
        found = {"src": inline.picture(view), "alt": name, "name": name, "true": names[own]}
        return found | {"right": bool(right[i]), "bars": top}

    wrong = scores.mistakes(labels, shares, WRONG)
    some = [card(name, view, i) for i, (name, view, _) in enumerate(rows)]
    views = subject.pick(model, split, wrong)
    bad = [card(f"{split}:{i}", view, i) for i, view in zip(wrong, views, strict=True)]
    total = int((~right).sum())
    blocks = [text(words), cards("predictions", some, say("some", count=len(some)))]
    if bad:
        words = say("mistakes", count=len(bad), wrong=total)
        blocks.append(cards("mistakes", bad, words))
    else:
        blocks.append(text(say("no_mistakes")))
    return section("answers", *blocks, *classes(say, labels, said, names))


def classes(say, labels, said, names):
    """The confusion matrix, the pairs that are confused most, and the accuracy of every class."""
    matrix = scores.confusion(labels, said, len(names))
    words = say("confusion", count=len(labels), right=int(np.trace(matrix)))
    counts, hits = matrix.sum(1), np.diag(matrix)
    if len(names) > WIDEST:
        yield figure("confusion", drawn.confusion(matrix), words)
    else:
        shares = matrix / np.maximum(counts[:, None], 1)
        rows = [[name, *_row(i, matrix, shares)] for i, name in enumerate(names)]
        yield table("confusion", ["", *names], rows, words, classes="matrix")
    pairs = [[names[i], names[j], f"{n:,}"] for i, j, n in scores.confused(matrix, PAIRS)]
    yield table("pairs", [say("true"), say("said"), say("images")], pairs, say("confused"))
    there = [i for i in np.argsort(hits / np.maximum(counts, 1), kind="stable") if counts[i]]
    rows = []
    for i in there:
        share = hits[i] / counts[i]
        cell = {"text": f"{share:.1%}", "share": f"{share:.3f}", "own": False}
        rows.append([names[i], cell, f"{counts[i]:,}"])
    ends = [hits[i] / counts[i] for i in (there[0], there[-1])]
    words = say("per_class", low=ends[0], high=ends[1], count=len(there))
    head = [say("true"), say("accuracy"), say("images")]
    many = len(there) > WIDEST
    yield table(
        "per-class",
        head,
        rows,
        None if many else words,
        fold=words if many else None,
        classes="bars",
    )


def _row(i, matrix, shares):
    """The cells of a row of the confusion matrix."""
    pairs = enumerate(zip(matrix[i].tolist(), shares[i], strict=True))
    # Of mistakes the root: few of many can be seen.
    return [
        {"text": n or "·", "share": f"{x if i == j else x**0.5:.3f}", "own": i == j}
        for j, (n, x) in pairs
    ]
