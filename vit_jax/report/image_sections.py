"""Sections with figures of images: attention, Grad-CAM, effective receptive fields, features.

Arguments named `phrases` are `words.Phrases`; `inspection` is an `Inspection`.
"""

import math
from functools import partial

import numpy as np

from vit_jax.analysis import attention, attention_maps, weight_stats
from vit_jax.figures import internals, receptive_field
from vit_jax.figures.attention import KEEP, attention_figure
from vit_jax.figures.drawing import format_size
from vit_jax.report.inspection import spaced_layers
from vit_jax.report.page import figure, section, text
from vit_jax.report.words import phrase

MAX_FEATURE_LAYERS = 4  # layers whose features are drawn as colors
HEADS_PER_FIGURE = 6
MAX_HEADS = 12  # heads drawn in total


def sections(phrases, inspection):
    """Return the image sections of a ViT or a CNN."""
    if inspection.model.is_cnn:
        return [gradcam(phrases, inspection)]
    return [attention_section(phrases, inspection), token_features(phrases, inspection)]


def attention_section(phrases, inspection):
    """Attention maps, attention distances and effective receptive fields of a ViT."""
    model, views, names = inspection.model, inspection.views, inspection.names
    layer, heads = model.depth, model.num_heads
    layers = attention_maps.first_middle_last(layer)
    extracted = attention_maps.extract(model.replace(name=model.short_name), views, layers, True)
    masks = [
        attention.mass_mask(x[:, -1], KEEP) for x in (extracted.maps.mean(2), extracted.rollout)
    ]
    share, rolled = (mask.mean() for mask in masks)
    draw = partial(attention_figure, names, views, [extracted], indices=range(len(names)))
    query = phrase("cls" if model.has_class_token else "patches")
    values = dict(layers=", ".join(map(str, layers)), layer=layer, heads=heads, keep=KEEP)
    caption = phrases("seeing", query=query, count=len(names), share=share, **values)
    overview = partial(draw, ["mean"], style="overlay")
    blocks = [figure(phrases, "attention-maps", overview, caption)]
    shown = min(heads, MAX_HEADS)
    for i, first in enumerate(range(0, shown, HEADS_PER_FIGURE)):
        last = min(first + HEADS_PER_FIGURE, shown) - 1
        columns = [*range(first, last + 1), *(["rollout"] if last == shown - 1 else [])]
        caption = phrases("by_head", first=first, last=last, heads=heads, layer=layer)
        by_head = partial(draw, columns, rows=[-1], style="overlay")
        blocks.append(figure(phrases, f"attention-heads-{i + 1}", by_head, caption))
    caption = phrases("masked", keep=KEEP, share=share, rolled=rolled, layer=layer)
    caption += phrases("rolled", layer=layer)
    columns = ["mean", *range(min(heads, 3) if heads > 1 else 0), "rollout"]
    masked = partial(draw, columns, rows=[-1], style="mask")
    blocks.append(figure(phrases, "attention-mask", masked, caption))
    blocks.append(attention_distance(phrases, inspection))
    blocks.append(effective_fields(phrases, inspection))
    return section("attention", *blocks)


def attention_distance(phrases, inspection):
    """Attention distance and entropy of every head of a ViT."""
    layers = inspection.model.depth
    distances = np.reshape([row["distance"] for row in inspection.heads], (layers, -1))
    entropies = np.reshape([row["entropy_bits"] for row in inspection.heads], (layers, -1))
    even = inspection.heads[0]["even_distance"]
    most = math.log2(math.prod(inspection.model.grid))
    values = dict(first=distances[0].mean(), last=distances[-1].mean(), layer=layers, even=even)
    values |= dict(low=entropies.min(), high=entropies.max(), most=most)
    heads, count = inspection.model.num_heads, len(inspection.names)
    caption = phrases("distance", heads=heads, count=count, **values)
    draw = partial(internals.heads, distances, entropies, even, most)
    return figure(phrases, "attention-distance", draw, caption)


def effective_fields(phrases, inspection):
    """Effective receptive fields by layer."""
    draw = partial(receptive_field.fields, [field_maps(inspection)])
    count, draws = inspection.num_images, inspection.num_draws
    values = dict(count=count, draws=draws, image=format_size(inspection.model.size))
    caption = phrases("reach", **values, **field_sizes(inspection))
    if inspection.model.is_cnn:
        caption += phrases("dashed")
    return figure(phrases, "effective-fields", draw, caption)


def field_maps(inspection):
    """Return the entry of a model for `figures.receptive_field.fields`."""
    rows, gradients = inspection.fields
    return inspection.model.short_name, gradients, {row["layer"]: row.get("inside") for row in rows}


def field_sizes(inspection):
    """Return the sides of the first and the last effective field, as values of a phrase."""
    sides = [row["side95"] for row in inspection.fields[0] if "side95" in row]
    return dict(first=sides[0], last=sides[-1])


def gradcam(phrases, inspection):
    """Grad-CAM of every stage of a CNN."""
    _, maps = inspection.saliency
    if not maps:
        return section("gradcam", text(phrases("no_classifier")))
    caption = phrases("explained", stages=len(maps), count=len(inspection.names))
    draw = saliency_drawing([inspection])
    return section("gradcam", figure(phrases, "gradcam-maps", draw, caption))


def saliency_drawing(inspections):
    """Return a function that draws the saliency maps of models side by side.

    Returns:
      A function of `phrases` that returns a `saliency_grid`; None if no model has maps.
    """
    inspections = [inspection for inspection in inspections if inspection.saliency[1]]

    def draw(phrases):
        panels = []
        for inspection in inspections:
            model = inspection.model
            classes, maps = inspection.saliency
            names = None if classes is None else [model.class_names[i] for i in classes]
            panel = dict(name=model.short_name, maps=maps, predicted=names, views=inspection.views)
            if not model.is_cnn:
                panel["prefix"] = model.prefix
                panel["query"] = "[CLS]" if model.has_class_token else phrases("average_patch")
            panels.append(panel)
        first = inspections[0]
        return receptive_field.saliency_grid(first.views, first.titles, panels, phrases=phrases)

    return draw if inspections else None


def token_features(phrases, inspection):
    """Similarity of the patch tokens to the pooled token, and their features as colors."""
    model, views = inspection.model, inspection.views
    layers = spaced_layers(model.depth, MAX_FEATURE_LAYERS)
    prefix, grid = model.prefix, model.grid
    arrays = model.run(views, blocks=True, batch_size=len(views))
    similarity = weight_stats.pooled_similarity(
        arrays["tokens"], grid, prefix, model.has_class_token
    )
    colors = {
        layer: attention.pca(arrays["blocks"][layer - 1][:, prefix:]).reshape(-1, *grid, 3)
        for layer in layers
    }

    def draw(phrases):
        titled = {phrases("layer", layer=layer): x for layer, x in colors.items()}
        pooled_name = "[CLS]" if model.has_class_token else phrases("patch_mean")
        return internals.tokens(views, similarity, titled, pooled_name, phrases=phrases)

    values = dict(low=similarity.min(), high=similarity.max(), layers=model.depth)
    query = phrase("cls_token" if model.has_class_token else "mean_token")
    caption = phrases("similar", query=query, count=len(inspection.names), **values)
    return section("tokens", figure(phrases, "token-features", draw, caption))
