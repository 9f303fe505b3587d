"""What a model is made of: filters, positions, similarities of tokens, how far its heads look.

The arrays are those of `vit_jax.analysis.weight_stats` and `vit_jax.analysis.receptive_field`.
"""

import math

import numpy as np
from matplotlib.figure import Figure

from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.style import BLUE, ORANGE, count_along, finish, picture, plain

COLUMNS = 7  # filters in a row
MAX_POSITIONS = 14  # along a side, that are drawn
CELL = 1.25  # inches, side of an image
MIN_PIXELS = 48  # that a small map is blown up to
COLORS = "viridis"  # even to the eye, also without color


def filters(components, shares, *, phrases=ENGLISH):
    """Draw principal components of filters, and the variance that each explains.

    components, shares: `weight_stats.filters` [n, p, p, c] and [n]. 0 is gray; each component has
    its own scale. -> matplotlib Figure
    """
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
    below.set_xlabel(phrases("component"))
    below.set_ylabel(phrases("variance"))
    count_along(below)
    plain(below)
    return finish(figure)


def positions(similarity, *, phrases=ENGLISH):
    """Draw a small map for every position: its similarity with all others.

    similarity: [h, w, h, w]. The maps are laid out as the positions are; of large grids every
    second or third is drawn. -> matplotlib Figure
    """
    step = max(1, math.ceil(max(similarity.shape[:2]) / MAX_POSITIONS))
    rows, columns = (np.arange(step // 2, side, step) for side in similarity.shape[:2])
    maps = similarity[np.ix_(rows, columns)]
    sheet = mosaic(maps.reshape(-1, *similarity.shape[2:], 1), len(columns))[..., 0]
    figure = Figure(figsize=(5.6, 4.6 * sheet.shape[0] / sheet.shape[1]), layout="compressed")
    axis = figure.subplots()
    low = min(similarity.min(), 1 - 1e-3)  # even where rounding is all that differs
    drawn = axis.imshow(sheet, cmap=COLORS, vmin=low, vmax=1, interpolation="none")
    for set_ticks, at, length in zip(
        (axis.set_yticks, axis.set_xticks), (rows, columns), sheet.shape, strict=True
    ):
        centers = (np.arange(len(at)) + 0.5) * length / len(at) - 0.5
        set_ticks(centers, at + 1, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel(phrases("patch_column"))
    axis.set_ylabel(phrases("patch_row"))
    figure.colorbar(drawn, label=phrases("cosine_similarity"), shrink=0.8)
    return finish(figure)


def tokens(images, similarity, colors, reader="[CLS]", *, phrases=ENGLISH):
    """Draw a row per image: the image, the similarity of its patches with the token that is read
    out, and their features as colors.

    Args:
      images: uint8 [h, w, 1 or 3] each.
      similarity: [b, rows, columns].
      colors: {title of a layer: [b, rows, columns, 3] in [0, 1]}.
      reader: name of the token that is read out.
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.
    """
    count = 2 + len(colors)
    size = (CELL * count + 0.9, CELL * len(images) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(images), count, squeeze=False)
    # One scale for all images, and at least so wide that differences of rounding stay invisible.
    scale = dict(cmap=COLORS, vmin=similarity.min())
    scale["vmax"] = max(similarity.max(), similarity.min() + 1e-3)
    for row, image in enumerate(images):
        picture(axes[row, 0], image)
        drawn = picture(axes[row, 1], similarity[row], **scale)
        for axis, layer in zip(axes[row, 2:], colors.values(), strict=True):
            picture(axis, layer[row])
    titles = (phrases("image"), phrases("cosine_with", reader=reader), *colors)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.colorbar(drawn, ax=axes[:, 1].tolist(), location="right", shrink=0.9, pad=0.04)
    return finish(figure)


def heads(distances, entropies, even, most, *, phrases=ENGLISH):
    """Draw the mean attention distance and the entropy of every head, layer by layer.

    Args:
      distances: [l, h] pixels (figure 7, right, of arXiv:2010.11929).
      entropies: [l, h] bits.
      even: distance of a head that attends to all patches alike.
      most: entropy of such a head.
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = (
        (distances, even, phrases("distance_pixels")),
        (entropies, most, phrases("entropy_bits")),
    )
    for axis, (values, limit, label) in zip(figure.subplots(1, 2), panels, strict=True):
        layers = np.arange(1, len(values) + 1)
        at = np.repeat(layers, values.shape[1])
        dots = dict(color=BLUE, s=18, alpha=0.6, linewidths=0)
        axis.scatter(at, values.ravel(), **dots, label=phrases("one_head"))
        axis.plot(layers, values.mean(1), color=ORANGE, linewidth=1.5, label=phrases("mean"))
        axis.axhline(limit, color="0.5", linestyle="--", linewidth=1, label=phrases("uniform"))
        axis.set_xlabel(phrases("layer_axis"))
        axis.set_ylabel(label)
        axis.set_xlim(0.5, len(values) + 0.5)
        axis.set_ylim(0, 1.08 * max(limit, values.max()))
        count_along(axis)
        plain(axis)
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return finish(figure)


def confusion(matrix, *, phrases=ENGLISH):
    """Draw a confusion matrix [true, predicted]; each row is a share of its class.

    -> matplotlib Figure
    """
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(5.6, 5), layout="constrained")
    axis = figure.subplots()
    drawn = axis.imshow(np.sqrt(shares), cmap=COLORS, vmin=0, vmax=1, interpolation="none")
    axis.set_xlabel(phrases("predicted_class"))
    axis.set_ylabel(phrases("true_class"))
    bar = figure.colorbar(drawn, shrink=0.8, label=phrases("share_of_class"))
    ticks = np.array([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_ticks(np.sqrt(ticks), labels=[f"{tick:.0%}" for tick in ticks])
    return finish(figure)


def mosaic(pictures, columns):
    """Pictures [n, h, w, k] in rows of so many, as one float array; NaN, or where k is 4
    transparent, between them and where there is none."""
    n, h, w, k = pictures.shape
    grow = math.ceil(MIN_PIXELS / max(h, w))
    pictures = np.asarray(pictures, float).repeat(grow, 1).repeat(grow, 2)
    gap = max(1, max(pictures.shape[1:3]) // 16)
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, h * grow + gap, w * grow + gap, k), 0.0 if k == 4 else np.nan)
    cells[:n, gap // 2 : gap // 2 + h * grow, gap // 2 : gap // 2 + w * grow] = pictures
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    return sheet.reshape(rows * cells.shape[1], columns * cells.shape[2], k)
