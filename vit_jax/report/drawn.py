"""Figures of a run that belong to its report alone: curves with its starts, health, confusion."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vit_jax.figures.curves import BLUE, ORANGE, curves

# Rows of a DINO run: what they are, and where a collapse would take them.
HEALTH = {
    "train/teacher_entropy": "teacher's entropy, share of log k",
    "train/mean_entropy": "entropy of the mean, share of log k",
    "train/kl": "KL(teacher, student), nats",
    "train/center_norm": "norm of the center",
    "train/feature_std": "spread of features",
    "eval/val/knn20": "k-NN accuracy on val",
}


def course(rows, starts):
    """-> matplotlib Figure: the curves of the rows, a dotted line where the run was started again.

    starts: run.json's, dicts with "step". None where the rows hold nothing to draw.
    """
    try:
        figure = curves(rows)
    except ValueError:
        return None
    again = restarts(starts)
    for axis in figure.axes:
        for step in again:
            axis.axvline(step, color="0.35", linestyle=":", linewidth=1.2)
    for step in again:
        place = dict(xycoords=("data", "axes fraction"), textcoords="offset points")
        figure.axes[0].annotate("started again", (step, 1), **place, xytext=(3, -9), fontsize=8)
    return figure


def restarts(starts):
    """The steps that a run went on from, each once, in order."""
    return sorted({start["step"] for start in starts if start.get("step")})


def health(rows):
    """-> matplotlib Figure: a panel for each number of HEALTH that the rows hold; None without."""
    lines = {}
    for key in HEALTH:
        pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if pairs:
            lines[key] = np.array(sorted(pairs), float).T
    if not lines:
        return None
    down = math.ceil(len(lines) / 3)
    figure = Figure(figsize=(9, 2.2 * down), layout="constrained")
    axes = figure.subplots(down, 3, squeeze=False).ravel()
    for axis in axes[len(lines) :]:
        axis.set_axis_off()
    for axis, (key, (steps, values)) in zip(axes, lines.items(), strict=False):
        few = dict(marker="o", markersize=3.5) if len(steps) < 40 else {}
        axis.plot(steps, values, color=ORANGE if "knn" in key else BLUE, linewidth=1.4, **few)
        axis.set_title(HEALTH[key], fontsize=9)
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        if key != "train/center_norm" and key != "train/kl":  # shares
            axis.set_ylim(0, max(1.05, 1.05 * values.max()))
    return figure


def confusion(matrix):
    """-> matplotlib Figure: a confusion matrix [true, said] of too many classes for a table; each
    row is a share of its class."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(5.6, 5), layout="constrained")
    axis = figure.subplots()
    drawn = axis.imshow(np.sqrt(shares), cmap="viridis", vmin=0, vmax=1, interpolation="none")
    axis.set_xlabel("class that the model says")
    axis.set_ylabel("true class")
    bar = figure.colorbar(drawn, shrink=0.8, label="share of the true class")
    ticks = np.array([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_ticks(np.sqrt(ticks), labels=[f"{tick:.0%}" for tick in ticks])
    return figure
