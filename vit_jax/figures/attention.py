"""What models look at: images, and beside them attention maps, and features as colors."""

import textwrap

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from vit_jax.analysis.attention import head_map, mass_mask
from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.overlay import COLORS, OUTLINE, outline, overlay, spotlight
from vit_jax.figures.style import finish, letters, picture, short

KEEP = 0.6  # share of the attention inside the outline, as in figure 1 of arXiv:2104.14294
# Inches: the least and greatest side of an image; the width of the figure, if it can be that.
MIN_CELL, MAX_CELL, WIDTH = 1.3, 2.2, 9
GAP, BETWEEN = 0.1, 0.3  # beside an image, and between models
MIN_WIDTH = 4.6  # of a model, for its name and note
LINE, HEAD, FOOT = 0.2, 0.6, 0.16  # of text below an image; above all; a line more of a text
LETTERS_PER_INCH = 15  # of small type
PARTS = ("gradcam", "rollout")  # what may be among the maps of a model and is explained


def attention_grid(images, models, *, titles=None, style="map", keep=KEEP, phrases=ENGLISH):
    """Draw a row per image: the image, then for each model its maps and colors.

    Each map has its own scale, and its maximum is written below it. A patch is a square: nothing is
    smoothed.

    Args:
      images: uint8 [h, w, 1 or 3] each.
      models: dicts with "name", of the weights; "note", lines such as layer and resolution;
        "columns" {title: maps [b, rows, columns]}; optionally "labels", text left of each row,
        "colors" [b, rows, columns, 3] in [0, 1], "views", its images where they differ from
        `images`, and "rollout" or "gradcam", whether there are such maps. `panel` makes them.
      titles: text below each image.
      style: "map" alone, "overlay" over the image, or "mask", the image darkened outside the
        fewest patches that hold the share `keep`, which the other styles outline.
      keep: see `style`.
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.
    """
    titles = titles or [""] * len(images)
    counts = [len(model["columns"]) + ("colors" in model) for model in models]
    cell = float(np.clip(WIDTH / (1 + sum(counts)), MIN_CELL, MAX_CELL))
    widths = [max(count * (cell + GAP), MIN_WIDTH) for count in counts]  # of the models, inches
    start = cell + GAP + BETWEEN
    lefts = [start + sum(widths[:i]) + i * BETWEEN for i in range(len(models))]
    width = GAP + lefts[-1] + widths[-1]
    legend = _wrap(_legend(models, style, keep, phrases), width - start)
    notes = [_wrap(model["note"], inches) for model, inches in zip(models, widths, strict=True)]
    head = HEAD + FOOT * max(map(len, notes))
    height = head + len(images) * (cell + LINE) + FOOT * (len(legend) + 2)
    figure = Figure(figsize=(width, height))

    def place(x, row):
        left, bottom = GAP + x, height - head - cell - row * (cell + LINE)
        return figure.add_axes((left / width, bottom / height, cell / width, cell / height))

    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        axis = place(0, row)
        picture(axis, image, interpolation=None)
        axis.set_xlabel(short(title, cell * LETTERS_PER_INCH), fontsize=8, labelpad=2)
        axis.set_title("" if row else phrases("image"), fontsize=9, pad=3)
        for i, model in enumerate(models):
            axes = [place(lefts[i] + j * (cell + GAP), row) for j in range(counts[i])]
            _draw(axes, model, row, model.get("views", images)[row], style, keep, phrases)
            if row == 0:
                _label(axes, model, notes[i], widths[i], phrases)
    _explain(figure, legend, start + GAP, cell, style, phrases)
    return finish(figure)


def drawing(names, images, seen, heads, which, rows=None, *, phrases=ENGLISH, **options):
    """`attention_grid` of what `attention_maps.extract` returned for each of some models.

    Args:
      names, images: of all the images.
      seen: the results of `see`.
      heads, rows: as in `panel`.
      which: indices of the images to draw.
      phrases, options: of `attention_grid`.
    """
    repeated = [i for i in which for _ in (rows or [0])]
    models = [panel(one, heads, list(which), rows, phrases=phrases) for one in seen]
    titles = [names[i] for i in repeated]
    return attention_grid(
        [images[i] for i in repeated], models, titles=titles, phrases=phrases, **options
    )


def panel(seen, heads, images, rows=None, *, phrases=ENGLISH):
    """One of the `models` of `attention_grid`, of what `attention_maps.extract` returned.

    Args:
      seen: the result of `see`.
      heads: numbers, "mean", "max", "rollout".
      images: indices of those to draw.
      rows: positions in `seen.layers`: each image has a row per layer and a column per head. None:
        each image has one row, with its layers and heads side by side, and the features.
      phrases: the labels, a `Catalog` of "figures".
    """
    layers = [phrases("layer_of", layer=layer, depth=seen.depth) for layer in seen.layers]
    drawn = {head_title(head, seen, phrases): drawn_map(seen, head)[images] for head in heads}
    note = phrases("attention_of", whose=whose(seen, phrases))
    found = {"name": seen.name, "rollout": "rollout" in heads, "columns": {}}
    if rows is not None:
        for title, maps in drawn.items():
            found["columns"][title] = maps[:, rows].reshape(-1, *maps.shape[2:])
        found["labels"] = [layers[row] for _ in images for row in rows]
    else:
        found["colors"] = seen.colors[images]
        for i, layer in enumerate(layers):
            for title, maps in drawn.items():
                one = layer if len(heads) == 1 else f"{layer}, {title}"
                found["columns"][one if len(layers) > 1 else title] = maps[:, i]
        common = layers[0] if len(layers) == 1 else next(iter(drawn))
        note += f", {common}" if 1 in (len(layers), len(heads)) else ""
    return found | {"note": f"{note}\n{geometry(seen, phrases)}"}


