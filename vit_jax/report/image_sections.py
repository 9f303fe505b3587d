"""Sections about images: where a model looks in them, how far it sees, what its tokens hold.

seen: a `Inspection`.
"""

import math
from functools import partial

import numpy as np

from vit_jax.analysis import attention, attention_maps, weight_stats
from vit_jax.figures import internals, receptive_field
from vit_jax.figures.attention import KEEP, drawing
from vit_jax.report.inspection import spaced
from vit_jax.report.page import figure, section, text
from vit_jax.report.words import phrase

LAYERS = 4  # whose features are drawn as colors
ACROSS, MAX_HEADS = 6, 12  # heads beside each other, and in all


def sections(phrases, seen):
    """The sections about the images, of a ViT or of a CNN."""
    return (
        [gradcam(phrases, seen)]
        if seen.model.is_cnn
        else [looks(phrases, seen), tokens(phrases, seen)]
    )


def looks(phrases, seen):
    """A ViT's attention over the images, how far every head looks, effective receptive fields."""
    model, layer = seen.model, seen.model.depth
    blocks = attention_maps.first_middle_last(layer)
    found = attention_maps.extract(model.replace(name=model.short), seen.views, blocks, True)
    heads = model.num_heads
    masks = [attention.mass_mask(x[:, -1], KEEP) for x in (found.maps.mean(2), found.rollout)]
    share, rolled = (mask.mean() for mask in masks)
    draw = partial(drawing, seen.names, seen.views, [found], which=range(len(seen.names)))
    whose = phrase("cls" if model.prefix else "patches")
    values = dict(layers=", ".join(map(str, blocks)), layer=layer, heads=heads, keep=KEEP)
    caption = phrases("seeing", whose=whose, count=len(seen.names), share=share, **values)
    every = partial(draw, ["mean"], style="overlay")
    parts = [figure(phrases, "attention-maps", every, caption)]
    shown = min(heads, MAX_HEADS)
    for i, first in enumerate(range(0, shown, ACROSS)):
        last = min(first + ACROSS, shown) - 1
        which = [*range(first, last + 1), *(["rollout"] if last == shown - 1 else [])]
        caption = phrases("by_head", first=first, last=last, heads=heads, layer=layer)
        one = partial(draw, which, rows=[-1], style="overlay")
        parts.append(figure(phrases, f"attention-heads-{i + 1}", one, caption))
    caption = phrases("masked", keep=KEEP, share=share, rolled=rolled, layer=layer)
    caption += phrases("rolled", layer=layer)
    which = ["mean", *range(min(heads, 3) if heads > 1 else 0), "rollout"]
    lit = partial(draw, which, rows=[-1], style="mask")
    parts.append(figure(phrases, "attention-mask", lit, caption))
    return section("attention", *parts, distance(phrases, seen), reach(phrases, seen))


def distance(phrases, seen):
    """How far every head of a ViT looks, and how narrowly."""
    layers = seen.model.depth
    distances = np.reshape([row["distance"] for row in seen.heads], (layers, -1))
    entropies = np.reshape([row["entropy_bits"] for row in seen.heads], (layers, -1))
    even, most = seen.heads[0]["even_distance"], math.log2(math.prod(seen.model.grid))
    values = dict(first=distances[0].mean(), last=distances[-1].mean(), layer=layers, even=even)
    values |= dict(low=entropies.min(), high=entropies.max(), most=most)
    caption = phrases("distance", heads=seen.model.num_heads, count=len(seen.names), **values)
    draw = partial(internals.heads, distances, entropies, even, most)
    return figure(phrases, "attention-distance", draw, caption)


def reach(phrases, seen):
    """The effective receptive fields."""
    draw = partial(receptive_field.fields, [fields_of(seen)])
    values = dict(count=seen.images, draws=seen.draws, image=seen.model.image)
    caption = phrases("reach", **values, **ends(seen))
    caption += phrases("dashed") if seen.model.is_cnn else ""
    return figure(phrases, "effective-fields", draw, caption)


def fields_of(seen):
    """What `figures.receptive_field.fields` draws of a model."""
    rows, gradients = seen.fields
    return seen.model.short, gradients, {row["layer"]: row.get("inside") for row in rows}


def ends(seen):
    """Sides of the first and the last effective field, for a phrase."""
    sides = [row["side95"] for row in seen.fields[0] if "side95" in row]
    return dict(first=sides[0], last=sides[-1])


def gradcam(phrases, seen):
    """Where a CNN looks: Grad-CAM of every stage."""
    _, maps = seen.saliency
    if not maps:
        return section("gradcam", text(phrases("no_classifier")))
    caption = phrases("explained", stages=len(maps), count=len(seen.names))
    return section("gradcam", figure(phrases, "gradcam-maps", draw_looks([seen]), caption))


def draw_looks(several):
    """A function of `phrases` that draws the `saliency_grid` of several models; None without maps."""
    several = [seen for seen in several if seen.saliency[1]]

    def draw(phrases):
        panels = []
        for seen in several:
            says, maps = seen.saliency
            names = None if says is None else [seen.model.class_names[i] for i in says]
            panel = dict(name=seen.model.short, maps=maps, says=names, views=seen.views)
            if not seen.model.is_cnn:
                panel["whose"] = "[CLS]" if seen.model.prefix else phrases("average_patch")
            panels.append(panel)
        return receptive_field.saliency_grid(
            several[0].views, several[0].titles, panels, phrases=phrases
        )

    return draw if several else None


def tokens(phrases, seen):
    """Similarity of the patches with what is read out, and their features as colors."""
    model, layers = seen.model, spaced(seen.model.depth, LAYERS)
    prefix, grid = model.prefix, model.grid
    arrays = model.run(seen.views, blocks=True, batch_size=len(seen.views))
    similarity = weight_stats.pooled_similarity(arrays["tokens"], grid, prefix)
    colors = {
        layer: attention.pca(arrays["blocks"][layer - 1][:, prefix:]).reshape(-1, *grid, 3)
        for layer in layers
    }

    def draw(phrases):
        named = {phrases("layer", layer=layer): x for layer, x in colors.items()}
        reader = "[CLS]" if prefix else phrases("patch_mean")
        return internals.tokens(seen.views, similarity, named, reader, phrases=phrases)

    values = dict(low=similarity.min(), high=similarity.max(), layers=model.depth)
    whose = phrase("cls_token" if prefix else "mean_token")
    caption = phrases("similar", whose=whose, count=len(seen.names), **values)
    return section("tokens", figure(phrases, "token-features", draw, caption))
