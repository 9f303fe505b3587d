"""Sections about a run: configuration, environment, training curves, first batch.

Arguments named `phrases` are `words.Phrases`; `model` is an `inference.LoadedModel` of a run.
"""

import collections
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment, batch, config, data, objectives
from vit_jax.errors import UserError
from vit_jax.figures import curves
from vit_jax.figures.catalog import Catalog
from vit_jax.figures.sizes import count
from vit_jax.report import inline
from vit_jax.report.page import figure, image_rows, section, table, text

MAX_IMAGES = 24  # images shown of the first batch, if an image has one view
MAX_VIEW_ROWS = 6  # images shown of the first batch, if an image has several views
MAX_CLASS_NAMES = 20  # listed in the environment table


def make_objective(model):
    """Create the `Objective` of a run."""
    return objectives.make(model.model, model.config, model.record["steps_per_epoch"])


def facts(phrases, model):
    """Return the key figures in the header of the page as (value, label) pairs."""
    pairs = []
    rows = model.metrics
    for split, key, row in final_scores(model):
        pairs.append((f"{row[key]:.2%}", phrases(split, metric=key.rpartition("/")[2])))
    pairs.append((count(model.parameters), phrases("parameters")))
    pairs.append((count(model.flops), phrases("flops")))
    if rows:
        step = rows[-1]["step"]
        pairs.append((f"{step:,}", phrases("steps")))
        pairs.append((f"{step / model.record['steps_per_epoch']:.3g}", phrases("epochs")))
    if (value := median(rows, "perf/images_per_s")) is not None:
        pairs.append((f"{value:,.0f}", phrases("speed")))
    if (value := median(rows, "perf/data_wait_frac")) is not None:
        pairs.append((f"{value:.0%}", phrases("wait")))
    if model.record and "devices" in model.record:
        pairs.append((devices(model.record), phrases("device")))
    return pairs


def dataset(model):
    """Return the name of a run's dataset, or None."""
    if model.config is None:
        return None
    c = model.config.data
    return c.dataset or (Path(c.dir).name if c.dir else c.name)


def final_scores(model):
    """Return (split, key, row) of the test score and of the best val score, where available."""
    metric = model.config.best_metric if model.config else ""
    test = metric.replace("/val/", "/test/")
    tested = rows_with(model.metrics, test)
    validated = rows_with(model.metrics, metric)
    triples = [("test", test, row) for row in tested[-1:]]
    if validated:
        triples.append(("val", metric, max(validated, key=lambda row: row[metric])))
    return triples


def rows_with(rows, key):
    """Return the rows with a value for the key."""
    return [row for row in rows if row.get(key) is not None]


def median(rows, key):
    """Return the median over the rows with a value for the key; None if there are none."""
    values = [row[key] for row in rows_with(rows, key)]
    return float(np.median(values)) if values else None


def devices(record):
    """Return the devices of run.json, such as "8 × TPU v5 lite"."""
    kinds = collections.Counter(record.get("devices", ()))
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items())


def setup(phrases, model):
    """Configuration, with the keys that differ from the defaults first, and environment."""
    defaults = config.defaults()
    defaults.update(objective=config.objective(model.config.objective.name))
    defaults.objective.name = config.defaults().objective.name
    defaults, values = (
        {key: str(x) or '""' for key, x in config.flat(c).items()} for c in (defaults, model.config)
    )
    del values["data.class_names"]  # set for every loaded run, and listed with the dataset
    changed = {key: value for key, value in values.items() if defaults.get(key) != value}
    rows = [[key, defaults.get(key, "—"), value] for key, value in changed.items()]
    head = [phrases("key"), phrases("default"), phrases("here")]
    caption = phrases("diff", count=len(rows))
    changes = table("config-changes", head, rows, caption, classes="code")
    head = [phrases("key"), phrases("value")]
    summary = phrases("full", count=len(values))
    everything = table("config", head, list(values.items()), fold=summary, classes="code")
    return section("setup", changes, everything, environment(phrases, model.record))


def environment(phrases, record):
    """Table of the environment of the run, without entries that its run.json lacks.

    Args:
      phrases: `words.Phrases`.
      record: contents of run.json.
    """
    code = phrases("unknown")
    if git := record.get("code"):
        code = phrases("changed", **git) if git["changed"] else git["revision"]
    dataset = record["data"]
    names = dataset["class_names"]
    shown = ", ".join(names[:MAX_CLASS_NAMES]) + (", …" if len(names) > MAX_CLASS_NAMES else "")
    versions = record.get("versions", {})
    mesh = record.get("mesh") or {}
    rows = {
        "command": " ".join(record.get("command", ())),
        "code": code,
        "python": record.get("python"),
        "versions": ", ".join(f"{name} {x}" for name, x in versions.items()),
        "device": ": ".join(filter(None, (record.get("platform"), devices(record)))),
        "processes": record.get("processes"),
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.items()),
        "classes": f"{dataset['num_classes']:,}: {shown}",
        "train_images": f"{dataset['train_images']:,}" if "train_images" in dataset else "",
    }
    rows = [[phrases(name), value] for name, value in rows.items() if value]
    return table("environment", [phrases("what"), phrases("value")], rows, phrases("environment"))


