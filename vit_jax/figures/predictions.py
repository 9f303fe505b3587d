"""Images with their most probable classes beside them, and the training curves below."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.figures import curves
from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.style import GREEN, ORANGE, finish, picture, plain, short

RIGHT, WRONG, OTHER = GREEN, ORANGE, "#9AA5B1"  # right and wrong are also written
COLUMNS = 3  # images in a row, at most
MAX_LETTERS = 22  # of a name


def predictions(images, tops, *, titles=None, labels=None, rows=(), phrases=ENGLISH):
    """Draw images with their most probable classes as bars.

    Args:
      images: uint8 [h, w, 1 or 3] each.
      tops: for each image [(class name, probability), ...], the most probable first.
      titles: text above each image.
      labels: name of the true class of each image, or None.
      rows: of metrics.jsonl, as `workdir.log.read_metrics` returns them; their curves are drawn
        below.
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.
    """
    titles = titles or [""] * len(images)
    labels = labels or [None] * len(images)
    columns = min(COLUMNS, len(images))
    lines = math.ceil(len(images) / columns)
    height = max(2.1, 0.75 + 0.24 * max(len(top) for top in tops))  # inches of a line
    heights = [height * lines]
    if any("train/loss" in row for row in rows):
        heights.append(curves.height(rows))
    width = max(4.6 * columns, curves.WIDTH if len(heights) > 1 else 0)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = parts[0].subplots(lines, 2 * columns, width_ratios=[1, 1.3] * columns, squeeze=False)
    pairs = axes.reshape(-1, 2)
    for pair, image, title, label, top in zip(pairs, images, titles, labels, tops, strict=False):
        _draw_image(pair[0], image, title, label, top, phrases)
        _draw_bars(pair[1], top, label)
    for axis in pairs[len(images) :].flat:
        axis.set_axis_off()
    for part in parts[1:]:
        curves.draw(part, rows, phrases=phrases)
    return finish(figure)


def _draw_image(axis, image, title, label, top, phrases):
    picture(axis, image, interpolation=None)
    axis.set_title(short(title, MAX_LETTERS), fontsize=9)
    if label is None:
        axis.spines[:].set(linewidth=0.8, color="black")
        return
    right, name = top[0][0] == label, _short(label)
    color = RIGHT if right else WRONG
    text = f"✓ {name}" if right else f"✗ {phrases('is', name=name)}"
    axis.set_xlabel(text, color=color, fontsize=10, fontweight="bold")
    axis.spines[:].set(color=color, linewidth=2, linestyle="-" if right else "--")


def _draw_bars(axis, top, label):
    """Bars from the top down; the true class is hatched, the others are plain."""
    for y, (name, probability) in enumerate(top):
        true = name == label
        color = RIGHT if true else WRONG if y == 0 and label is not None else OTHER
        axis.barh(y, probability, 0.62, color=color, hatch="///" if true else None, edgecolor="w")
        style = dict(va="center", fontsize=8, color="0.25")
        axis.text(probability + 0.02, y, f"{probability:.1%}", **style)
    axis.set_yticks(range(len(top)), [_short(name) for name, _ in top], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.22)  # room for the number behind a full bar
    axis.set_xticks([0, 0.5, 1])
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.tick_params(axis="x", labelsize=7, colors="0.4")
    axis.tick_params(axis="y", length=0)
    plain(axis, grid=False)
    axis.spines["left"].set_visible(False)


def _short(name):
    return short(name, MAX_LETTERS, keep_end=False)
