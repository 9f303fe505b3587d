"""The section about two models: what they score and cost, where they look, how far they see."""

import numpy as np

from vit_jax.figures import receptive_field
from vit_jax.figures.sizes import count
from vit_jax.perf import forward_speed
from vit_jax.report import of_images
from vit_jax.report.of_run import last, median
from vit_jax.report.page import figure, section, table, text
from vit_jax.report.words import Phrase

PAIRS, SECONDS = 5, 0.4  # turns of each, and about so long is one
BATCH, FLOPS = 64, 4e10  # most images of a forward pass that is timed, and FLOPs of it


def side_by_side(say, models, seen):
    """models: two, as `subject.of` has them. seen: a `subject.Seen` of each, of the same images;
    [] where there are no images."""
    blocks = [costs(say, models)]
    if seen:
        blocks += [looks(say, seen), *fields(say, seen), distances(say, seen)]
    return section("against", *blocks)


def costs(say, models):
    """What each scores and costs, as a table."""
    speed = forward(models)
    rows = [
        [say("tested_on"), *map(_test, models)],
        [say("parameters"), *(f"{model.sizes[0]:,}" for model in models)],
        [say("flops"), *(count(model.sizes[1]) for model in models)],
        [say("image_side"), *(f"{model.image} × {model.image}" for model in models)],
        [say("train_speed"), *(_rate(median(model.rows, "perf/images_per_s")) for model in models)],
        [say("forward"), *(_rate(speed[i]["images_per_s"]["median"]) for i in range(2))],
        [say("forward_cpu"), *(_rate(speed[i]["images_per_cpu_s"]["median"]) for i in range(2))],
    ]
    ratio = {key: speed["ratio"][key] for key in ("median", "min", "max")}
    words = say(
        "in_turns",
        batch=speed["batch"],
        device=speed["device"],
        pairs=len(speed["pairs"]),
        other=models[1].short,
        name=models[0].short,
        **ratio,
    )
    return table("against-table", ["", *(model.name for model in models)], rows, words)


def forward(models):
    """Interleaved timing of the two, by number, with batches that take about a second at most."""
    size = int(np.clip(FLOPS // max(model.sizes[1] for model in models), 1, BATCH))
    sides = {
        i: (model, np.zeros((size, model.image, model.image, model.channels), np.uint8))
        for i, model in enumerate(models)
    }
    return forward_speed.interleaved(sides, PAIRS, SECONDS)


def _test(model):
    metric = model.config.best_metric.replace("/val/", "/test/") if model.config else ""
    row = last(model.rows, metric)
    return "—" if row is None else f"{row[metric]:.2%} ({metric.rpartition('/')[2]})"


def _rate(value):
    return "—" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def looks(say, seen):
    """Attention or Grad-CAM of either, on the same images."""
    panels = [panel for panel in map(of_images.looked, seen) if panel["maps"]]
    if not panels:
        return text(say("no_classifier"))
    drawn = receptive_field.looks(seen[0].views, of_images.titles(seen[0]), panels)
    ways = [Phrase("gradcam_of" if one.model.cnn else "attention_of") for one in seen]
    names = dict(name=seen[0].model.short, other=seen[1].model.short)
    words = say("both_look", count=len(seen[0].names), how=ways[0], else_how=ways[1], **names)
    return figure("against-looks", drawn, words)


def fields(say, seen):
    """Yields the effective fields of those whose could be had, and why those of others are not
    there."""
    found, words = [], ""
    for one in seen:
        rows, gradients = one.fields
        if not gradients:
            yield text(of_images.too_dear(say, one))
            continue
        found.append(
            (one.model.short, gradients, {row["layer"]: row.get("inside") for row in rows})
        )
        sides = dict(image=one.model.image, name=one.model.short)
        words += say("ends_at", **sides, **of_images.ends(one))
    if found:
        yield figure("against-fields", receptive_field.fields(found), say("both_reach") + words)


def distances(say, seen):
    """How far either sees, layer by layer."""
    sides = [
        {"side": one.model.image, "rows": one.fields[0]}
        | ({} if one.model.cnn else {"heads": one.heads})
        for one in seen
    ]
    words = say("both_far", a=seen[0].model.image, b=seen[1].model.image)
    return figure("against-distances", receptive_field.distances(sides), words)