def training(phrases, model):
    """Training curves that mark where training resumed, and a table of the starts of the run."""
    rows = model.metrics
    starts = model.record.get("starts", [])
    resumed = sorted({start["step"] for start in starts} - {0})
    try:
        plot = figure(phrases, "curves", partial(curves.curves, rows, restarts=resumed), None)
    except ValueError:  # nothing to draw
        return section("course", text(phrases("no_rows")))
    losses = [row["train/loss"] for row in rows_with(rows, "train/loss")]
    caption = phrases("no_loss", last=rows[-1]["step"])
    if losses:
        caption = phrases("curves", last=rows[-1]["step"], first=losses[0], final=losses[-1])
    for split, key, row in reversed(final_scores(model)):
        values = dict(score=row[key], metric=key.partition("/")[2], step=row["step"])
        caption += phrases("val_score" if split == "val" else "test_score", **values)
    plot["caption"] = caption
    steps = ", ".join(f"{step:,}" for step in resumed)
    caption = phrases("started", count=len(starts), steps=steps) if resumed else phrases("once")
    head = [phrases("time"), phrases("from")]
    rows = [[start["time"], f"{start['step']:,}"] for start in starts]
    return section("course", plot, table("starts", head, rows, caption))


def diagnostics(phrases, model):
    """Curves of the objective's diagnostic metrics (`health`); None if none were logged."""
    labels = make_objective(model).health
    logged = {name: rows_with(model.metrics, f"train/{name}") for name in labels}
    latest = {name: rows[-1][f"train/{name}"] for name, rows in logged.items() if rows}
    if not latest:
        return None

    def label(name, phrases):
        return phrases(f"health_{name}") if f"health_{name}" in phrases else labels[name]

    def draw(phrases):
        return curves.metrics(model.metrics, {f"train/{x}": label(x, phrases) for x in latest})

    def values(lang):
        phrases = Catalog("figures", lang)
        return "; ".join(f"{label(name, phrases)}: {x:.3g}" for name, x in latest.items())

    caption = phrases("healthy", step=model.metrics[-1]["step"], values=values)
    if (advice := f"healthy_{model.config.objective.name}") in phrases:
        caption += phrases(advice)
    return section("health", figure(phrases, "health-curves", draw, caption))


def input_batch(phrases, model):
    """Images of the first training batch."""
    try:
        groups, labels = first_batch(model)
    except UserError as error:
        return section("input", text(phrases("left_out", why=str(error))))
    names, settings = model.class_names, model.config.data
    values = np.concatenate([group.ravel() for group in groups.values()])
    caption = phrases("batch", count=len(labels), mean=values.mean(), std=values.std())
    rows = [[] for _ in labels]
    for group, images in groups.items():
        for row, views, label in zip(rows, images, labels, strict=True):
            for i, view in enumerate(views):
                name = f"{group} {i + 1}"
                source = inline.data_url(denormalize(view, settings.mean, settings.std))
                row.append((source, name if row else names[label], f"{name}: {names[label]}"))
    if len(rows[0]) > 1:
        caption += phrases("views")
    else:
        rows = [[row[0] for row in rows]]
    return section("input", image_rows("batch", rows, caption))


def first_batch(model):
    """Return images of the first training batch as the model receives them.

    Mixup and CutMix draw partners only from these images.

    Returns:
      {name of a group of views: normalized float32 [n, v, h, w, c]}, and labels [n].

    Raises:
      UserError: if the dataset is missing.
    """
    c = model.config
    source = data.make(c, c.data.train)
    size = min(MAX_IMAGES, len(source), c.batch_size)
    options = dict(seed=c.seed, batch_size=size, repeats=c.augment.repeats, threads=1)
    batches = batch.train_batches(source, augment.transforms(c)[0], **options)
    try:
        rows = {name: jnp.asarray(x) for name, x in next(batches).items()}
    finally:
        batches.close()
    rows["row"] = jnp.arange(size)
    _, rng = jax.random.split(jax.random.key(c.seed))
    rng = jax.random.fold_in(rng, 0)
    make_views = make_objective(model).views
    shapes = jax.eval_shape(make_views, rows, rng).values()
    keep = size if sum(x.shape[1] for x in shapes) == 1 else MAX_VIEW_ROWS
    rows = {name: x[:keep] for name, x in rows.items()}
    groups = jax.jit(make_views)(rows, rng)
    return {name: np.asarray(x) for name, x in groups.items()}, np.asarray(rows["label"])


def denormalize(images, mean, std):
    """Undo the normalization of images; returns floats in [0, 1]."""
    return np.clip(images * np.asarray(std, np.float32) + np.asarray(mean, np.float32), 0, 1)
