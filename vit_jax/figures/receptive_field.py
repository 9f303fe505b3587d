"""Receptive fields of a CNN beside attention distances of a ViT, and saliency maps of both."""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit_jax.analysis.attention import mass_mask
from vit_jax.analysis.receptive_field import SHARE, area
from vit_jax.figures.attention import attention_grid, uniform_share
from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.overlay import COLORS, OUTLINE, outline
from vit_jax.figures.style import (
    BLUE,
    ORANGE,
    despine,
    finish,
    integer_ticks,
    show_image,
    truncate,
)
from vit_jax.schema import pair

MAX_CELLS = 32  # along each side, for the outline of a gradient map
MAX_CHARS = 22  # of a class name beside a map
HOLLOW = dict(marker="D", markersize=8, linestyle="--", markerfacecolor="white")


def distances(sides, title="", *, phrases=ENGLISH):
    """Draw one panel per model: receptive fields of a CNN, attention distances of a ViT, by layer.

    Args:
      sides: list of dicts with
        "side": image size in pixels: the side of a square, or (height, width);
        "rows": rows of `effective_fields.fields`. Rows of a CNN without "side95" show only the
        theoretical field; the list may be empty for a ViT;
        "heads": for a ViT, rows of `effective_fields.heads`.
      title: title of the figure.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    same_size = len({side["side"] for side in sides}) == 1
    figure = Figure(figsize=(4.5 * len(sides), 4.2), layout="constrained")
    axes = figure.subplots(1, len(sides), sharey=same_size, squeeze=False)[0]
    for ax, side in zip(axes, sides, strict=True):
        rows = side["rows"]
        heads = side.get("heads")
        if heads:
            _draw_vit(ax, rows, heads, phrases)
        else:
            _draw_cnn(ax, [row for row in rows if not row["layer"].endswith("shortcut")], phrases)
        label = phrases("image_side_and_field") if heads else phrases("image_side")
        for x in {*pair(side["side"])}:
            ax.axhline(x, color="0.45", linewidth=1, label=label)
            label = None
        ax.set_title((heads or rows)[0]["model"], fontsize=10)
        integer_ticks(ax)
        despine(ax)
        ax.legend(frameon=False, fontsize=8, loc="upper left")
        top = max([*pair(side["side"]), *(row["field"] for row in rows)])
        ax.set_ylim(0, top * 1.45)  # room for the legend above the data
    axes[0].set_ylabel(phrases("pixels"))
    return finish(figure, title)


def _draw_cnn(ax, rows, phrases):
    """Draw the theoretical and effective fields of a CNN against the number of convolutions."""
    theory = {row["convolutions"]: row["field"] for row in rows}
    style = dict(color=ORANGE, marker="s", markersize=4)
    ax.plot(list(theory), list(theory.values()), **style, label=phrases("theoretical_side"))
    ax.set_xlabel(phrases("convolutions"))
    ax.margins(x=0.1)  # room for the last name
    measured = [row for row in rows if "side95" in row]
    if measured:
        xs = [row["convolutions"] for row in measured]
        label = phrases("effective_side", share=SHARE)
        ax.plot(xs, [row["side95"] for row in measured], color=ORANGE, **HOLLOW, label=label)
    font = dict(xytext=(6, -11), textcoords="offset points", fontsize=8, color="0.3")
    for row in measured:
        ax.annotate(row["layer"], (row["convolutions"], row["side95"]), **font)


def _draw_vit(ax, rows, heads, phrases):
    """Draw the effective fields and the attention distances of a ViT against the block."""
    if rows:
        xs = [int(row["layer"].split()[1]) for row in rows]
        label = phrases("effective_side_of_patch", share=SHARE)
        ax.plot(xs, [row["side95"] for row in rows], color=BLUE, **HOLLOW, label=label)
    points = [row["layer"] for row in heads], [row["distance"] for row in heads]
    style = dict(color=BLUE, s=26, alpha=0.75, linewidths=0)
    ax.scatter(*points, **style, label=phrases("head_distance"))
    blocks = sorted({row["layer"] for row in heads})
    means = [np.mean([row["distance"] for row in heads if row["layer"] == i]) for i in blocks]
    ax.plot(blocks, means, color=BLUE, linewidth=1.2, label=phrases("mean_of_heads"))
    uniform = heads[0]["even_distance"]
    ax.axhline(uniform, color="0.45", linestyle=":", label=phrases("even_distance"))
    ax.set_xlabel(phrases("encoder_block"))


def fields(models, *, phrases=ENGLISH):
    """Draw one row per model: the effective receptive field of the center unit of each layer.

    Args:
      models: list of (name, gradients, theoretical fields), with gradients {layer: [h, w]} and
        fields {layer: [first pixel, one past the last pixel] inside the image, or one such pair per
        axis, or None}. A theoretical field is drawn if it is smaller than the image.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    columns = max(len(gradients) for _, gradients, _ in models)
    size = max(1.5 * columns + 0.5, 5.2), 1.8 * len(models) + 0.7  # at least as wide as the caption
    figure = Figure(figsize=size, layout="constrained")
    caption = [phrases("gradient"), phrases("field_outline", share=SHARE)]
    cell_sides = {_cell_side(x) for _, gradients, _ in models for x in gradients.values()} - {1}
    if cell_sides:
        caption.append(phrases("field_cells", side=max(cell_sides)))
    has_theory = False
    for axes, (name, gradients, theory) in zip(
        figure.subplots(len(models), columns, squeeze=False), models, strict=True
    ):
        for ax in axes[len(gradients) :]:
            ax.set_axis_off()
        for ax, (layer, gradient) in zip(axes, gradients.items(), strict=False):
            show_image(ax, gradient, cmap=COLORS, norm=PowerNorm(0.5, 0, gradient.max()))
            lines = LineCollection(_field_outline(gradient), colors=OUTLINE, linewidths=1.2)
            ax.add_collection(lines)
            whole = [(0, side) for side in gradient.shape]
            (top, bottom), (left, right) = np.broadcast_to(theory.get(layer) or whole, (2, 2))
            if (bottom - top, right - left) != gradient.shape:
                style = dict(fill=False, edgecolor="white", linestyle="--", linewidth=1.2)
                corner = left - 0.5, top - 0.5
                ax.add_patch(Rectangle(corner, right - left, bottom - top, **style))
                has_theory = True
            ax.set_title(layer_title(layer, phrases), fontsize=9, pad=3)
            side = area(gradient) ** 0.5
            ax.set_xlabel(phrases("field_side", side=side), fontsize=8, labelpad=2)
        axes[0].set_ylabel(name, fontsize=9)
    if has_theory:
        caption.append(phrases("field_dashed"))
    figure.supxlabel("\n".join(caption), x=0.01, ha="left", fontsize=8, color="0.2")
    return finish(figure)


