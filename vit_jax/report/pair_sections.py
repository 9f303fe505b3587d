"""The comparison of two models: scores and costs, saliency maps, receptive fields.

Arguments named `phrases` are `words.Phrases`; `models` are two `inference.LoadedModel`s, and
`inspections` are their `Inspection`s for the same images.
"""

from functools import partial

import numpy as np

from vit_jax.figures import receptive_field
from vit_jax.figures.drawing import format_size
from vit_jax.figures.sizes import count
from vit_jax.perf import forward_speed
from vit_jax.report import image_sections, run_sections
from vit_jax.report.page import figure, section, table, text
from vit_jax.report.words import phrase

TIMED_PAIRS = 5  # interleaved timings of each model
TIMING_SECONDS = 0.4  # approximate duration of one timing
MAX_BATCH_SIZE = 64
MAX_BATCH_FLOPS = 4e10  # per timed forward pass, about one second


def comparison(phrases, models, inspections):
    """Compare two models; inspections is [] without images."""
    blocks = [cost_table(phrases, models)]
    if inspections:
        blocks.append(saliency(phrases, inspections))
        blocks.append(effective_fields(phrases, inspections))
        blocks.append(spatial_extent(phrases, inspections))
    return section("against", *blocks)


def cost_table(phrases, models):
    """Table of scores, sizes and speeds."""
    speed = time_forward(models)
    rows = {
        "tested_on": [_test_score(model) for model in models],
        "parameters": [f"{model.parameters:,}" for model in models],
        "flops": [count(model.flops) for model in models],
        "image_side": [format_size(model.size) for model in models],
        "train_speed": [_rate(run_sections.median(m.metrics, "perf/images_per_s")) for m in models],
        "forward": [_rate(speed[i]["images_per_s"]["median"]) for i in range(2)],
        "forward_cpu": [_rate(speed[i]["images_per_cpu_s"]["median"]) for i in range(2)],
    }
    values = dict(batch=speed["batch"], device=speed["device"], pairs=len(speed["pairs"]))
    names = dict(name=models[0].short_name, other=models[1].short_name)
    caption = phrases("timed", **values, **names, **speed["ratio"])
    rows = [[phrases(name), *cells] for name, cells in rows.items()]
    return table("against-table", ["", *(model.name for model in models)], rows, caption)


def time_forward(models):
    """Time the forward passes of both models with `forward_speed.time_forward_passes`."""
    size = int(np.clip(MAX_BATCH_FLOPS // max(model.flops for model in models), 1, MAX_BATCH_SIZE))
    sides = {
        i: (model, np.zeros((size, *model.size, model.channels), np.uint8))
        for i, model in enumerate(models)
    }
    return forward_speed.time_forward_passes(sides, TIMED_PAIRS, TIMING_SECONDS)


def _test_score(model):
    for split, key, row in run_sections.final_scores(model):
        if split == "test":
            return f"{row[key]:.2%} ({key.rpartition('/')[2]})"
    return "—"


def _rate(value):
    return "—" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def saliency(phrases, inspections):
    """Attention maps or Grad-CAM of both models for the same images."""
    draw = image_sections.saliency_drawing(inspections)
    if draw is None:
        return text(phrases("no_classifier"))
    methods = [phrase("gradcam_of" if x.model.is_cnn else "attention_of") for x in inspections]
    names = dict(name=inspections[0].model.short_name, other=inspections[1].model.short_name)
    values = dict(count=len(inspections[0].names), how=methods[0], else_how=methods[1])
    return figure(phrases, "against-looks", draw, phrases("both_look", **values, **names))


def effective_fields(phrases, inspections):
    """Effective receptive fields of both models."""
    caption = phrases("both_reach")
    for inspection in inspections:
        model = inspection.model
        sizes = image_sections.field_sizes(inspection)
        caption += phrases("ends_at", image=format_size(model.size), name=model.short_name, **sizes)
    maps = [image_sections.field_maps(inspection) for inspection in inspections]
    return figure(phrases, "against-fields", partial(receptive_field.fields, maps), caption)


def spatial_extent(phrases, inspections):
    """Receptive field sizes and attention distances of both models, layer by layer."""
    panels = [
        {
            "side": inspection.model.image,
            "rows": inspection.fields[0],
            "heads": None if inspection.model.is_cnn else inspection.heads,
        }
        for inspection in inspections
    ]
    first, second = (format_size(inspection.model.size) for inspection in inspections)
    caption = phrases("both_far", a=first, b=second)
    return figure(phrases, "against-distances", partial(receptive_field.distances, panels), caption)