def drawn_map(seen, head):
    """[images, layers, rows, columns] of what `attention_maps.extract` returned."""
    return seen.rollout if head == "rollout" else head_map(seen.maps, head)


def head_title(head, seen, phrases=ENGLISH):
    """The title of the map of a head: a number, "mean", "max" or "rollout"."""
    count = seen.maps.shape[2]
    if head == "rollout":
        return phrases("rollout")
    if head in ("mean", "max"):
        return phrases(f"{head}_of", heads=count) if count > 1 else phrases("single_head")
    return phrases("head", head=head)


def whose(seen, phrases=ENGLISH):
    """The token whose attention `attention_maps.extract` returned."""
    return "[CLS]" if seen.prefix else phrases("average_patch")


def geometry(seen, phrases=ENGLISH):
    """A line with the resolution, the patches, and what uniform attention would be."""
    rows, columns = seen.maps.shape[-2:]
    text = phrases("geometry", image=seen.image, rows=rows, columns=columns, patch=seen.patch)
    if seen.trained_grid != rows:
        text += phrases("resized", grid=seen.trained_grid)
    return text + phrases("even_share", share=100 / (rows * columns + seen.prefix))


def _draw(axes, model, row, image, style, keep, phrases):
    """One image of one model: its maps, and the colors."""
    for axis, maps in zip(axes, model["columns"].values(), strict=False):
        values = np.asarray(maps[row], np.float64)
        top, (rows, columns) = values.max(), values.shape
        mask = mass_mask(values, keep)
        place = dict(extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
        if style == "map":
            picture(axis, values, cmap=COLORS, vmin=0, vmax=top or 1, **place)
        elif style == "overlay":
            picture(axis, overlay(image, values), **place)
        else:
            picture(axis, spotlight(image, mask), **place)
        if style != "mask":
            thin = dict(colors=OUTLINE, linewidths=np.clip(10 / rows, 0.4, 1.4), clip_on=False)
            axis.add_collection(LineCollection(outline(mask), **thin))
        axis.set_xlabel(phrases("maximum", share=100 * top), fontsize=7, labelpad=2, color="0.3")
    if "colors" in model:
        picture(axes[-1], model["colors"][row])
    if "labels" in model:
        axes[0].set_ylabel(model["labels"][row], fontsize=9, labelpad=3)


def _label(axes, model, note, width, phrases):
    """Above the first row: which weights, and what each column is."""
    for axis, name in zip(axes, [*model["columns"], phrases("features")], strict=False):
        axis.set_title(name, fontsize=9, pad=3)
    place = dict(xytext=(0, 20), textcoords="offset points", xycoords="axes fraction")
    axes[0].annotate("\n".join(note), (0, 1), **place, fontsize=8, linespacing=1.3)
    name = short(model["name"], width * LETTERS_PER_INCH * 0.75)
    place["xytext"] = (0, 22 + 72 * FOOT * len(note))
    axes[0].annotate(name, (0, 1), **place, fontsize=10, fontweight="bold")


def _legend(models, style, keep, phrases):
    """How to read the figure."""
    lines = []
    if not all(model.get("gradcam") for model in models):
        lines.append(phrases("explain_overlay" if style == "overlay" else "explain_map"))
    lines += [
        phrases(f"explain_{part}") for part in PARTS if any(model.get(part) for model in models)
    ]
    lines.append(phrases("explain_lit" if style == "mask" else "explain_outline", share=keep))
    if any("colors" in model for model in models):
        lines.append(phrases("explain_features"))
    return "\n".join(lines)


def _explain(figure, lines, left, cell, style, phrases):
    """Below the last row: the color scale, and how to read the rest."""
    width, height = figure.get_size_inches()
    top = FOOT * (len(lines) + 0.3)
    if style != "mask":
        axis = figure.add_axes((GAP / width, top / height, cell / width, 0.12 / height))
        figure.colorbar(ScalarMappable(cmap=COLORS), cax=axis, orientation="horizontal", ticks=[])
        place = dict(xycoords="axes fraction", va="top", fontsize=8)
        axis.annotate("0", (0, -0.3), **place)
        axis.annotate(phrases("scale_maximum"), (1, -0.3), **place, ha="right")
    place = dict(va="top", fontsize=8, color="0.2", linespacing=1.4)
    figure.text(left / width, (top + FOOT) / height, "\n".join(lines), **place)


def _wrap(text, inches):
    """Lines of small type that fit in so many inches."""
    found = []
    for line in text.splitlines():
        most = inches * LETTERS_PER_INCH * len(line) / letters(line)
        found += textwrap.wrap(line, max(1, int(most)))
    return found
