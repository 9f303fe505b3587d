"""How far a CNN and a ViT see, side by side: by layer, as maps, and on single images."""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit_jax.analysis.attention import mass_mask
from vit_jax.analysis.receptive_field import SHARE, area
from vit_jax.figures.attention import attention_grid
from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.overlay import COLORS, OUTLINE, outline
from vit_jax.figures.style import BLUE, ORANGE, count_along, finish, picture, plain, short

MAX_CELLS = 32  # along a side of a map, by which its outline is drawn
MAX_LETTERS = 22  # of a name above or below a map
HOLLOW = dict(marker="D", markersize=8, linestyle="--", markerfacecolor="white")


def distances(sides, title="", *, phrases=ENGLISH):
    """Draw a panel per model: a CNN's fields by convolution, a ViT's attention by block.

    Args:
      sides: dicts with "side", of the image in pixels, and "rows" of `effective_fields.fields`: of
        a CNN without "side95" where no effective fields were measured, of a ViT maybe []; of a
        ViT also "heads", those of `effective_fields.heads`.
      title: above the figure.
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.
    """
    same = len({side["side"] for side in sides}) == 1
    figure = Figure(figsize=(4.5 * len(sides), 4.2), layout="constrained")
    axes = figure.subplots(1, len(sides), sharey=same, squeeze=False)[0]
    for axis, side in zip(axes, sides, strict=True):
        rows, heads = side["rows"], side.get("heads")
        if heads:
            _draw_vit(axis, rows, heads, phrases)
        else:
            _draw_cnn(axis, [row for row in rows if not row["layer"].endswith("shortcut")], phrases)
        label = phrases("image_side_and_field") if heads else phrases("image_side")
        axis.axhline(side["side"], color="0.45", linewidth=1, label=label)
        axis.set_title((heads or rows)[0]["model"], fontsize=10)
        count_along(axis)
        plain(axis)
        axis.legend(frameon=False, fontsize=8, loc="upper left")
        # Room for the legend above what is drawn.
        top = max([side["side"], *(row["field"] for row in rows)])
        axis.set_ylim(0, top * 1.45)
    axes[0].set_ylabel(phrases("pixels"))
    return finish(figure, title)


def _draw_cnn(axis, rows, phrases):
    theory = {row["convolutions"]: row["field"] for row in rows}
    style = dict(color=ORANGE, marker="s", markersize=4)
    axis.plot(list(theory), list(theory.values()), **style, label=phrases("theoretical_side"))
    axis.set_xlabel(phrases("convolutions"))
    axis.margins(x=0.1)  # room for the last name
    ends = [row for row in rows if "side95" in row]
    if ends:
        at = [row["convolutions"] for row in ends]
        label = phrases("effective_side", share=SHARE)
        axis.plot(at, [row["side95"] for row in ends], color=ORANGE, **HOLLOW, label=label)
    place = dict(xytext=(6, -11), textcoords="offset points", fontsize=8, color="0.3")
    for row in ends:
        axis.annotate(row["layer"], (row["convolutions"], row["side95"]), **place)


def _draw_vit(axis, rows, heads, phrases):
    if rows:
        at = [int(row["layer"].split()[1]) for row in rows]
        label = phrases("effective_side_of_patch", share=SHARE)
        axis.plot(at, [row["side95"] for row in rows], color=BLUE, **HOLLOW, label=label)
    dots = [row["layer"] for row in heads], [row["distance"] for row in heads]
    style = dict(color=BLUE, s=26, alpha=0.75, linewidths=0)
    axis.scatter(*dots, **style, label=phrases("head_distance"))
    blocks = sorted({row["layer"] for row in heads})
    means = [np.mean([row["distance"] for row in heads if row["layer"] == i]) for i in blocks]
    axis.plot(blocks, means, color=BLUE, linewidth=1.2, label=phrases("mean_of_heads"))
    even = heads[0]["even_distance"]
    axis.axhline(even, color="0.45", linestyle=":", label=phrases("even_distance"))
    axis.set_xlabel(phrases("encoder_block"))


