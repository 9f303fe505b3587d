"""The section about two models: what they score and cost, where they look, how far they see."""

from functools import partial

import numpy as np

from vit_jax.figures import receptive_field
from vit_jax.figures.sizes import count
from vit_jax.perf import forward_speed
from vit_jax.report import of_images, of_run
from vit_jax.report.page import figure, section, table, text
from vit_jax.report.words import phrase

PAIRS, SECONDS = 5, 0.4  # interleaved timings of each model; about how long one takes
MAX_BATCH, MAX_FLOPS = 64, 4e10  # of a forward pass that is timed


def side_by_side(say, models, seen):
    """models: two. seen: a `Seen` of each, of the same images; [] where there are no images."""
    blocks = [costs(say, models)]
    if seen:
        blocks += [looks(say, seen), fields(say, seen), distances(say, seen)]
    return section("against", *blocks)


def costs(say, models):
    """What each scores and costs, as a table."""
    speed = timings(models)
    rows = {
        "tested_on": [_test(model) for model in models],
        "parameters": [f"{model.parameters:,}" for model in models],
        "flops": [count(model.flops) for model in models],
        "image_side": [f"{model.image} × {model.image}" for model in models],
        "train_speed": [_rate(of_run.median(m.metrics, "perf/images_per_s")) for m in models],
        "forward": [_rate(speed[i]["images_per_s"]["median"]) for i in range(2)],
        "forward_cpu": [_rate(speed[i]["images_per_cpu_s"]["median"]) for i in range(2)],
    }
    values = dict(batch=speed["batch"], device=speed["device"], pairs=len(speed["pairs"]))
    names = dict(name=models[0].short, other=models[1].short)
    caption = say("timed", **values, **names, **speed["ratio"])
    rows = [[say(name), *cells] for name, cells in rows.items()]
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
    for split, key, row in of_run.scores(model):
        if split == "test":
            return f"{row[key]:.2%} ({key.rpartition('/')[2]})"
    return "—"


def _rate(value):
    return "—" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def looks(say, seen):
    """Attention or Grad-CAM of either, on the same images."""
    draw = of_images.draw_looks(seen)
    if draw is None:
        return text(say("no_classifier"))
    ways = [phrase("gradcam_of" if one.model.is_cnn else "attention_of") for one in seen]
    names = dict(name=seen[0].model.short, other=seen[1].model.short)
    values = dict(count=len(seen[0].names), how=ways[0], else_how=ways[1])
    return figure(say, "against-looks", draw, say("both_look", **values, **names))


def fields(say, seen):
    """The effective receptive fields of either."""
    caption = say("both_reach")
    for one in seen:
        sides = dict(image=one.model.image, name=one.model.short)
        caption += say("ends_at", **sides, **of_images.ends(one))
    draw = partial(receptive_field.fields, [of_images.fields_of(one) for one in seen])
    return figure(say, "against-fields", draw, caption)


def distances(say, seen):
    """How far either sees, layer by layer."""
    sides = [{"side": one.model.image, "rows": one.fields[0]} for one in seen]
    for side, one in zip(sides, seen, strict=True):
        side["heads"] = None if one.model.is_cnn else one.heads
    caption = say("both_far", a=seen[0].model.image, b=seen[1].model.image)
    return figure(say, "against-distances", partial(receptive_field.distances, sides), caption)
