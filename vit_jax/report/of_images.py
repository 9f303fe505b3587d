"""Sections about images: where a model looks in them, how far it sees, what its tokens hold.

`seen` is a `subject.Seen`.
"""

import math

import numpy as np

from vit_jax.analysis import attention, attention_maps, weight_stats
from vit_jax.figures import anatomy as figures
from vit_jax.figures import receptive_field
from vit_jax.figures.seeing import KEEP, drawing
from vit_jax.figures.sizes import count
from vit_jax.report import subject
from vit_jax.report.page import figure, section, text
from vit_jax.report.words import Phrase

LAYERS = 4  # layers whose features are drawn as colors
ACROSS, HEADS = 6, 12  # heads beside each other, and that are drawn at all


def looks(say, seen):
    """A ViT's attention over the images, how far every head looks, effective receptive fields."""
    model, blocks = seen.model, attention_maps.ends(seen.depth)
    found, names, views = (
        attention_maps.see(model, seen.views, blocks, True),
        seen.names,
        seen.views,
    )
    heads = found.maps.shape[2]
    masks = [attention.mass_mask(x[:, -1], KEEP) for x in (found.maps.mean(2), found.rollout)]
    share, rolled = (mask.mean() for mask in masks)
    every = range(len(names))

    def drawn(which, style, rows=None):
        return drawing(names, views, [found], which, every, rows, style=style)

    ends = dict(layers=", ".join(map(str, blocks)), layer=seen.depth)
    words = say(
        "seeing",
        whose=_whose(model),
        heads=heads,
        count=len(names),
        share=share,
        keep=KEEP,
        **ends,
    )
    parts = [figure("attention-maps", drawn(["mean"], "overlay"), words)]
    shown = min(heads, HEADS)
    for i, part in enumerate(np.array_split(range(shown), math.ceil(shown / ACROSS))):
        words = say("by_head", first=part[0], last=part[-1], heads=heads, layer=seen.depth)
        which, last = part.tolist(), part[-1] == shown - 1
        if last:
            which.append("rollout")
            words += say("rolled", layer=seen.depth)
            words += say("some_heads", shown=shown, heads=heads) if shown < heads else ""
        parts.append(figure(f"attention-heads-{i + 1}", drawn(which, "overlay", [-1]), words))
    words = say("masked", keep=KEEP, share=share, rolled=rolled, layer=seen.depth)
    which = ["mean", *range(min(heads, 3) if heads > 1 else 0), "rollout"]
    parts.append(figure("attention-mask", drawn(which, "mask", [-1]), words))
    return section("attention", *parts, distance(say, seen), *reach(say, seen))


def distance(say, seen):
    """How far every head of a ViT looks, and how narrowly."""
    shape = seen.depth, -1
    distances = np.reshape([row["distance"] for row in seen.heads], shape)
    entropies = np.reshape([row["entropy_bits"] for row in seen.heads], shape)
    even = seen.heads[0]["even_distance"]
    most = math.log2((seen.model.image // seen.model.module.config.patch) ** 2)
    ends = dict(first=distances[0].mean(), last=distances[-1].mean(), layer=seen.depth)
    ends |= dict(low=entropies.min(), high=entropies.max(), even=even, most=most)
    words = say("distance", heads=distances.shape[1], count=len(seen.names), **ends)
    drawn = figures.heads(distances, entropies, even, most)
    return figure("attention-distance", drawn, words)


def reach(say, seen):
    """Yields the effective receptive fields as a figure, or why there are none."""
    rows, gradients = seen.fields
    if not gradients:
        yield text(too_dear(say, seen))
        return
    images, draws = seen.reach
    inside = {row["layer"]: row.get("inside") for row in rows}
    drawn = receptive_field.fields([(seen.model.short, gradients, inside)])
    words = say("reach", count=images, draws=draws, image=seen.model.image, **ends(seen))
    words += say("dashed") if seen.model.cnn else ""
    yield figure("effective-fields", drawn, words)


def ends(seen):
    """Sides of the first and last effective field, for a phrase."""
    rows = [row for row in seen.fields[0] if "side95" in row]
    return dict(first=rows[0]["side95"], last=rows[-1]["side95"])


def too_dear(say, seen):
    costs = dict(cost=count(seen.cost), limit=count(subject.LIMIT))
    return say("too_dear", name=seen.model.short, **costs)


def gradcam(say, seen):
    """Where a CNN looks: Grad-CAM of every stage."""
    panel = looked(seen)
    if not panel["maps"]:
        return section("gradcam", text(say("no_classifier")))
    drawn = receptive_field.looks(seen.views, titles(seen), [panel])
    words = say("explained", stages=len(panel["maps"]), count=len(seen.names))
    return section("gradcam", figure("gradcam-maps", drawn, words))


def looked(seen):
    """What `figures.receptive_field.looks` draws of a model."""
    says, maps = seen.looks
    names, model = seen.model.class_names, seen.model
    said = None if says is None else [names[i] for i in says]
    panel = {"name": model.short, "maps": maps, "says": said, "views": seen.views}
    if not model.cnn:
        panel["whose"] = "[CLS]" if model.module.config.prefix else "the average patch"
    return panel


def titles(seen):
    """Below the images: which they are, and of which class."""
    return [
        name if known is None else f"{name}\n{known}"
        for name, known in zip(seen.names, seen.classes, strict=True)
    ]


def tokens(say, seen):
    """Similarity of the patches with what is read out, and their features as colors."""
    model, arrays = seen.model, seen.tokens
    module, side = model.module, model.image // model.module.config.patch
    similarity = weight_stats.reader_similarity(
        arrays["tokens"], (side, side), module.config.prefix
    )
    colors = {}
    for layer in subject.spaced(seen.depth, LAYERS):
        x = arrays[f"block_{layer - 1:02}"][:, module.config.prefix :]
        colors[f"layer {layer}"] = attention.pca(x).reshape(-1, side, side, 3)
    reader = "[CLS]" if module.config.prefix else "the mean"
    whose = Phrase("cls_token" if module.config.prefix else "mean_token")
    values = dict(low=similarity.min(), high=similarity.max(), layers=seen.depth)
    words = say("similar", whose=whose, count=len(seen.names), **values)
    shown = figures.tokens(seen.views, similarity, colors, reader)
    return section("tokens", figure("token-features", shown, words))


def _whose(model):
    return Phrase("cls" if model.module.config.prefix else "patches")