def fields(models, *, phrases=ENGLISH):
    """Draw a row per model: the effective receptive field of every layer's center unit.

    Args:
      models: (name, {layer: gradient [h, w]}, {layer: [first, last] pixel of the theoretical field
        in the image, drawn where it is smaller than the image}).
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.
    """
    columns = max(len(gradients) for _, gradients, _ in models)
    size = max(1.5 * columns + 0.5, 5.2), 1.8 * len(models) + 0.7  # not below the words
    figure = Figure(figsize=size, layout="constrained")
    words = [phrases("gradient"), phrases("field_outline", share=SHARE)]
    cells = {_cell(x) for _, gradients, _ in models for x in gradients.values()} - {1}
    if cells:
        words.append(phrases("field_cells", side=max(cells)))
    has_theory = False
    for axes, (name, gradients, theory) in zip(
        figure.subplots(len(models), columns, squeeze=False), models, strict=True
    ):
        for axis in axes[len(gradients) :]:
            axis.set_axis_off()
        for axis, (layer, gradient) in zip(axes, gradients.items(), strict=False):
            picture(axis, gradient, cmap=COLORS, norm=PowerNorm(0.5, 0, gradient.max()))
            lines = LineCollection(_border(gradient), colors=OUTLINE, linewidths=1.2)
            axis.add_collection(lines)
            first, last = theory.get(layer) or (0, len(gradient))
            if last - first < len(gradient):
                box = dict(fill=False, edgecolor="white", linestyle="--", linewidth=1.2)
                axis.add_patch(Rectangle((first - 0.5,) * 2, *(last - first,) * 2, **box))
                has_theory = True
            axis.set_title(layer_title(layer, phrases), fontsize=9, pad=3)
            side = area(gradient) ** 0.5
            axis.set_xlabel(phrases("field_side", side=side), fontsize=8, labelpad=2)
        axes[0].set_ylabel(name, fontsize=9)
    if has_theory:
        words.append(phrases("field_dashed"))
    figure.supxlabel("\n".join(words), x=0.01, ha="left", fontsize=8, color="0.2")
    return finish(figure)


def layer_title(layer, phrases=ENGLISH):
    """The name of a layer of `analysis.effective_fields`, such as "block 3" or "layer1"."""
    kind, _, number = layer.partition(" ")
    return phrases("block", block=number) if kind == "block" else layer


def _cell(gradient):
    return -(-max(gradient.shape) // MAX_CELLS)


def _border(gradient):
    """Around the fewest pixels that hold SHARE of the gradient. Of a large image it is drawn by
    squares of pixels: of single ones there would be nothing but border."""
    size = _cell(gradient)
    rows, columns = (-(-side // size) for side in gradient.shape)
    padded = np.zeros((rows * size, columns * size))
    padded[: gradient.shape[0], : gradient.shape[1]] = gradient
    sums = padded.reshape(rows, size, columns, size).sum((1, 3))
    most = np.array(gradient.shape[::-1]) - 0.5
    lines = (np.array(outline(mass_mask(sums, SHARE))) + 0.5) * size - 0.5
    return np.minimum(lines, most)


def saliency_grid(images, titles, models, *, phrases=ENGLISH):
    """Draw a row per image: Grad-CAM by stage of a CNN, attention by block of a ViT.

    Args:
      images: uint8 [h, w, c] each.
      titles: text below each image.
      models: dicts with "name", "maps" {layer: [b, rows, columns]}, "says" [b], names of predicted
        classes, or None, of a ViT "whose" attention it is, and "views", uint8 [h, w, c] each, below
        the maps where they differ from `images`.
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.
    """
    panels = []
    for model in models:
        panel = {"name": model["name"], "views": model.get("views", images), "columns": {}}
        for layer, maps in model["maps"].items():
            if "whose" not in model:
                maps = maps / np.maximum(maps.sum((1, 2), keepdims=True), 1e-12)
            panel["columns"][layer_title(layer, phrases)] = maps
        panel["gradcam"] = "whose" not in model
        panel["note"] = phrases("gradcam")
        if "whose" in model:
            panel["note"] = phrases("attention_mean", whose=model["whose"])
        if model["says"] is not None:
            names = [short(name, MAX_LETTERS) for name in model["says"]]
            panel["labels"] = [phrases("predicted", name=name) for name in names]
        panels.append(panel)
    return attention_grid(images, panels, titles=titles, style="overlay", phrases=phrases)
