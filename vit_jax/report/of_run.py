"""Sections about a run: what ran, how training went, what the model was given."""

import numpy as np
from markupsafe import Markup

from vit_jax.config import defaults, flat, objective
from vit_jax.errors import UserError
from vit_jax.figures.sizes import count
from vit_jax.report import drawn, inline, subject
from vit_jax.report.page import figure, pictures, section, table, text

FIRST, TALL = 24, 6  # images of the first batch; of DINO's, which has a row of views for each


def facts(say, model):
    """The numbers at the head of the page: (text, what it is)."""
    found, rows, run = [], model.rows, model.run
    metric = model.config.best_metric if model.config else ""
    test = metric.replace("/val/", "/test/")
    name = metric.rpartition("/")[2]
    if (row := last(rows, test)) is not None:
        found.append((f"{row[test]:.2%}", say("test", metric=name)))
    if (row := best(rows, metric)) is not None:
        found.append((f"{row[metric]:.2%}", say("val", metric=name)))
    total, flops = model.sizes
    found += [(count(total), say("parameters")), (count(flops), say("flops"))]
    if rows:
        step = rows[-1]["step"]
        found.append((f"{step:,}", say("steps")))
        if run.get("steps_per_epoch"):
            found.append((f"{step / run['steps_per_epoch']:.3g}", say("epochs")))
    for key, phrase, form in (
        ("perf/images_per_s", "speed", ",.0f"),
        ("perf/data_wait_frac", "wait", ".0%"),
    ):
        if (value := median(rows, key)) is not None:
            found.append((format(value, form), say(phrase)))
    if run.get("devices"):
        found.append((devices(run), say("device")))
    return found


def last(rows, key):
    """The last row that has this key, or None."""
    return next((row for row in reversed(rows) if row.get(key) is not None), None)


def best(rows, key):
    """The row in which it is largest, or None."""
    return max((r for r in rows if r.get(key) is not None), key=lambda r: r[key], default=None)


def median(rows, key):
    """Of the rows that have this key, or None."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.median(values)) if values else None


def devices(run):
    kinds = dict.fromkeys(run["devices"])
    return ", ".join(f"{run['devices'].count(kind)} × {kind}" for kind in kinds)


def setup(say, model):
    """The config, what differs from the defaults first; the environment."""
    values = flat(model.config)
    blocks = []
    try:
        usual = flat(_defaults(model.config))
    except UserError:
        blocks.append(text(say("no_defaults")))
    else:
        rows = [
            [key, _short(usual.get(key, "—")), _short(value)]
            for key, value in values.items()
            if usual.get(key, "—") != value
        ]
        head = [say("key"), say("default"), say("here")]
        words = say("diff", count=len(rows))
        blocks.append(table("config-changes", head, rows, words, classes="code"))
    rows = [[key, _short(value)] for key, value in values.items()]
    head, fold = [say("key"), say("value")], say("full", count=len(rows))
    blocks.append(table("config", head, rows, fold=fold, classes="code"))
    head, rows = [say("what"), say("value")], environment(say, model.run)
    blocks.append(table("environment", head, rows, say("environment")))
    return section("setup", *blocks)


def _defaults(config):
    """Those of vit_jax.config, with the keys of this objective."""
    found = defaults()
    usual = found.objective.name
    found.objective = objective(config.objective.name)
    found.objective.name = usual
    return found


def _short(value):
    return '""' if value == "" else str(value)


def environment(say, run):
    """Rows for people from run.json; what it does not say is left out."""
    code = run.get("code")
    if code:
        code = say("changed", **code) if code.get("changed") else code["revision"]
    versions = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    mesh = ", ".join(f"{axis} {size}" for axis, size in (run.get("mesh") or {}).items())
    facts, names = run.get("data", {}), run.get("data", {}).get("class_names", [])
    classes = f"{facts.get('num_classes', 0):,}: {', '.join(names[:20])}"
    rows = [
        ("command", " ".join(run.get("command", []))),
        ("code", code or say("unknown")),
        ("python", run.get("python")),
        ("versions", versions),
        ("device", f"{run.get('platform')}: {devices(run)}" if run.get("devices") else None),
        ("processes", run.get("processes")),
        ("mesh", mesh),
        ("classes", classes + (", …" if len(names) > 20 else "")),
        ("train_images", f"{facts['train_images']:,}" if "train_images" in facts else None),
    ]
    return [[say(phrase), value] for phrase, value in rows if value]


def course(say, model):
    """Curves, with every start of the run marked, and the starts."""
    rows, starts = model.rows, model.run.get("starts", [])
    curves = drawn.course(rows, starts)
    if curves is None:
        return section("course", text(say("no_rows")))
    losses = [row for row in rows if row.get("train/loss") is not None]
    words = say("no_loss", last=rows[-1]["step"])
    if losses:
        first, final = (row["train/loss"] for row in (losses[0], losses[-1]))
        words = say("curves", last=rows[-1]["step"], first=first, final=final)
    metric = model.config.best_metric
    test = metric.replace("/val/", "/test/")
    if (row := best(rows, metric)) is not None:
        words += say("best", best=row[metric], metric=metric.split("/", 1)[-1], step=row["step"])
    if (row := last(rows, test)) is not None:
        words += say("tested", score=row[test])
    again = ", ".join(f"{step:,}" for step in drawn.restarts(starts))
    said = say("started", count=len(starts), steps=again) if again else say("once")
    listed = [[start.get("time", ""), f"{start.get('step', 0):,}"] for start in starts]
    head = [say("time"), say("from")]
    return section("course", figure("curves", curves, words), table("starts", head, listed, said))


def health(say, model):
    """How self-distillation does; None for other objectives."""
    rows = [row for row in model.rows if row.get("train/teacher_entropy") is not None]
    if not rows:
        return None
    row = rows[-1]
    keys = dict(entropy="teacher_entropy", mean="mean_entropy", kl="kl", center="center_norm")
    values = {name: row[f"train/{key}"] for name, key in keys.items()}
    words = say("healthy", step=row["step"], spread=row["train/feature_std"], **values)
    return section("health", figure("health-curves", drawn.health(model.rows), words))


def given(say, model):
    """A batch as the model sees it."""
    config = model.config
    multi = config.augment.crop == "multi"
    try:
        groups, labels = subject.first_batch(config, TALL if multi else FIRST)
    except UserError as error:
        return section("input", text(say("no_data", why=str(error))))
    everything = np.concatenate([group.ravel() for group in groups.values()])
    words = say("batch", count=len(labels), mean=everything.mean(), std=everything.std())
    seen = {
        name: subject.visible(group, config.data.mean, config.data.std)
        for name, group in groups.items()
    }
    names = model.class_names
    rows = []
    for i, label in enumerate(np.asarray(labels)):
        row = [
            (inline.picture(view), "", f"{name} {j + 1}: {names[label]}")
            for name, group in seen.items()
            for j, view in enumerate(group[i])
        ]
        rows.append([(src, names[label], alt) for src, _, alt in row[:1]] + row[1:])
    if multi:
        count = sum(group.shape[1] for group in seen.values())
        words += say("views", count=count, teacher=groups["global"].shape[1])
    else:
        rows = [[row[0] for row in rows]]
    return section("input", pictures("batch", rows, Markup(words)))
