"""Images with their most probable classes, optionally above the training curves."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.figures import curves
from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.style import GREEN, ORANGE, despine, finish, show_image, truncate

# Color is not the only cue: labels carry ✓ or ✗, and the bar of the true class is hatched.
CORRECT = GREEN
WRONG = ORANGE
OTHER = "#9AA5B1"
MAX_COLUMNS = 3  # images per row
MAX_CHARS = 22  # of a title or class name


def predictions(images, tops, *, titles=None, labels=None, rows=(), phrases=ENGLISH):
    """Draw images with their most probable classes as bars.

    Args:
      images: sequence of uint8 [h, w, 1 or 3].
      tops: for each image [(class name, probability), ...], by descending probability.
      titles: text above each image.
      labels: name of the true class for each image; None for an image without a label.
      rows: rows of metrics.jsonl as returned by `workdir.log.read_metrics`; their curves are drawn
        below the images.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    titles = titles or [""] * len(images)
    labels = labels or [None] * len(images)
    columns = min(MAX_COLUMNS, len(images))
    num_rows = math.ceil(len(images) / columns)
    row_height = max(2.1, 0.75 + 0.24 * max(len(top) for top in tops))  # inches
    heights = [row_height * num_rows]
    if any("train/loss" in row for row in rows):
        heights.append(curves.height(rows))
    width = max(4.6 * columns, curves.WIDTH if len(heights) > 1 else 0)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = parts[0].subplots(num_rows, 2 * columns, width_ratios=[1, 1.3] * columns, squeeze=False)
    pairs = axes.reshape(-1, 2)
    for pair, image, title, label, top in zip(pairs, images, titles, labels, tops, strict=False):
        _draw_image(pair[0], image, title, label, top, phrases)
        _draw_bars(pair[1], top, label)
    for ax in pairs[len(images) :].flat:
        ax.set_axis_off()
    for part in parts[1:]:
        curves.draw(part, rows, phrases=phrases)
    return finish(figure)


def _draw_image(ax, image, title, label, top, phrases):
    """Draw an image; the text below it and the frame show whether the prediction is correct."""
    show_image(ax, image, interpolation=None)
    ax.set_title(truncate(title, MAX_CHARS), fontsize=9)
    if label is None:
        ax.spines[:].set(linewidth=0.8, color="black")
        return
    correct = top[0][0] == label
    name = _truncate_name(label)
    color = CORRECT if correct else WRONG
    text = f"✓ {name}" if correct else f"✗ {phrases('is', name=name)}"
    ax.set_xlabel(text, color=color, fontsize=10, fontweight="bold")
    ax.spines[:].set(color=color, linewidth=2, linestyle="-" if correct else "--")


def _draw_bars(ax, top, label):
    """Draw the probabilities as horizontal bars, the most probable class at the top."""
    for y, (name, probability) in enumerate(top):
        is_true = name == label
        color = CORRECT if is_true else WRONG if y == 0 and label is not None else OTHER
        hatch = "///" if is_true else None
        ax.barh(y, probability, 0.62, color=color, hatch=hatch, edgecolor="w")
        font = dict(va="center", fontsize=8, color="0.25")
        ax.text(probability + 0.02, y, f"{probability:.1%}", **font)
    ax.set_yticks(range(len(top)), [_truncate_name(name) for name, _ in top], fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.22)  # room for the number to the right of a full bar
    ax.set_xticks([0, 0.5, 1])
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.tick_params(axis="x", labelsize=7, colors="0.4")
    ax.tick_params(axis="y", length=0)
    despine(ax, grid=False)
    ax.spines["left"].set_visible(False)


def _truncate_name(name):
    return truncate(name, MAX_CHARS, keep_end=False)
