"""Figures of a model's weights and representations: filters, positions, tokens, attention heads.

`vit_jax.analysis.weight_stats` and `vit_jax.analysis.receptive_field` compute the arrays.
"""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    despine,
    finish,
    integer_ticks,
    show_image,
    truncate,
)

COLUMNS = 7  # filters per row
MAX_POSITIONS = 14  # drawn along each side of the grid
CELL = 1.25  # side of an image, inches
MIN_PIXELS = 48  # smaller maps are enlarged to at least this side
TOP_CLASSES = 3  # of the logit lens
COLORS = "viridis"  # perceptually uniform, also in grayscale


def filters(components, shares, *, phrases=ENGLISH):
    """Draw the principal components of the filters and the variance that each one explains.

    Each component has its own scale, with 0 in gray.

    Args:
      components: [n, p, p, c], from `weight_stats.filters`.
      shares: [n], from `weight_stats.filters`.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    maxima = np.abs(components).reshape(len(components), -1).max(1)[:, None, None, None]
    pictures = components / np.where(maxima > 0, maxima, 1) / 2 + 0.5
    pictures = np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures
    pictures = np.concatenate([pictures, np.ones((*pictures.shape[:-1], 1))], -1)  # opaque
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(0.8 * columns, 0.8 * rows + 1.8), layout="constrained")
    top, bottom = figure.subplots(2, height_ratios=[0.8 * rows, 1.5])
    top.imshow(mosaic(pictures, columns), interpolation="none")
    top.set_axis_off()
    bottom.bar(np.arange(1, len(shares) + 1), 100 * shares, color=BLUE)
    bottom.set_xlim(0.3, len(shares) + 0.7)
    bottom.set_xlabel(phrases("component"))
    bottom.set_ylabel(phrases("variance"))
    integer_ticks(bottom)
    despine(bottom)
    return finish(figure)


def positions(similarity, *, phrases=ENGLISH):
    """Draw the similarity of each position embedding to all others, one small map per position.

    The maps are arranged as the patches are. For large grids only every second, third, ... row and
    column is drawn.

    Args:
      similarity: [h, w, h, w], from `weight_stats.position_similarity`.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    step = max(1, math.ceil(max(similarity.shape[:2]) / MAX_POSITIONS))
    rows, columns = (np.arange(step // 2, side, step) for side in similarity.shape[:2])
    maps = similarity[np.ix_(rows, columns)]
    sheet = mosaic(maps.reshape(-1, *similarity.shape[2:], 1), len(columns))[..., 0]
    figure = Figure(figsize=(5.6, 4.6 * sheet.shape[0] / sheet.shape[1]), layout="compressed")
    ax = figure.subplots()
    low = min(similarity.min(), 1 - 1e-3)  # do not amplify rounding errors
    drawn = ax.imshow(sheet, cmap=COLORS, vmin=low, vmax=1, interpolation="none")
    for set_ticks, indices, length in zip(
        (ax.set_yticks, ax.set_xticks), (rows, columns), sheet.shape, strict=True
    ):
        centers = (np.arange(len(indices)) + 0.5) * length / len(indices) - 0.5
        set_ticks(centers, indices + 1, fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(phrases("patch_column"))
    ax.set_ylabel(phrases("patch_row"))
    figure.colorbar(drawn, label=phrases("cosine_similarity"), shrink=0.8)
    return finish(figure)


def tokens(images, similarity, colors, pooled_name="[CLS]", *, phrases=ENGLISH):
    """Draw one row per image: the image, its patch similarities and its patch features.

    Args:
      images: sequence of uint8 [h, w, 1 or 3].
      similarity: cosine similarity of each patch to the pooled token, [b, rows, columns].
      colors: {layer title: features as RGB [b, rows, columns, 3] in [0, 1]}.
      pooled_name: name of the pooled token.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    count = 2 + len(colors)
    size = (CELL * count + 0.9, CELL * len(images) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(images), count, squeeze=False)
    # One scale for all images, wide enough that rounding errors are invisible.
    scale = dict(cmap=COLORS, vmin=similarity.min())
    scale["vmax"] = max(similarity.max(), similarity.min() + 1e-3)
    for row, image in enumerate(images):
        show_image(axes[row, 0], image)
        drawn = show_image(axes[row, 1], similarity[row], **scale)
        for ax, layer in zip(axes[row, 2:], colors.values(), strict=True):
            show_image(ax, layer[row])
    titles = (phrases("image"), phrases("cosine_with", pooled_name=pooled_name), *colors)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    figure.colorbar(drawn, ax=axes[:, 1].tolist(), location="right", shrink=0.9, pad=0.04)
    return finish(figure)


def logit_lens(images, lens, class_names, titles=None, *, phrases=ENGLISH):
    """Draw one row per image: the image, the class probabilities by layer, and those of patches.

    Args:
      images: sequence of uint8 [h, w, 1 or 3].
      lens: as returned by `analysis.logit_lens.extract`.
      class_names: names of all classes.
      titles: text below each image.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    depth = lens.probabilities.shape[1]
    layers = sorted({1, (depth + 1) // 2, depth})
    ratios = [1, 1.9, *[1] * len(layers)]
    size = (1.45 * sum(ratios), 1.5 * len(images) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(images), len(ratios), squeeze=False, width_ratios=ratios)
    top = min(TOP_CLASSES, lens.probabilities.shape[-1])
    for row, image in enumerate(images):
        show_image(axes[row, 0], image)
        axes[row, 0].set_xlabel(truncate(titles[row], 18) if titles else "", fontsize=8)
        curves = lens.probabilities[row]
        for k, color in zip((-curves[-1]).argsort()[:top], (BLUE, ORANGE, GREEN), strict=False):
            name = truncate(class_names[k], 18, keep_end=False)
            axes[row, 1].plot(np.arange(1, depth + 1), curves[:, k], color=color, label=name)
        axes[row, 1].set(ylim=(0, 1.02), xlim=(0.5, depth + 0.5))
        axes[row, 1].yaxis.set_major_formatter(PercentFormatter(1))
        axes[row, 1].legend(fontsize=7, framealpha=0.8, edgecolor="none", loc="best")
        axes[row, 1].tick_params(labelsize=8)
        integer_ticks(axes[row, 1], nbins=6)
        despine(axes[row, 1])
        for ax, layer in zip(axes[row, 2:], layers, strict=True):
            drawn = show_image(ax, lens.patches[row, layer - 1], cmap=COLORS, vmin=0, vmax=1)
            share = phrases("maximum", share=100 * lens.patches[row, layer - 1].max())
            ax.set_xlabel(share, fontsize=7, labelpad=2, color="0.3")
    axes[-1, 1].set_xlabel(phrases("layer_axis"), fontsize=9)
    names = [phrases("layer_of", layer=layer, depth=depth) for layer in layers]
    for ax, title in zip(axes[0], (phrases("image"), phrases("lens_classes"), *names), strict=True):
        ax.set_title(title, fontsize=9)
    bar = figure.colorbar(drawn, ax=axes[:, 2:], location="right", shrink=0.9, pad=0.02)
    bar.set_label(phrases("lens_patches"), fontsize=8)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return finish(figure)


def heads(distances, entropies, uniform_distance, uniform_entropy, *, phrases=ENGLISH):
    """Draw the mean attention distance and the attention entropy of each head, layer by layer.

    Args:
      distances: [l, h], pixels (figure 7, right, of arXiv:2010.11929).
      entropies: [l, h], bits.
      uniform_distance: attention distance of a head with uniform attention.
      uniform_entropy: entropy of such a head, the maximum.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = (
        (distances, uniform_distance, phrases("distance_pixels")),
        (entropies, uniform_entropy, phrases("entropy_bits")),
    )
    for ax, (values, uniform, label) in zip(figure.subplots(1, 2), panels, strict=True):
        layers = np.arange(1, len(values) + 1)
        xs = np.repeat(layers, values.shape[1])
        style = dict(color=BLUE, s=18, alpha=0.6, linewidths=0)
        ax.scatter(xs, values.ravel(), **style, label=phrases("one_head"))
        ax.plot(layers, values.mean(1), color=ORANGE, linewidth=1.5, label=phrases("mean"))
        ax.axhline(uniform, color="0.5", linestyle="--", linewidth=1, label=phrases("uniform"))
        ax.set_xlabel(phrases("layer_axis"))
        ax.set_ylabel(label)
        ax.set_xlim(0.5, len(values) + 0.5)
        ax.set_ylim(0, 1.08 * max(uniform, values.max()))
        integer_ticks(ax)
        despine(ax)
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return finish(figure)


def confusion(matrix, *, phrases=ENGLISH):
    """Draw a confusion matrix, normalized by true class, on a square-root color scale.

    Args:
      matrix: counts [true class, predicted class].
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(5.6, 5), layout="constrained")
    ax = figure.subplots()
    drawn = ax.imshow(np.sqrt(shares), cmap=COLORS, vmin=0, vmax=1, interpolation="none")
    ax.set_xlabel(phrases("predicted_class"))
    ax.set_ylabel(phrases("true_class"))
    bar = figure.colorbar(drawn, shrink=0.8, label=phrases("share_of_class"))
    ticks = np.array([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_ticks(np.sqrt(ticks), labels=[f"{tick:.0%}" for tick in ticks])
    return finish(figure)


def mosaic(pictures, columns):
    """Tile pictures [n, h, w, c] into one float array with this number of columns.

    Small pictures are enlarged to MIN_PIXELS. Gaps and unused tiles are transparent for c = 4, and
    NaN otherwise.
    """
    n, h, w, c = pictures.shape
    scale = math.ceil(MIN_PIXELS / max(h, w))
    pictures = np.asarray(pictures, float).repeat(scale, 1).repeat(scale, 2)
    height, width = pictures.shape[1:3]
    gap = max(1, max(height, width) // 16)
    rows = math.ceil(n / columns)
    background = 0.0 if c == 4 else np.nan
    tiles = np.full((rows * columns, height + gap, width + gap, c), background)
    tiles[:n, gap // 2 : gap // 2 + height, gap // 2 : gap // 2 + width] = pictures
    sheet = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return sheet.reshape(rows * tiles.shape[1], columns * tiles.shape[2], c)
