"""What models look at: images, and beside them attention maps, and features as colors."""

import textwrap

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from vit_jax.analysis.attention import head_map, mass_mask
from vit_jax.figures.fonts import fit
from vit_jax.figures.overlay import COLORS, outline, overlay, spotlight

OUTLINE = "#00D5FF"  # none of the colors of a map
KEEP = 0.6  # share of the attention inside the outline, as in figure 1 of arXiv:2104.14294
CELLS, ALL = (1.3, 2.2), 9  # inches: the least and greatest side of a picture; of all, if it can be
GAP, BETWEEN = 0.1, 0.3  # space beside a picture, and between models
NARROWEST = 4.6  # a model, for its name and notes
LINE, HEAD, FOOT = 0.2, 0.6, 0.16  # of text below a picture; above all; a line more of a text
PER_INCH = 15  # characters of small type


def seeing(images, models, *, titles=None, style="map", keep=KEEP):
    """-> matplotlib Figure, a row an image: the image, then for each model maps and colors.

    images: uint8 [h, w, 1 or 3] each. models: dicts with "name", of the weights; "note", lines
    such as layer and resolution; "columns" {title: maps [b, rows, columns]}; and if wanted
    "labels", what stands left of each row, and "colors" [b, rows, columns, 3] in [0, 1]. titles:
    text below each image. style: "map" alone, "overlay" over the image, or "mask", the image with
    what is outside the fewest patches that hold the share `keep` darkened. The others have an
    outline around these patches.
    Each map has its own scale, and its maximum is written below it. A patch is a square: nothing
    is smoothed.
    """
    titles = titles or [""] * len(images)
    counts = [len(model["columns"]) + ("colors" in model) for model in models]
    cell = float(np.clip(ALL / (1 + sum(counts)), *CELLS))
    widths = [max(count * (cell + GAP), NARROWEST) for count in counts]  # of the models, in inches
    start = cell + GAP + BETWEEN
    lefts = [start + sum(widths[:i]) + i * BETWEEN for i in range(len(models))]
    width = GAP + lefts[-1] + widths[-1]
    legend = _wrap(_legend(models, style, keep), width - start)
    notes = [_wrap(model["note"], inches) for model, inches in zip(models, widths, strict=True)]
    head = HEAD + FOOT * max(map(len, notes))
    height = head + len(images) * (cell + LINE) + FOOT * (len(legend) + 2)
    figure = Figure(figsize=(width, height))

    def place(x, row):
        left, bottom = GAP + x, height - head - cell - row * (cell + LINE)
        axis = figure.add_axes((left / width, bottom / height, cell / width, cell / height))
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set(linewidth=0.5, color="0.5")
        return axis

    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        axis = place(0, row)
        axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
        axis.set_xlabel(short(title, cell * PER_INCH), fontsize=8, labelpad=2)
        axis.set_title("" if row else "image", fontsize=9, pad=3)
        for i, model in enumerate(models):
            axes = [place(lefts[i] + j * (cell + GAP), row) for j in range(counts[i])]
            _draw(axes, model, row, image, style, keep)
            if row == 0:
                _label(axes, model, notes[i], widths[i])
    _explain(figure, legend, start + GAP, cell, style)
    return fit(figure)


def drawing(names, images, seen, heads, which, rows=None, **options):
    """`seeing` of what `vit_jax.look.see` has seen with each of some models.

    names, images: of all the images; which: those to draw, by index. heads and rows: as `panel`
    has them. options: of `seeing`.
    """
    repeated = [i for i in which for _ in (rows or [0])]
    models = [panel(one, heads, list(which), rows) for one in seen]
    titles = [names[i] for i in repeated]
    return seeing([images[i] for i in repeated], models, titles=titles, **options)


def panel(seen, heads, images, rows=None):
    """One of the `models` of `seeing`, of what `vit_jax.look.see` has seen.

    heads: numbers, "mean", "max", "rollout". images: indices of those to draw. rows: positions in
    `seen.layers`, for each image a row a layer and a column a head; None: a row an image, and its
    layers and heads side by side, and the features.
    """
    count, depth = seen.maps.shape[2], seen.depth
    layers = [f"layer {layer} of {depth}" for layer in seen.layers]
    drawn = {head_title(head, count): drawn_map(seen, head)[images] for head in heads}
    note = f"attention of {seen.whose}"
    if rows is not None:
        columns = {
            title: maps[:, rows].reshape(-1, *maps.shape[2:]) for title, maps in drawn.items()
        }
        extra = {"labels": [layers[row] for _ in images for row in rows]}
    else:
        columns, extra = {}, {"colors": seen.colors[images]}
        for i, layer in enumerate(layers):
            for title, maps in drawn.items():
                one = layer if len(heads) == 1 else f"{layer}, {title}"
                columns[one if len(layers) > 1 else title] = maps[:, i]
        common = layers[0] if len(layers) == 1 else next(iter(drawn))
        note += f", {common}" if 1 in (len(layers), len(heads)) else ""
    return {"name": seen.name, "note": f"{note}\n{seen.size}", "columns": columns} | extra


