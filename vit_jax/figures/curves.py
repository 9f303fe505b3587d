"""Training curves: loss, accuracy, learning rate and other metrics against the training step."""

import itertools
import math
import re

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.style import BLUE, GREEN, ORANGE, PURPLE, despine, finish, integer_ticks

STYLES = ((ORANGE, "o"), (GREEN, "s"), (PURPLE, "D"), ("#E69F00", "^"))  # color, marker
MIN_SMOOTHED = 20  # shorter curves are not smoothed
WIDTH = 8  # of `curves`, inches
COLUMNS = 3  # panels per row of `metrics`


def curves(rows, title="", *, restarts=(), phrases=ENGLISH):
    """Draw one panel each for loss, accuracy and learning rate, if the rows contain them.

    Args:
      rows: dicts as returned by `workdir.log.read_metrics`, with "step", "train/loss",
        "train/acc1", "eval/SPLIT/...acc1" or "eval/SPLIT/knn20" (accuracies as fractions) and
        "sched/lr". Values may be None or missing.
      title: title of the figure.
      restarts: steps at which the run was resumed, drawn as dotted lines.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.

    Raises:
      ValueError: if the rows contain nothing to draw.
    """
    if not _panels(rows):
        raise ValueError("the metrics contain no loss, accuracy or learning rate to draw")
    figure = Figure(figsize=(WIDTH, height(rows)), layout="constrained")
    draw(figure, rows, restarts, phrases)
    return finish(figure, title)


def height(rows):
    """Return the height of `curves`, in inches."""
    return 0.6 + 2.4 * len(_panels(rows))


def draw(figure, rows, restarts=(), phrases=ENGLISH):
    """Draw `curves` into a figure or subfigure."""
    panels = _panels(rows)
    heights = [1 if panel == "learning_rate" else 2 for panel in panels]
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (panel, keys) in zip(axes, panels.items(), strict=True):
        lines = {key: _series(rows, key) for key in keys}
        styles = itertools.cycle(STYLES)
        for key in keys:
            _draw_line(ax, key, *lines[key], styles, phrases)
        ax.set_ylabel(phrases(panel))
        if panel == "loss":
            _set_limits(ax, np.concatenate([values for _, values in lines.values()]))
        if panel == "accuracy":
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        if panel == "learning_rate":
            ax.set_ylim(bottom=0)
            ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        else:
            ax.legend(frameon=False, fontsize=9)
        despine(ax)
        for step in restarts:
            ax.axvline(step, color="0.35", linestyle=":", linewidth=1.2)
    style = dict(xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8)
    for step in restarts:
        axes[0].annotate(phrases("resumed"), (step, 1), xytext=(3, -9), **style)
    axes[-1].set_xlabel(phrases("optimizer_step"))
    integer_ticks(axes[-1], nbins=8)


def _panels(rows):
    """Return the keys to draw, {panel: keys}, without empty panels."""
    keys = dict.fromkeys(k for row in rows for k, value in row.items() if value is not None)
    patterns = {
        "loss": "train/loss|eval/val/loss",
        "accuracy": "train/acc1|eval/.*(acc|knn).*",
        "learning_rate": "sched/lr",
    }
    panels = {
        panel: sorted((key for key in keys if re.fullmatch(pattern, key)), key=_is_evaluation)
        for panel, pattern in patterns.items()
    }
    return {panel: matches for panel, matches in panels.items() if matches}


def _is_evaluation(key):
    return key.startswith("eval/")


def metrics(rows, labels):
    """Draw one panel per metric.

    Args:
      rows: as for `curves`.
      labels: {metric key: panel title}. Keys without values in `rows` are skipped.

    Returns:
      A matplotlib `Figure`, or None if `rows` has no values for any of the keys.
    """
    lines = {key: _series(rows, key) for key in labels}
    lines = {key: line for key, line in lines.items() if line[0].size}
    if not lines:
        return None
    num_rows = math.ceil(len(lines) / COLUMNS)
    figure = Figure(figsize=(9, 2.2 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, COLUMNS, squeeze=False).ravel()
    for ax in axes[len(lines) :]:
        ax.set_axis_off()
    for ax, (key, (steps, values)) in zip(axes, lines.items(), strict=False):
        size = 3.5 if len(steps) < 40 else 0
        ax.plot(steps, values, color=BLUE, linewidth=1.4, marker="o", markersize=size)
        ax.set_title(labels[key], fontsize=9)
        despine(ax)
        integer_ticks(ax, nbins=4)
        if values.min() >= 0:
            ax.set_ylim(0, 1.05 * values.max() or 1)
    return finish(figure)


def smooth(values, span):
    """Smooth a sequence with a Hann window about `span` values wide.

    The window is centered, so that the smoothed curve does not lag; at both ends it is truncated
    and renormalized.
    """
    window = np.hanning(2 * (int(span) // 2) + 3)[1:-1]
    pad = len(window) // 2
    sums, weights = (np.convolve(v, window) for v in (values, np.ones(len(values))))
    return (sums / weights)[pad : pad + len(values)]


def _draw_line(ax, key, steps, values, styles, phrases):
    """Draw one metric: evaluations with markers, long training curves faint with a smoothed line.

    styles: iterator over `STYLES`.
    """
    if key == "sched/lr":
        ax.plot(steps, values, color=BLUE, linewidth=1.5)
    elif not _is_evaluation(key) and len(values) < MIN_SMOOTHED:
        ax.plot(steps, values, color=BLUE, linewidth=1.5, marker=".", label=phrases("train"))
    elif not _is_evaluation(key):
        ax.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
        ax.plot(steps, smooth(values, len(values) / 12), color=BLUE, label=phrases("smoothed"))
    else:
        split, _, metric = key.removeprefix("eval/").partition("/")
        name = phrases(split) if split in phrases else split
        if metric != "loss":
            name += "" if metric == "acc1" else f"/{metric}"
            name += f" {values[-1]:.2%}"
        color, marker = next(styles)
        line = dict(color=color, marker=marker, markersize=4 if len(steps) < 60 else 0)
        if len(steps) == 1:  # such as the test split, evaluated once at the end of training
            line |= dict(marker="*", markersize=13, markeredgecolor="white", zorder=5, linestyle="")
        ax.plot(steps, values, **line, clip_on=len(steps) > 1, label=name)


def _set_limits(ax, values):
    """Set the y limits without the highest 1% of the values: the initial loss is much higher."""
    low = values.min()
    high = np.quantile(values, 0.99)
    margin = 0.05 * (high - low) or 0.5
    ax.set_ylim(low - margin, high + margin)


def _series(rows, key):
    """Return the steps and the values of a metric as arrays, sorted by step."""
    pairs = sorted((row["step"], row[key]) for row in rows if row.get(key) is not None)
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, float)
