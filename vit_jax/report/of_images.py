"""Sections about images: where a model looks in them, how far it sees, what its tokens hold.

seen: a `Seen`.
"""

import math
from functools import partial

import numpy as np

from vit_jax.analysis import attention, attention_maps, weight_stats
from vit_jax.figures import anatomy, receptive_field
from vit_jax.figures.seeing import KEEP, drawing
from vit_jax.report.page import figure, section, text
from vit_jax.report.seen import spaced
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
    found = attention_maps.see(model.replace(name=model.short), seen.views, blocks, True)
    heads = model.num_heads
    masks = [attention.mass_mask(x[:, -1], KEEP) for x in (found.maps.mean(2), found.rollout)]
    share, rolled = (mask.mean() for mask in masks)
    draw = partial(drawing, seen.names, seen.views, [found], which=range(len(seen.names)))
    whose = phrase("cls" if model.prefix else "patches")
    values = dict(layers=", ".join(map(str, blocks)), layer=layer, heads=heads, keep=KEEP)
    caption = say("seeing", whose=whose, count=len(seen.names), share=share, **values)
    every = partial(draw, ["mean"], style="overlay")
    parts = [figure(say, "attention-maps", every, caption)]
    shown = min(heads, MAX_HEADS)
    for i, first in enumerate(range(0, shown, ACROSS)):
        last = min(first + ACROSS, shown) - 1
        which = [*range(first, last + 1), *(["rollout"] if last == shown - 1 else [])]
        caption = say("by_head", first=first, last=last, heads=heads, layer=layer)
        one = partial(draw, which, rows=[-1], style="overlay")
        parts.append(figure(say, f"attention-heads-{i + 1}", one, caption))
    caption = say("masked", keep=KEEP, share=share, rolled=rolled, layer=layer)
    caption += say("rolled", layer=layer)
    which = ["mean", *range(min(heads, 3) if heads > 1 else 0), "rollout"]
    lit = partial(draw, which, rows=[-1], style="mask")
    parts.append(figure(say, "attention-mask", lit, caption))
    return section("attention", *parts, distance(say, seen), reach(say, seen))


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
    """The effective receptive fields."""
    draw = partial(receptive_field.fields, [fields_of(seen)])
    values = dict(count=seen.images, draws=seen.draws, image=seen.model.image)
    caption = say("reach", **values, **ends(seen))
    caption += say("dashed") if seen.model.is_cnn else ""
    return figure(say, "effective-fields", draw, caption)


def fields_of(seen):
    """What `figures.receptive_field.fields` draws of a model."""
    rows, gradients = seen.fields
    return seen.model.short, gradients, {row["layer"]: row.get("inside") for row in rows}


def ends(seen):
    """Sides of the first and the last effective field, for a phrase."""
    sides = [row["side95"] for row in seen.fields[0] if "side95" in row]
    return dict(first=sides[0], last=sides[-1])


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

    def draw(say):
        panels = []
        for seen in several:
            says, maps = seen.looks
            names = None if says is None else [seen.model.class_names[i] for i in says]
            panel = dict(name=seen.model.short, maps=maps, says=names, views=seen.views)
            if not seen.model.is_cnn:
                panel["whose"] = "[CLS]" if seen.model.prefix else say("average_patch")
            panels.append(panel)
        return receptive_field.looks(several[0].views, several[0].titles, panels, say=say)

    return draw if several else None


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
