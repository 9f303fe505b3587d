"""Sections about images: where a model looks in them, how far it sees, what its tokens hold.

seen: a `Seen`.
"""

import math
from functools import partial

import numpy as np

from vit_jax.analysis import attention, attention_maps, weight_stats
from vit_jax.figures import anatomy, receptive_field
from vit_jax.figures.seeing import KEEP, drawing
from vit_jax.figures.sizes import count
from vit_jax.report.page import figure, section, text
from vit_jax.report.seen import MAX_FLOPS, spaced
from vit_jax.report.words import phrase

LAYERS = 4  # whose features are drawn as colors
ACROSS, MAX_HEADS = 6, 12  # heads beside each other, and in all


def sections(say, seen):
    """The sections about the images, of a ViT or of a CNN."""
    return [gradcam(say, seen)] if seen.model.is_cnn else [looks(say, seen), tokens(say, seen)]


def looks(say, seen):
    """A ViT's attention over the images, how far every head looks, effective receptive fields."""
    model, layer = seen.model, seen.model.depth
    blocks = attention_maps.ends(layer)
    found = attention_maps.see(model, seen.views, blocks, True)
    heads, every = model.num_heads, range(len(seen.names))
    masks = [attention.mass_mask(x[:, -1], KEEP) for x in (found.maps.mean(2), found.rollout)]
    share, rolled = (mask.mean() for mask in masks)

    def draw(name, which, style, rows, caption):
        def drawn(say):
            if model.step is not None:
                found.name = say("at_step", name=model.workdir, step=model.step)
            images = seen.names, seen.views
            return drawing(*images, [found], which, every, rows, style=style, say=say)

        return figure(say, name, drawn, caption)

    whose = phrase("cls" if model.prefix else "patches")
    values = dict(layers=", ".join(map(str, blocks)), layer=layer, heads=heads, keep=KEEP)
    caption = say("seeing", whose=whose, count=len(seen.names), share=share, **values)
    parts = [draw("attention-maps", ["mean"], "overlay", None, caption)]
    shown = min(heads, MAX_HEADS)
    groups = np.array_split(range(shown), math.ceil(shown / ACROSS))
    for i, which in enumerate(groups):
        caption = say("by_head", first=which[0], last=which[-1], heads=heads, layer=layer)
        which = which.tolist()
        if i == len(groups) - 1:
            which.append("rollout")
            caption += say("rolled", layer=layer)
            caption += say("some_heads", shown=shown, heads=heads) if shown < heads else ""
        parts.append(draw(f"attention-heads-{i + 1}", which, "overlay", [-1], caption))
    caption = say("masked", keep=KEEP, share=share, rolled=rolled, layer=layer)
    which = ["mean", *range(min(heads, 3) if heads > 1 else 0), "rollout"]
    parts.append(draw("attention-mask", which, "mask", [-1], caption))
    return section("attention", *parts, distance(say, seen), *reach(say, seen))


def distance(say, seen):
    """How far every head of a ViT looks, and how narrowly."""
    layers = seen.model.depth
    distances = np.reshape([row["distance"] for row in seen.heads], (layers, -1))
    entropies = np.reshape([row["entropy_bits"] for row in seen.heads], (layers, -1))
    even, most = seen.heads[0]["even_distance"], math.log2(math.prod(seen.model.grid))
    values = dict(first=distances[0].mean(), last=distances[-1].mean(), layer=layers, even=even)
    values |= dict(low=entropies.min(), high=entropies.max(), most=most)
    caption = say("distance", heads=seen.model.num_heads, count=len(seen.names), **values)
    draw = partial(anatomy.heads, distances, entropies, even, most)
    return figure(say, "attention-distance", draw, caption)


def reach(say, seen):
    """Yield the effective receptive fields as a figure, or why there are none."""
    rows, gradients = seen.fields
    if not gradients:
        yield text(too_expensive(say, seen))
        return
    images, draws = seen.reach
    draw = partial(receptive_field.fields, [fields_of(seen)])
    caption = say("reach", count=images, draws=draws, image=seen.model.image, **ends(seen))
    caption += say("dashed") if seen.model.is_cnn else ""
    yield figure(say, "effective-fields", draw, caption)


def fields_of(seen):
    """What `figures.receptive_field.fields` draws of a model."""
    rows, gradients = seen.fields
    return seen.model.short, gradients, {row["layer"]: row.get("inside") for row in rows}


def ends(seen):
    """Sides of the first and the last effective field, for a phrase."""
    rows = [row for row in seen.fields[0] if "side95" in row]
    return dict(first=rows[0]["side95"], last=rows[-1]["side95"])


def too_expensive(say, seen):
    costs = dict(cost=count(seen.cost), limit=count(MAX_FLOPS))
    return say("too_expensive", name=seen.model.short, **costs)


def gradcam(say, seen):
    """Where a CNN looks: Grad-CAM of every stage."""
    _, maps = seen.looks
    if not maps:
        return section("gradcam", text(say("no_classifier")))
    caption = say("explained", stages=len(maps), count=len(seen.names))
    return section("gradcam", figure(say, "gradcam-maps", draw_looks([seen]), caption))


def draw_looks(several):
    """A function of say that draws `figures.receptive_field.looks` of models; None without maps."""
    several = [seen for seen in several if seen.looks[1]]
    if not several:
        return None
    first = several[0]
    titles = [
        name if known is None else f"{name}, {known}"
        for name, known in zip(first.names, first.classes, strict=True)
    ]

    def draw(say):
        panels = []
        for seen in several:
            says, maps = seen.looks
            names = None if says is None else [seen.model.class_names[i] for i in says]
            panel = dict(name=seen.model.short, maps=maps, says=names, views=seen.views)
            if not seen.model.is_cnn:
                panel["whose"] = "[CLS]" if seen.model.prefix else say("average_patch")
            panels.append(panel)
        return receptive_field.looks(first.views, titles, panels, say=say)

    return draw


def tokens(say, seen):
    """Similarity of the patches with what is read out, and their features as colors."""
    model, layers = seen.model, spaced(seen.model.depth, LAYERS)
    prefix, grid = model.prefix, model.grid
    arrays = model.run(seen.views, blocks=True, batch_size=len(seen.views))
    similarity = weight_stats.reader_similarity(arrays["tokens"], grid, prefix)
    colors = {
        layer: attention.pca(arrays["blocks"][layer - 1][:, prefix:]).reshape(-1, *grid, 3)
        for layer in layers
    }

    def draw(say):
        named = {say("layer", layer=layer): x for layer, x in colors.items()}
        reader = "[CLS]" if prefix else say("patch_mean")
        return anatomy.tokens(seen.views, similarity, named, reader, say=say)

    values = dict(low=similarity.min(), high=similarity.max(), layers=model.depth)
    whose = phrase("cls_token" if prefix else "mean_token")
    caption = say("similar", whose=whose, count=len(seen.names), **values)
    return section("tokens", figure(say, "token-features", draw, caption))
