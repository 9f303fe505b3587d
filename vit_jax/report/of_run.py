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


def facts(say, model):
    """The numbers at the head of the page: (text, what it is)."""
    found, rows = [], model.metrics
    for split, key, row in scores(model):
        found.append((f"{row[key]:.2%}", say(split, metric=key.rpartition("/")[2])))
    found += [(count(model.parameters), say("parameters")), (count(model.flops), say("flops"))]
    if rows:
        step = rows[-1]["step"]
        found.append((f"{step:,}", say("steps")))
        found.append((f"{step / model.record['steps_per_epoch']:.3g}", say("epochs")))
    if (value := median(rows, "perf/images_per_s")) is not None:
        found.append((f"{value:,.0f}", say("speed")))
    if (value := median(rows, "perf/data_wait_frac")) is not None:
        found.append((f"{value:.0%}", say("wait")))
    if model.record:
        found.append((devices(model.record), say("device")))
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


def setup(say, model):
    """The config, what differs from the defaults first; the environment."""
    usual = config.defaults()
    usual.update(objective=config.objective(model.config.objective.name))
    usual.objective.name = config.defaults().objective.name
    usual, values = (
        {key: str(x) or '""' for key, x in config.flat(c).items()} for c in (usual, model.config)
    )
    changed = {key: value for key, value in values.items() if usual.get(key) != value}
    rows = [[key, usual.get(key, "—"), value] for key, value in changed.items()]
    head, words = [say("key"), say("default"), say("here")], say("diff", count=len(rows))
    changes = table("config-changes", head, rows, words, classes="code")
    head, words = [say("key"), say("value")], say("full", count=len(values))
    everything = table("config", head, list(values.items()), fold=words, classes="code")
    return section("setup", changes, everything, environment(say, model.record))


def environment(say, record):
    """A table from run.json."""
    code, split = say("unknown"), record["data"]
    if found := record["code"]:
        code = say("changed", **found) if found["changed"] else found["revision"]
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
    rows = [[say(name), value] for name, value in rows.items()]
    return table("environment", [say("what"), say("value")], rows, say("environment"))


def course(say, model):
    """Curves, with the steps from which the run was resumed, and its starts."""
    rows, starts = model.metrics, model.record["starts"]
    resumed = sorted({start["step"] for start in starts} - {0})
    try:
        drawn = figure(say, "curves", partial(curves.curves, rows, restarts=resumed), None)
    except ValueError:  # there is nothing to draw
        return section("course", text(say("no_rows")))
    losses = [row["train/loss"] for row in having(rows, "train/loss")]
    caption = say("no_loss", last=rows[-1]["step"])
    if losses:
        caption = say("curves", last=rows[-1]["step"], first=losses[0], final=losses[-1])
    for split, key, row in reversed(scores(model)):
        values = dict(score=row[key], metric=key.partition("/")[2], step=row["step"])
        caption += say("val_score" if split == "val" else "test_score", **values)
    steps = ", ".join(f"{step:,}" for step in resumed)
    said = say("started", count=len(starts), steps=steps) if resumed else say("once")
    listed = [[start["time"], f"{start['step']:,}"] for start in starts]
    drawn["caption"] = caption
    return section("course", drawn, table("starts", [say("time"), say("from")], listed, said))


def health(say, model):
    """The metrics that the objective names for it; None without."""
    labels = objective_of(model).health
    found = {name: having(model.metrics, f"train/{name}") for name in labels}
    found = {name: rows[-1][f"train/{name}"] for name, rows in found.items() if rows}
    if not found:
        return None

    def label(name, say):
        return say(f"health_{name}") if f"health_{name}" in say else labels[name]

    def draw(say):
        return curves.metrics(model.metrics, {f"train/{x}": label(x, say) for x in found})

    def values(lang):
        say = Catalog("figures", lang)
        return "; ".join(f"{label(name, say)}: {x:.3g}" for name, x in found.items())

    caption = say("healthy", step=model.metrics[-1]["step"], values=values)
    if (advice := f"healthy_{model.config.objective.name}") in say:
        caption += say(advice)
    return section("health", figure(say, "health-curves", draw, caption))


def given(say, model):
    """A batch as the model sees it."""
    try:
        groups, labels = first_batch(model)
    except UserError as error:
        return section("input", text(say("left_out", why=str(error))))
    names, settings = model.class_names, model.config.data
    values = np.concatenate([group.ravel() for group in groups.values()])
    caption = say("batch", count=len(labels), mean=values.mean(), std=values.std())
    rows = [[] for _ in labels]
    for group, images in groups.items():
        for row, views, label in zip(rows, images, labels, strict=True):
            for i, view in enumerate(views):
                name = f"{group} {i + 1}"
                source = inline.picture(visible(view, settings.mean, settings.std))
                row.append((source, name if row else names[label], f"{name}: {names[label]}"))
    if len(rows[0]) > 1:
        caption += say("views")
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
    batches = batch.train_batches(source, augment.views(c)[0], **options)
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
