"""Sections about a run: what ran, how training went, what the model was given."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment, batch, config, data, objectives
from vit_jax.errors import UserError
from vit_jax.figures import curves
from vit_jax.figures.catalog import Catalog
from vit_jax.figures.sizes import count
from vit_jax.report import inline
from vit_jax.report.page import figure, pictures, section, table, text

IMAGES, ROWS = 24, 6  # of the first batch: with one view per image, with a row of views for each
MAX_CLASSES = 20  # whose names are listed


def objective_of(model):
    """The `Objective` of a run."""
    return objectives.make(model.model, model.config, model.record["steps_per_epoch"])


def facts(phrases, model):
    """The numbers at the head of the page: (text, what it is)."""
    found, rows = [], model.metrics
    for split, key, row in scores(model):
        found.append((f"{row[key]:.2%}", phrases(split, metric=key.rpartition("/")[2])))
    found += [
        (count(model.parameters), phrases("parameters")),
        (count(model.flops), phrases("flops")),
    ]
    if rows:
        step = rows[-1]["step"]
        found.append((f"{step:,}", phrases("steps")))
        found.append((f"{step / model.record['steps_per_epoch']:.3g}", phrases("epochs")))
    if (value := median(rows, "perf/images_per_s")) is not None:
        found.append((f"{value:,.0f}", phrases("speed")))
    if (value := median(rows, "perf/data_wait_frac")) is not None:
        found.append((f"{value:.0%}", phrases("wait")))
    if model.record:
        found.append((devices(model.record), phrases("device")))
    return found


def scores(model):
    """(split, key, row) of the test score and of the best one on val, as far as they are there."""
    metric = model.config.best_metric if model.config else ""
    test = metric.replace("/val/", "/test/")
    tested, validated = having(model.metrics, test), having(model.metrics, metric)
    found = [("test", test, row) for row in tested[-1:]]
    if validated:
        found.append(("val", metric, max(validated, key=lambda row: row[metric])))
    return found


def having(rows, key):
    """The rows that have a value for this key."""
    return [row for row in rows if row.get(key) is not None]


def median(rows, key):
    """Of the rows that have this key, or None."""
    values = [row[key] for row in having(rows, key)]
    return float(np.median(values)) if values else None


def devices(record):
    kinds = dict.fromkeys(record["devices"])
    return ", ".join(f"{record['devices'].count(kind)} × {kind}" for kind in kinds)


def setup(phrases, model):
    """The config, what differs from the defaults first; the environment."""
    usual = config.defaults()
    usual.update(objective=config.objective(model.config.objective.name))
    usual.objective.name = config.defaults().objective.name
    usual, values = (
        {key: str(x) or '""' for key, x in config.flat(c).items()} for c in (usual, model.config)
    )
    changed = {key: value for key, value in values.items() if usual.get(key) != value}
    rows = [[key, usual.get(key, "—"), value] for key, value in changed.items()]
    head, words = (
        [phrases("key"), phrases("default"), phrases("here")],
        phrases("diff", count=len(rows)),
    )
    changes = table("config-changes", head, rows, words, classes="code")
    head, words = [phrases("key"), phrases("value")], phrases("full", count=len(values))
    everything = table("config", head, list(values.items()), fold=words, classes="code")
    return section("setup", changes, everything, environment(phrases, model.record))


def environment(phrases, record):
    """A table from run.json."""
    code, split = phrases("unknown"), record["data"]
    if found := record["code"]:
        code = phrases("changed", **found) if found["changed"] else found["revision"]
    names = split["class_names"]
    shown = ", ".join(names[:MAX_CLASSES]) + (", …" if len(names) > MAX_CLASSES else "")
    rows = {
        "command": " ".join(record["command"]),
        "code": code,
        "python": record["python"],
        "versions": ", ".join(f"{name} {x}" for name, x in record["versions"].items()),
        "device": f"{record['platform']}: {devices(record)}",
        "processes": record["processes"],
        "mesh": ", ".join(f"{axis} {size}" for axis, size in record["mesh"].items()),
        "classes": f"{split['num_classes']:,}: {shown}",
        "train_images": f"{split['train_images']:,}",
    }
    rows = [[phrases(name), value] for name, value in rows.items()]
    return table("environment", [phrases("what"), phrases("value")], rows, phrases("environment"))


def course(phrases, model):
    """Curves, with the steps from which the run was resumed, and its starts."""
    rows, starts = model.metrics, model.record["starts"]
    resumed = sorted({start["step"] for start in starts} - {0})
    try:
        drawn = figure(phrases, "curves", partial(curves.curves, rows, restarts=resumed), None)
    except ValueError:  # there is nothing to draw
        return section("course", text(phrases("no_rows")))
    losses = [row["train/loss"] for row in having(rows, "train/loss")]
    caption = phrases("no_loss", last=rows[-1]["step"])
    if losses:
        caption = phrases("curves", last=rows[-1]["step"], first=losses[0], final=losses[-1])
    for split, key, row in reversed(scores(model)):
        values = dict(score=row[key], metric=key.partition("/")[2], step=row["step"])
        caption += phrases("val_score" if split == "val" else "test_score", **values)
    steps = ", ".join(f"{step:,}" for step in resumed)
    said = phrases("started", count=len(starts), steps=steps) if resumed else phrases("once")
    listed = [[start["time"], f"{start['step']:,}"] for start in starts]
    drawn["caption"] = caption
    return section(
        "course", drawn, table("starts", [phrases("time"), phrases("from")], listed, said)
    )


def health(phrases, model):
    """The metrics that the objective names for it; None without."""
    labels = objective_of(model).health
    found = {name: having(model.metrics, f"train/{name}") for name in labels}
    found = {name: rows[-1][f"train/{name}"] for name, rows in found.items() if rows}
    if not found:
        return None

    def label(name, phrases):
        return phrases(f"health_{name}") if f"health_{name}" in phrases else labels[name]

    def draw(phrases):
        return curves.metrics(model.metrics, {f"train/{x}": label(x, phrases) for x in found})

    def values(lang):
        phrases = Catalog("figures", lang)
        return "; ".join(f"{label(name, phrases)}: {x:.3g}" for name, x in found.items())

    caption = phrases("healthy", step=model.metrics[-1]["step"], values=values)
    if (advice := f"healthy_{model.config.objective.name}") in phrases:
        caption += phrases(advice)
    return section("health", figure(phrases, "health-curves", draw, caption))


def given(phrases, model):
    """A batch as the model sees it."""
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
                source = inline.picture(visible(view, settings.mean, settings.std))
                row.append((source, name if row else names[label], f"{name}: {names[label]}"))
    if len(rows[0]) > 1:
        caption += phrases("views")
    else:
        rows = [[row[0] for row in rows]]
    return section("input", pictures("batch", rows, caption))


def first_batch(model):
    """Images of the first batch of training as the model is given them.

    Mixing takes its partners from these images alone.

    Returns:
      {name of a group of views: normalized float32 [n, v, h, w, c]}, and labels [n].

    Raises:
      UserError: if the data are missing.
    """
    c = model.config
    source = data.make(c, c.data.train)
    size = min(IMAGES, len(source), c.batch_size)
    options = dict(seed=c.seed, batch_size=size, repeats=c.augment.repeats, threads=1)
    batches = batch.train_batches(source, augment.transforms(c)[0], **options)
    try:
        rows = {name: jnp.asarray(x) for name, x in next(batches).items()}
    finally:
        batches.close()
    rows["row"] = jnp.arange(size)
    _, rng = jax.random.split(jax.random.key(c.seed))
    make_views, rng = objective_of(model).views, jax.random.fold_in(rng, 0)
    shapes = jax.eval_shape(make_views, rows, rng).values()
    keep = size if sum(x.shape[1] for x in shapes) == 1 else ROWS
    rows = {name: x[:keep] for name, x in rows.items()}
    groups = jax.jit(make_views)(rows, rng)
    return {name: np.asarray(x) for name, x in groups.items()}, np.asarray(rows["label"])


def visible(images, mean, std):
    """Normalized images -> floats in [0, 1]."""
    return np.clip(images * np.asarray(std, np.float32) + np.asarray(mean, np.float32), 0, 1)
