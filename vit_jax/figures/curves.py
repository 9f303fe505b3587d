"""The course of a run: losses, accuracies, learning rate and other metrics against steps."""

import itertools
import math
import re

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.style import BLUE, GREEN, ORANGE, PURPLE, count_along, finish, plain

STYLES = ((ORANGE, "o"), (GREEN, "s"), (PURPLE, "D"), ("#E69F00", "^"))  # color, marker
SMOOTHED = 20  # values from which on a smoothed line is drawn
WIDTH = 8  # inches of `curves`
COLUMNS = 3  # panels of `metrics` beside each other


def curves(rows, title="", *, restarts=(), phrases=ENGLISH):
    """Draw a panel for each of loss, accuracy and learning rate that the rows hold.

    Args:
      rows: dicts as `workdir.log.read_metrics` returns them: "step", "train/loss", "train/acc1",
        accuracies as "eval/SPLIT/...acc1" or "eval/SPLIT/knn20" (fractions), "sched/lr". None and
        missing values are left out.
      title: above the figure.
      restarts: steps from which the run was resumed, marked by dotted lines.
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.

    Raises:
      ValueError: if the rows hold nothing to draw.
    """
    if not _panels(rows):
        raise ValueError("the metrics hold no loss, accuracy or learning rate to draw")
    figure = Figure(figsize=(WIDTH, height(rows)), layout="constrained")
    draw(figure, rows, restarts, phrases)
    return finish(figure, title)


def height(rows):
    """Inches of `curves`."""
    return 0.6 + 2.4 * len(_panels(rows))


def draw(figure, rows, restarts=(), phrases=ENGLISH):
    """Draw `curves` into a figure or a part of one."""
    panels = _panels(rows)
    heights = [1 if panel == "learning_rate" else 2 for panel in panels]
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (panel, keys) in zip(axes, panels.items(), strict=True):
        lines = {key: _line(rows, key) for key in keys}
        styles = itertools.cycle(STYLES)
        for key in keys:
            _draw_line(axis, key, *lines[key], styles, phrases)
        axis.set_ylabel(phrases(panel))
        if panel == "loss":
            _limit(axis, np.concatenate([values for _, values in lines.values()]))
        if panel == "accuracy":
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        if panel == "learning_rate":
            axis.set_ylim(bottom=0)
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        else:
            axis.legend(frameon=False, fontsize=9)
        plain(axis)
        for step in restarts:
            axis.axvline(step, color="0.35", linestyle=":", linewidth=1.2)
    place = dict(xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8)
    for step in restarts:
        axes[0].annotate(phrases("resumed"), (step, 1), xytext=(3, -9), **place)
    axes[-1].set_xlabel(phrases("optimizer_step"))
    count_along(axes[-1], nbins=8)


def _panels(rows):
    """{panel: keys of its lines}, without panels that would be empty."""
    keys = dict.fromkeys(k for row in rows for k, value in row.items() if value is not None)
    kinds = {
        "loss": "train/loss|eval/val/loss",
        "accuracy": "train/acc1|eval/.*(acc|knn).*",
        "learning_rate": "sched/lr",
    }
    panels = {
        panel: sorted((key for key in keys if re.fullmatch(kind, key)), key=_is_evaluated)
        for panel, kind in kinds.items()
    }
    return {panel: found for panel, found in panels.items() if found}


def _is_evaluated(key):
    return key.startswith("eval/")


def metrics(rows, labels):
    """Draw a panel for each metric.

    Args:
      rows: as for `curves`.
      labels: {key of the rows: title of its panel}; keys that no row has are left out.

    Returns:
      matplotlib Figure; None where the rows have none of the keys.
    """
    lines = {key: _line(rows, key) for key in labels}
    lines = {key: line for key, line in lines.items() if line[0].size}
    if not lines:
        return None
    down = math.ceil(len(lines) / COLUMNS)
    figure = Figure(figsize=(9, 2.2 * down), layout="constrained")
    axes = figure.subplots(down, COLUMNS, squeeze=False).ravel()
    for axis in axes[len(lines) :]:
        axis.set_axis_off()
    for axis, (key, (steps, values)) in zip(axes, lines.items(), strict=False):
        size = 3.5 if len(steps) < 40 else 0
        axis.plot(steps, values, color=BLUE, linewidth=1.4, marker="o", markersize=size)
        axis.set_title(labels[key], fontsize=9)
        plain(axis)
        count_along(axis, nbins=4)
        if values.min() >= 0:
            axis.set_ylim(0, 1.05 * values.max() or 1)
    return finish(figure)


def smooth(values, span):
    """Mean around every value of a sequence, weighted by a bell `span` values wide.

    The bell is centered, so that a falling curve does not lag; at the ends it is cut and scaled.
    """
    bell = np.hanning(2 * (int(span) // 2) + 3)[1:-1]
    pad = len(bell) // 2
    sums, weights = (np.convolve(v, bell) for v in (values, np.ones(len(values))))
    return (sums / weights)[pad : pad + len(values)]


def _draw_line(axis, key, steps, values, styles, phrases):
    """What is evaluated with markers; what is measured on single batches pale and smoothed."""
    if key == "sched/lr":
        axis.plot(steps, values, color=BLUE, linewidth=1.5)
    elif not _is_evaluated(key) and len(values) < SMOOTHED:
        axis.plot(steps, values, color=BLUE, linewidth=1.5, marker=".", label=phrases("train"))
    elif not _is_evaluated(key):
        axis.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
        axis.plot(steps, smooth(values, len(values) / 12), color=BLUE, label=phrases("smoothed"))
    else:
        split, _, metric = key.removeprefix("eval/").partition("/")
        name = phrases(split) if split in phrases else split
        if metric != "loss":
            name += "" if metric == "acc1" else f"/{metric}"
            name += f" {values[-1]:.2%}"
        color, marker = next(styles)
        line = dict(color=color, marker=marker, markersize=4 if len(steps) < 60 else 0)
        if len(steps) == 1:  # such as the test split, scored once, at the end
            line |= dict(marker="*", markersize=13, markeredgecolor="white", zorder=5, linestyle="")
        axis.plot(steps, values, **line, clip_on=len(steps) > 1, label=name)


def _limit(axis, values):
    """Limits by all but the highest hundredth: the first steps tower above the rest."""
    low, high = values.min(), np.quantile(values, 0.99)
    margin = 0.05 * (high - low) or 0.5
    axis.set_ylim(low - margin, high + margin)


def _line(rows, key):
    """The steps and the values of a key, arrays in the order of the steps."""
    pairs = sorted((row["step"], row[key]) for row in rows if row.get(key) is not None)
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, float)
