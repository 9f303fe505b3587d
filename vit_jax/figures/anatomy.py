"""What a model is made of: filters, positions, similarities of tokens, how far its heads look.

The arrays are those of `vit_jax.analysis.weight_stats` and `vit_jax.receptive_field`.
"""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_jax.figures.curves import BLUE, ORANGE

COLUMNS, MOST = 7, 14  # filters in a row; positions along a side that are drawn
CELL, PIXELS = 1.25, 48  # inches; pixels that a small picture is blown up to, at least
COLORS = "viridis"  # even to the eye, also without color


def filters(components, shares):
    """-> matplotlib Figure of `weight_stats.filters` [n, p, p, c], in the order of their shares [n]
    of the variance. 0 is gray; each has its own scale."""
    top = np.abs(components).reshape(len(components), -1).max(1)[:, None, None, None]
    pictures = components / np.where(top > 0, top, 1) / 2 + 0.5
    pictures = np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures
    pictures = np.concatenate([pictures, np.ones((*pictures.shape[:-1], 1))], -1)  # opaque
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(0.8 * columns, 0.8 * rows + 1.8), layout="constrained")
    above, below = figure.subplots(2, height_ratios=[0.8 * rows, 1.5])
    above.imshow(mosaic(pictures, columns), interpolation="none")
    above.set_axis_off()
    below.bar(np.arange(1, len(shares) + 1), 100 * shares, color=BLUE)
    below.set_xlim(0.3, len(shares) + 0.7)
    below.set_xlabel("component")
    below.set_ylabel("% of variance")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(below)
    return figure


def positions(similarity):
    """-> matplotlib Figure: similarity [h, w, h, w], a small map for every position: of it with
    all others, laid out as the positions are. Of large grids every second or third is drawn."""
    step = max(1, math.ceil(max(similarity.shape[:2]) / MOST))
    rows, columns = (np.arange(step // 2, side, step) for side in similarity.shape[:2])
    maps = similarity[np.ix_(rows, columns)]
    sheet = mosaic(maps.reshape(-1, *similarity.shape[2:], 1), len(columns))[..., 0]
    figure = Figure(figsize=(5.6, 4.6 * sheet.shape[0] / sheet.shape[1]), layout="compressed")
    axis = figure.subplots()
    low = min(similarity.min(), 1 - 1e-3)  # even where rounding is all that differs
    drawn = axis.imshow(sheet, cmap=COLORS, vmin=low, vmax=1, interpolation="none")
    for ticks, at in ((axis.set_yticks, rows), (axis.set_xticks, columns)):
        span = sheet.shape[0 if at is rows else 1] / len(at)
        ticks((np.arange(len(at)) + 0.5) * span - 0.5, at + 1, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("column of the patch")
    axis.set_ylabel("row of the patch")
    figure.colorbar(drawn, label="cosine similarity", shrink=0.8)
    return figure


def tokens(images, similarity, colors, reader="[CLS]"):
    """-> matplotlib Figure, a row an image: the image, the similarity of its patches with the token
    that is read out, and their features as colors.

    images: uint8 [h, w, 1 or 3] each; similarity [b, rows, columns]; colors: {name of a layer:
    [b, rows, columns, 3] in [0, 1]}.
    """
    count = 2 + len(colors)
    size = (CELL * count + 0.9, CELL * len(images) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(images), count, squeeze=False)
    # One scale for all images, and at most so wide that differences of rounding stay invisible.
    low, high = similarity.min(), max(similarity.max(), similarity.min() + 1e-3)
    for row, image in enumerate(images):
        gray = image.shape[-1] == 1
        plain = image[..., 0] if gray else image
        style = dict(interpolation="nearest")
        axes[row, 0].imshow(plain, cmap="gray" if gray else None, vmin=0, vmax=255, **style)
        scale = dict(cmap=COLORS, vmin=low, vmax=high)
        drawn = axes[row, 1].imshow(similarity[row], **scale, **style)
        for axis, layer in zip(axes[row, 2:], colors.values(), strict=True):
            axis.imshow(layer[row], **style)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set(linewidth=0.5, color="0.5")
    for axis, name in zip(axes[0], ("image", f"cosine with {reader}", *colors), strict=True):
        axis.set_title(name, fontsize=9)
    figure.colorbar(drawn, ax=axes[:, 1].tolist(), location="right", shrink=0.9, pad=0.04)
    return figure


def heads(distances, entropies, even, most):
    """-> matplotlib Figure: mean attention distance [l, h] in pixels (figure 7, right, of
    arXiv:2010.11929) and entropy [l, h] in bits, a dot a head, layer by layer.

    even: the distance of a head that looks everywhere alike; most: its entropy.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = zip(figure.subplots(1, 2), (distances, entropies), (even, most), strict=True)
    labels = iter(("mean attention distance, pixels", "entropy of attention, bits"))
    for axis, values, limit in panels:
        layers = np.arange(1, len(values) + 1)
        at = np.repeat(layers, values.shape[1])
        axis.scatter(at, values.ravel(), color=BLUE, s=18, alpha=0.6, linewidths=0, label="a head")
        axis.plot(layers, values.mean(1), color=ORANGE, linewidth=1.5, label="mean")
        axis.axhline(limit, color="0.5", linestyle="--", linewidth=1, label="looking evenly")
        axis.set_xlabel("layer")
        axis.set_ylabel(next(labels))
        axis.set_xlim(0.5, len(values) + 0.5)
        axis.set_ylim(0, 1.08 * max(limit, values.max()))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axis)
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def mosaic(pictures, columns):
    """Pictures [n, h, w, k] in rows of so many, as one float array; NaN, or where k is 4
    transparent, between them and where there is none."""
    n, h, w, k = pictures.shape
    grow = math.ceil(PIXELS / max(h, w))
    pictures = np.asarray(pictures, float).repeat(grow, 1).repeat(grow, 2)
    gap = max(1, max(pictures.shape[1:3]) // 16)
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, h * grow + gap, w * grow + gap, k), 0.0 if k == 4 else np.nan)
    cells[:n, gap // 2 : gap // 2 + h * grow, gap // 2 : gap // 2 + w * grow] = pictures
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    return sheet.reshape(rows * cells.shape[1], columns * cells.shape[2], k)


def _plain(axis):
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