def drawn_map(seen, head):
    """[images, layers, rows, columns] of what `vit_jax.look.see` has seen."""
    return seen.rollout if head == "rollout" else head_map(seen.maps, head)


def head_title(head, count):
    """What stands above the map of this head, of so many."""
    if head in ("mean", "max"):
        return f"{head} of {count} heads" if count > 1 else "1 head"
    return head if head == "rollout" else f"head {head}"


def _draw(axes, model, row, image, style, keep):
    """One image of one model: its maps, and the colors."""
    for axis, maps in zip(axes, model["columns"].values(), strict=False):
        values = np.asarray(maps[row], np.float64)
        top, (rows, columns) = values.max(), values.shape
        mask = mass_mask(values, keep)
        place = dict(interpolation="nearest", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
        if style == "map":
            axis.imshow(values, cmap=COLORS, vmin=0, vmax=top or 1, **place)
        elif style == "overlay":
            axis.imshow(overlay(image, values), **place)
        else:
            axis.imshow(spotlight(image, mask), **place)
        if style != "mask":
            thin = dict(colors=OUTLINE, linewidths=np.clip(10 / rows, 0.4, 1.4), clip_on=False)
            axis.add_collection(LineCollection(outline(mask), **thin))
        axis.set_xlabel(f"max {100 * top:.3g}%", fontsize=7, labelpad=2, color="0.3")
    if "colors" in model:
        axes[-1].imshow(model["colors"][row], interpolation="nearest")
    if "labels" in model:
        axes[0].set_ylabel(model["labels"][row], fontsize=9, labelpad=3)


def _label(axes, model, note, width):
    """Above the first row: which weights, and what each column is."""
    for axis, name in zip(axes, [*model["columns"], "features"], strict=False):
        axis.set_title(name, fontsize=9, pad=3)
    place = dict(xytext=(0, 20), textcoords="offset points", xycoords="axes fraction")
    axes[0].annotate("\n".join(note), (0, 1), **place, fontsize=8, linespacing=1.3)
    name = short(model["name"], width * PER_INCH * 0.75)
    place["xytext"] = (0, 22 + 72 * FOOT * len(note))
    axes[0].annotate(name, (0, 1), **place, fontsize=10, fontweight="bold")


def _legend(models, style, keep):
    lines = ["Attention: the share of it that a patch receives. Every map has its own scale."]
    if style == "overlay":
        lines = [f"{lines[0][:-1]}, and lies over the image in gray."]
    shown = {"map": "Outline", "overlay": "Outline", "mask": "Lit"}[style]
    lines += [
        f"{shown}: the fewest patches that hold {keep:.0%} of what the map's patches receive."
    ]
    if any("rollout" in text for model in models for text in (model["note"], *model["columns"])):
        lines += ["Rollout: through all layers up to the one named (arXiv:2005.00928)."]
    if any("colors" in model for model in models):
        lines += [
            "Features: the first three principal components of the patches of all these images, "
            "as red, green and blue; the colors of one model mean nothing in another."
        ]
    return "\n".join(lines)


def _explain(figure, lines, left, cell, style):
    """Below the last row: the color scale, and how to read the rest."""
    width, height = figure.get_size_inches()
    top = FOOT * (len(lines) + 0.3)
    if style != "mask":
        axis = figure.add_axes((GAP / width, top / height, cell / width, 0.12 / height))
        bar = figure.colorbar(ScalarMappable(cmap=COLORS), cax=axis, orientation="horizontal")
        bar.set_ticks([0, 1], labels=["0", "max"], fontsize=8)
        for label, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
            label.set_horizontalalignment(side)
        bar.ax.tick_params(length=2, pad=1)
    for i, line in enumerate(lines):
        y = (top - FOOT * i) / height
        figure.text(left / width, y, line, fontsize=8, color="0.2")


def _wrap(text, inches):
    """Lines of small type that fit in so many inches."""
    lines = [textwrap.wrap(line, int(inches * PER_INCH)) for line in text.splitlines()]
    return [part for line in lines for part in line]


def short(text, most):
    """At most so many characters, keeping the end."""
    return text if len(text) <= most else "…" + text[1 - int(most) :]
