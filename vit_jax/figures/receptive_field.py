"""How far a CNN and a ViT see, side by side: by layer, as maps, and on single images."""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vit_jax.attention import mass_mask
from vit_jax.figures.curves import BLUE, ORANGE
from vit_jax.figures.seeing import COLORS, OUTLINE, outline
from vit_jax.receptive_field import SHARE

HOLLOW = dict(marker="D", markersize=8, linestyle="--", markerfacecolor="white")


def distances(cnn, vit, heads, title=""):
    """-> matplotlib Figure: the CNN's fields by convolution beside the ViT's attention by block.

    cnn, vit: dicts with "model", "layer", "field" (theoretical side, pixels), "side95" where the
    effective one was measured, and of the CNN "convolutions", how many are below. heads: dicts with
    "layer" (from 1), "distance" and "even_distance" in pixels.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_cnn(left, [row for row in cnn if not row["layer"].endswith("shortcut")])
    _draw_vit(right, vit, heads)
    lines = ((left, cnn, "side of the image"), (right, vit, "side of the image: theoretical field"))
    for axis, rows, label in lines:
        axis.axhline(vit[0]["field"], color="0.45", linewidth=1, label=label)
        axis.set_title(rows[0]["model"], fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    left.set_ylabel("pixels")
    left.set_ylim(bottom=0)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _draw_cnn(axis, rows):
    theory = {row["convolutions"]: row["field"] for row in rows}
    style = dict(color=ORANGE, marker="s", markersize=4)
    axis.plot(list(theory), list(theory.values()), **style, label="theoretical field, side")
    ends = [row for row in rows if "side95" in row]
    sides = [row["side95"] for row in ends]
    at = [row["convolutions"] for row in ends]
    label = f"effective field, side ({SHARE:.0%} of the gradient)"
    axis.plot(at, sides, color=ORANGE, **HOLLOW, label=label)
    for x, y, row in zip(at, sides, ends, strict=True):
        place = dict(xytext=(6, -11), textcoords="offset points", fontsize=8, color="0.3")
        axis.annotate(row["layer"], (x, y), **place)
    axis.set_xlabel("convolutions so far")
    axis.margins(x=0.1)  # room for the last name


def _draw_vit(axis, rows, heads):
    blocks = range(1, len(rows) + 1)
    label = f"effective field of a patch, side ({SHARE:.0%} of the gradient)"
    axis.plot(blocks, [row["side95"] for row in rows], color=BLUE, **HOLLOW, label=label)
    dots = [row["layer"] for row in heads], [row["distance"] for row in heads]
    style = dict(color=BLUE, s=26, alpha=0.75, linewidths=0)
    axis.scatter(*dots, **style, label="attention distance, a dot a head")
    means = [np.mean([row["distance"] for row in heads if row["layer"] == i]) for i in blocks]
    axis.plot(blocks, means, color=BLUE, linewidth=1.2, label="mean of the heads")
    even = heads[0]["even_distance"]
    axis.axhline(even, color="0.45", linestyle=":", label="distance where attention is even")
    axis.set_xlabel("encoder block")


def fields(models):
    """-> matplotlib Figure, a row a model: the effective field of every layer's centre unit.

    models: (name, {layer: gradient [h, w]}, {layer: [first, last] pixel of the theoretical field
    in the image, where it is smaller than that}).
    """
    columns = max(len(gradients) for _, gradients, _ in models)
    figure = Figure(figsize=(1.5 * columns + 0.5, 1.8 * len(models) + 0.5), layout="constrained")
    for axes, (name, gradients, theory) in zip(
        figure.subplots(len(models), columns, squeeze=False), models, strict=True
    ):
        for axis in axes[len(gradients) :]:
            axis.set_axis_off()
        for axis, (layer, gradient) in zip(axes, gradients.items(), strict=False):
            _map(axis, gradient, norm=PowerNorm(0.5, 0, gradient.max()))
            mask = mass_mask(gradient, SHARE)
            axis.add_collection(LineCollection(outline(mask), colors=OUTLINE, linewidths=1.2))
            first, last = theory.get(layer) or (0, len(gradient))
            if last - first < len(gradient):
                box = dict(fill=False, edgecolor="white", linestyle="--", linewidth=1.2)
                axis.add_patch(Rectangle((first - 0.5,) * 2, *(last - first,) * 2, **box))
            axis.set_title(layer, fontsize=9, pad=3)
            axis.set_xlabel(f"side {mask.sum() ** 0.5:.1f} px", fontsize=8, labelpad=2)
        axes[0].set_ylabel(name, fontsize=9)
    words = "|gradient| of the centre unit, square-root scale from 0 to each map's maximum.\n"
    words += f"Outline: the fewest pixels with {SHARE:.0%} of it; side: the root of their number. "
    figure.supxlabel(f"{words}Dashed: theoretical field.", fontsize=8, color="0.2")
    return figure


def looks(seen, cnn, vit):
    """-> matplotlib Figure, a row an image: Grad-CAM by stage of a CNN, attention by block of a
    ViT.

    seen: "images" uint8 [b h w c], "labels", "cnn_says", "vit_says" [b], "cnn" and "vit"
    {layer: maps [b h w]}, "whose" attention. cnn, vit: names.
    """
    maps = [(f"{cnn}\nGrad-CAM, {layer}", values) for layer, values in seen["cnn"].items()]
    maps += [(f"{vit}\nattention, {layer}", values) for layer, values in seen["vit"].items()]
    columns, rows = 1 + len(maps), len(seen["images"])
    figure = Figure(figsize=(1.4 * columns, 1.56 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, (axes, image) in enumerate(zip(grid, seen["images"], strict=True)):
        grey = image.shape[-1] == 1
        _map(axes[0], image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255)
        for axis, (title, values) in zip(axes[1:], maps, strict=True):
            _map(axis, values[i], vmin=0, vmax=values[i].max() or 1)
            if not values[i].any():
                place = dict(transform=axis.transAxes, ha="center", va="center", color="0.6")
                axis.text(0.5, 0.5, "0 everywhere", fontsize=8, **place)
            if i == 0:
                axis.set_title(title, fontsize=8, pad=3)
        said = seen["labels"][i], f"says {seen['cnn_says'][i]}", f"says {seen['vit_says'][i]}"
        for column, text in zip((0, 1, 1 + len(seen["cnn"])), said, strict=True):
            axes[column].set_xlabel(text, fontsize=8, labelpad=2)
    words = f"{cnn}: Grad-CAM for the class that it says. {vit}: attention of {seen['whose']}, "
    words += "mean of the heads.\nEvery map has its own scale, from 0 to its maximum."
    figure.supxlabel(words, fontsize=8, color="0.2")
    return figure


def _map(axis, values, cmap=COLORS, **scale):
    axis.imshow(values, cmap=cmap, interpolation="nearest", **scale)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set(linewidth=0.5, color="0.5")
