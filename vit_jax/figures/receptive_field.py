"""How far a CNN and a ViT see, side by side: by layer, as maps, and on single images."""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vit_jax.analysis.attention import mass_mask
from vit_jax.analysis.receptive_field import SHARE, area
from vit_jax.figures.curves import BLUE, ORANGE
from vit_jax.figures.fonts import fit
from vit_jax.figures.overlay import COLORS, outline, overlay
from vit_jax.figures.seeing import OUTLINE, short

CELLS = 32  # along a side of a map, by which its outline is drawn
WIDE = 22  # characters of a name above or below a map
HOLLOW = dict(marker="D", markersize=8, linestyle="--", markerfacecolor="white")


def distances(sides, title=""):
    """-> matplotlib Figure, a panel a model: a CNN's fields by convolution, a ViT's attention by
    block.

    sides: dicts with "side", of the image in pixels, and "rows" of `effective_fields.fields`: of a
    CNN without "side95" where no effective fields were measured, of a ViT maybe []; of a ViT
    also "heads", those of `effective_fields.heads`.
    """
    same = len({side["side"] for side in sides}) == 1
    figure = Figure(figsize=(4.5 * len(sides), 4.2), layout="constrained")
    axes = figure.subplots(1, len(sides), sharey=same, squeeze=False)[0]
    for axis, side in zip(axes, sides, strict=True):
        rows, heads, label = side["rows"], side.get("heads"), "side of the image"
        if heads:
            _draw_vit(axis, rows, heads)
            label += ": theoretical field"
        else:
            _draw_cnn(axis, [row for row in rows if not row["layer"].endswith("shortcut")])
        axis.axhline(side["side"], color="0.45", linewidth=1, label=label)
        axis.set_title((heads or rows)[0]["model"], fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="upper left")
        # Room for the legend above what is drawn.
        top = max([side["side"], *(row["field"] for row in rows)])
        axis.set_ylim(0, top * 1.45)
    axes[0].set_ylabel("pixels")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _draw_cnn(axis, rows):
    theory = {row["convolutions"]: row["field"] for row in rows}
    style = dict(color=ORANGE, marker="s", markersize=4)
    axis.plot(list(theory), list(theory.values()), **style, label="theoretical field, side")
    ends = [row for row in rows if "side95" in row]
    axis.set_xlabel("convolutions so far")
    axis.margins(x=0.1)  # room for the last name
    if not ends:
        return
    sides = [row["side95"] for row in ends]
    at = [row["convolutions"] for row in ends]
    label = f"effective field, side ({SHARE:.0%} of the gradient)"
    axis.plot(at, sides, color=ORANGE, **HOLLOW, label=label)
    for x, y, row in zip(at, sides, ends, strict=True):
        place = dict(xytext=(6, -11), textcoords="offset points", fontsize=8, color="0.3")
        axis.annotate(row["layer"], (x, y), **place)


def _draw_vit(axis, rows, heads):
    depth = max(row["layer"] for row in heads)
    if rows:
        label = f"effective field of a patch, side ({SHARE:.0%} of the gradient)"
        at = [int(row["layer"].split()[1]) for row in rows]
        axis.plot(at, [row["side95"] for row in rows], color=BLUE, **HOLLOW, label=label)
    dots = [row["layer"] for row in heads], [row["distance"] for row in heads]
    style = dict(color=BLUE, s=26, alpha=0.75, linewidths=0)
    axis.scatter(*dots, **style, label="attention distance, a dot a head")
    blocks = range(1, depth + 1)
    means = [np.mean([row["distance"] for row in heads if row["layer"] == i]) for i in blocks]
    axis.plot(blocks, means, color=BLUE, linewidth=1.2, label="mean of the heads")
    even = heads[0]["even_distance"]
    axis.axhline(even, color="0.45", linestyle=":", label="distance where attention is even")
    axis.set_xlabel("encoder block")


