"""Images with their most probable classes beside them, and the training curves below."""

import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.figures.curves import curves
from vit_jax.figures.fonts import fit

# Okabe and Ito's colors, which color-blind people tell apart; right and wrong are also written.
RIGHT, WRONG, OTHER = "#009E73", "#D55E00", "#9AA5B1"
COLUMNS = 3  # most images in a row
LONGEST = 22  # characters of a name


def predictions(images, tops, *, titles=None, labels=None, rows=()):
    """-> matplotlib Figure

    images: uint8 [h, w, 1 or 3] each. tops: for each image [(class name, probability), ...], the
    most probable first. titles: text above each. labels: name of the true class, or None. rows:
    of metrics.jsonl, as `vit_jax.log.read_metrics` gives them; their curves are drawn beneath.
    """
    titles = titles or [""] * len(images)
    labels = labels or [None] * len(images)
    columns = min(COLUMNS, len(images))
    lines = math.ceil(len(images) / columns)
    height = max(2.1, 0.75 + 0.24 * max(len(top) for top in tops))  # inches of a line
    drawn = any("train/loss" in row for row in rows)
    width = max(4.6 * columns, 8.0 * drawn)
    below = _picture(curves(rows), width) if drawn else None
    heights = [height * lines] + ([width * below.shape[0] / below.shape[1]] if drawn else [])
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = parts[0].subplots(lines, 2 * columns, width_ratios=[1, 1.3] * columns, squeeze=False)
    for i, pair in enumerate(axes.reshape(-1, 2)):
        if i < len(images):
            _draw_image(pair[0], images[i], titles[i], labels[i], tops[i])
            _draw_bars(pair[1], tops[i], labels[i])
        else:
            pair[0].set_axis_off()
            pair[1].set_axis_off()
    if drawn:
        axis = parts[1].subplots()
        axis.imshow(below)
        axis.set_axis_off()
    return fit(figure)


def _draw_image(axis, image, title, label, top):
    gray = image.shape[-1] == 1
    axis.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=255)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(_short(title, keep_end=True), fontsize=9)
    if label is not None:
        right = top[0][0] == label
        text = f"✓ {_short(label)}" if right else f"✗ is {_short(label)}"
        axis.set_xlabel(text, color=RIGHT if right else WRONG, fontsize=10, fontweight="bold")
        for spine in axis.spines.values():
            spine.set(
                color=RIGHT if right else WRONG, linewidth=2, linestyle="-" if right else "--"
            )


def _draw_bars(axis, top, label):
    """Bars from the top down; the true class is hatched, the others are plain."""
    for y, (name, probability) in enumerate(top):
        true = name == label
        color = RIGHT if true else WRONG if y == 0 and label is not None else OTHER
        axis.barh(y, probability, 0.62, color=color, hatch="///" if true else None, edgecolor="w")
        axis.text(
            probability + 0.02, y, f"{probability:.1%}", va="center", fontsize=8, color="0.25"
        )
    axis.set_yticks(range(len(top)), [_short(name) for name, _ in top], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.22)  # room for the number behind a full bar
    axis.set_xticks([0, 0.5, 1])
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.tick_params(axis="x", labelsize=7, colors="0.4")
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _picture(figure, width, dpi=200):
    """A figure of its own as pixels [h, w, 4], for a place `width` inches wide."""
    figure.set_size_inches(width, figure.get_figheight())
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _short(text, keep_end=False):
    if len(text) <= LONGEST:
        return text
    return "…" + text[1 - LONGEST :] if keep_end else text[: LONGEST - 1] + "…"
