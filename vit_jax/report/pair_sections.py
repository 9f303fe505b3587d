"""The section about two models: what they score and cost, where they look, how far they see."""

from functools import partial

import numpy as np

from vit_jax.figures import receptive_field
from vit_jax.figures.sizes import count
from vit_jax.perf import forward_speed
from vit_jax.report import image_sections, run_sections
from vit_jax.report.page import figure, section, table, text
from vit_jax.report.words import phrase

PAIRS, SECONDS = 5, 0.4  # interleaved timings of each model; about how long one takes
MAX_BATCH, MAX_FLOPS = 64, 4e10  # of a forward pass that is timed


def side_by_side(phrases, models, seen):
    """models: two. seen: an `Inspection` of each, of the same images; [] without images."""
    blocks = [costs(phrases, models)]
    if seen:
        blocks += [looks(phrases, seen), fields(phrases, seen), distances(phrases, seen)]
    return section("against", *blocks)


def costs(phrases, models):
    """What each scores and costs, as a table."""
    speed = timings(models)
    rows = {
        "tested_on": [_test(model) for model in models],
        "parameters": [f"{model.parameters:,}" for model in models],
        "flops": [count(model.flops) for model in models],
        "image_side": [f"{model.image} × {model.image}" for model in models],
        "train_speed": [_rate(run_sections.median(m.metrics, "perf/images_per_s")) for m in models],
        "forward": [_rate(speed[i]["images_per_s"]["median"]) for i in range(2)],
        "forward_cpu": [_rate(speed[i]["images_per_cpu_s"]["median"]) for i in range(2)],
    }
    values = dict(batch=speed["batch"], device=speed["device"], pairs=len(speed["pairs"]))
    names = dict(name=models[0].short, other=models[1].short)
    caption = phrases("timed", **values, **names, **speed["ratio"])
    rows = [[phrases(name), *cells] for name, cells in rows.items()]
    return table("against-table", ["", *(model.name for model in models)], rows, caption)


def timings(models):
    """Interleaved timing of the two, by number, with batches that take about a second at most."""
    size = int(np.clip(MAX_FLOPS // max(model.flops for model in models), 1, MAX_BATCH))
    sides = {
        i: (model, np.zeros((size, model.image, model.image, model.channels), np.uint8))
        for i, model in enumerate(models)
    }
    return forward_speed.interleaved(sides, PAIRS, SECONDS)


def _test(model):
    for split, key, row in run_sections.scores(model):
        if split == "test":
            return f"{row[key]:.2%} ({key.rpartition('/')[2]})"
    return "—"


def _rate(value):
    return "—" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def looks(phrases, seen):
    """Attention or Grad-CAM of either, on the same images."""
    draw = image_sections.draw_looks(seen)
    if draw is None:
        return text(phrases("no_classifier"))
    ways = [phrase("gradcam_of" if one.model.is_cnn else "attention_of") for one in seen]
    names = dict(name=seen[0].model.short, other=seen[1].model.short)
    values = dict(count=len(seen[0].names), how=ways[0], else_how=ways[1])
    return figure(phrases, "against-looks", draw, phrases("both_look", **values, **names))


def fields(phrases, seen):
    """The effective receptive fields of either."""
    caption = phrases("both_reach")
    for one in seen:
        sides = dict(image=one.model.image, name=one.model.short)
        caption += phrases("ends_at", **sides, **image_sections.ends(one))
    draw = partial(receptive_field.fields, [image_sections.fields_of(one) for one in seen])
    return figure(phrases, "against-fields", draw, caption)


def distances(phrases, seen):
    """How far either sees, layer by layer."""
    sides = [{"side": one.model.image, "rows": one.fields[0]} for one in seen]
    for side, one in zip(sides, seen, strict=True):
        side["heads"] = None if one.model.is_cnn else one.heads
    caption = phrases("both_far", a=seen[0].model.image, b=seen[1].model.image)
    return figure(phrases, "against-distances", partial(receptive_field.distances, sides), caption)