def fields(models):
    """-> matplotlib Figure, a row a model: the effective field of every layer's center unit.

    models: (name, {layer: gradient [h, w]}, {layer: [first, last] pixel of the theoretical field
    in the image, where it is smaller than that}).
    """
    columns = max(len(gradients) for _, gradients, _ in models)
    size = max(1.5 * columns + 0.5, 5.2), 1.8 * len(models) + 0.7  # not below the words
    figure = Figure(figsize=size, layout="constrained")
    words = ["|gradient| of the center unit, square-root scale from 0 to each map's maximum."]
    words += [f"Outline: the fewest pixels with {SHARE:.0%} of it; side: the root of their number."]
    sizes = {_cell(x) for _, gradients, _ in models for x in gradients.values()} - {1}
    words += [f"It is drawn by squares of {max(sizes)} pixels."] if sizes else []
    dashed = []
    for axes, (name, gradients, theory) in zip(
        figure.subplots(len(models), columns, squeeze=False), models, strict=True
    ):
        for axis in axes[len(gradients) :]:
            axis.set_axis_off()
        for axis, (layer, gradient) in zip(axes, gradients.items(), strict=False):
            _map(axis, gradient, norm=PowerNorm(0.5, 0, gradient.max()))
            lines = LineCollection(_border(gradient), colors=OUTLINE, linewidths=1.2)
            axis.add_collection(lines)
            first, last = theory.get(layer) or (0, len(gradient))
            if last - first < len(gradient):
                box = dict(fill=False, edgecolor="white", linestyle="--", linewidth=1.2)
                axis.add_patch(Rectangle((first - 0.5,) * 2, *(last - first,) * 2, **box))
                dashed = ["Dashed: theoretical field."]
            axis.set_title(layer, fontsize=9, pad=3)
            axis.set_xlabel(f"side {area(gradient) ** 0.5:.1f} px", fontsize=8, labelpad=2)
        axes[0].set_ylabel(name, fontsize=9)
    figure.supxlabel("\n".join(words + dashed), fontsize=8, color="0.2")
    return fit(figure)


def _cell(gradient):
    return -(-max(gradient.shape) // CELLS)


def _border(gradient):
    """Around the fewest pixels that hold SHARE of it. Of a large image it is drawn by squares of
    pixels, at most CELLS along a side: of single ones there would be nothing but border."""
    size = _cell(gradient)
    rows, columns = (-(-side // size) for side in gradient.shape)
    padded = np.zeros((rows * size, columns * size))
    padded[: gradient.shape[0], : gradient.shape[1]] = gradient
    sums = padded.reshape(rows, size, columns, size).sum((1, 3))
    most = np.array(gradient.shape[::-1]) - 0.5
    lines = (np.array(outline(mass_mask(sums, SHARE))) + 0.5) * size - 0.5
    return np.minimum(lines, most)


def looks(images, titles, models):
    """-> matplotlib Figure, a row an image: Grad-CAM by stage of a CNN, attention by block of a
    ViT.

    images: uint8 [h, w, c] each; titles: text below each, of a line or two. models: dicts with
    "name", "maps" {layer: [b, rows, columns]}, "says" [b], names of classes, or None, and of a ViT
    "whose" attention it is; where there are "views", uint8 [h, w, c] each, the maps lie over them.
    """
    columns = [(model, layer) for model in models for layer in model["maps"]]
    tall = 1.45 + 0.13 * max(1 + title.count("\n") for title in titles)
    size = 1.4 * (1 + len(columns)), tall * len(images) + 0.35 + 0.2 * (1 + len(models))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(images), 1 + len(columns), squeeze=False)
    for i, (axes, image) in enumerate(zip(grid, images, strict=True)):
        gray = image.shape[-1] == 1
        _map(axes[0], image[..., 0] if gray else image, cmap="gray", vmin=0, vmax=255)
        lines = [short(line, WIDE) for line in titles[i].splitlines()]
        axes[0].set_xlabel("\n".join(lines), fontsize=8, labelpad=2)
        for axis, (model, layer) in zip(axes[1:], columns, strict=True):
            values = model["maps"][layer][i]
            if "views" in model:
                _map(axis, overlay(model["views"][i], values))
            else:
                _map(axis, values, vmin=0, vmax=values.max() or 1)
            if not values.any():
                place = dict(transform=axis.transAxes, ha="center", va="center", color="0.6")
                axis.text(0.5, 0.5, "0 everywhere", fontsize=8, **place)
            if i == 0:
                kind = "attention" if "whose" in model else "Grad-CAM"
                name = short(model["name"], WIDE)
                axis.set_title(f"{name}\n{kind}, {layer}", fontsize=8, pad=3)
            if model["says"] is not None and layer == next(iter(model["maps"])):
                axis.set_xlabel(f"says {short(model['says'][i], WIDE)}", fontsize=8, labelpad=2)
    lines = [_explain(model) for model in models]
    lines.append("Every map has its own scale, from 0 to its maximum.")
    figure.supxlabel("\n".join(lines), fontsize=8, color="0.2")
    return fit(figure)


def _explain(model):
    if "whose" in model:
        return f"{model['name']}: attention of {model['whose']}, mean of the heads."
    return f"{model['name']}: Grad-CAM for the class that it says."


def _map(axis, values, cmap=COLORS, **scale):
    axis.imshow(values, cmap=cmap, interpolation="nearest", **scale)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set(linewidth=0.5, color="0.5")