def layer_title(layer, phrases=ENGLISH):
    """Translate a layer name of `analysis.effective_fields`, such as "block 3" or "layer1"."""
    kind, _, number = layer.partition(" ")
    return phrases("block", block=number) if kind == "block" else layer


def _cell_side(gradient):
    """Return the side of the square cells of a gradient's outline, in pixels."""
    return -(-max(gradient.shape) // MAX_CELLS)


def _field_outline(gradient):
    """Outline the smallest area that holds SHARE of a gradient, as in `overlay.outline`.

    In large images the area is made of square cells: single pixels would be too scattered for an
    outline.
    """
    size = _cell_side(gradient)
    rows, columns = (-(-side // size) for side in gradient.shape)
    padded = np.zeros((rows * size, columns * size))
    padded[: gradient.shape[0], : gradient.shape[1]] = gradient
    sums = padded.reshape(rows, size, columns, size).sum((1, 3))
    image_edges = np.array(gradient.shape[::-1]) - 0.5
    lines = (np.array(outline(mass_mask(sums, SHARE))) + 0.5) * size - 0.5
    return np.minimum(lines, image_edges)


def saliency_grid(images, titles, models, *, phrases=ENGLISH):
    """Draw one row per image: Grad-CAM by stage for a CNN, attention by block for a ViT.

    Args:
      images: sequence of uint8 [h, w, c].
      titles: text below each image.
      models: list of dicts with the keys
        "name": name of the model;
        "maps": {layer: [b, rows, columns]};
        "predicted": names of the predicted classes [b], or None without a classifier;
        "query": for a ViT, the query of the attention, such as "[CLS]";
        "prefix": for a ViT, the number of tokens before the patches;
        "views" (optional): the model's images, if they differ from `images`.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    panels = []
    for model in models:
        panel = {"name": model["name"], "views": model.get("views", images), "columns": {}}
        for layer, maps in model["maps"].items():
            if "query" not in model:
                maps = maps / np.maximum(maps.sum((1, 2), keepdims=True), 1e-12)
            panel["columns"][layer_title(layer, phrases)] = maps
        panel["gradcam"] = "query" not in model
        panel["note"] = phrases("gradcam")
        if "query" in model:
            panel["uniform"] = uniform_share(maps.shape[1:], model["prefix"])
            panel["note"] = phrases("attention_mean", query=model["query"])
        if model["predicted"] is not None:
            names = [truncate(name, MAX_CHARS) for name in model["predicted"]]
            panel["labels"] = [phrases("predicted", name=name) for name in names]
        panels.append(panel)
    return attention_grid(images, panels, titles=titles, style="overlay", phrases=phrases)
