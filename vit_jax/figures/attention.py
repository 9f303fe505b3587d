"""Grids of images with attention maps, Grad-CAM maps and patch features beside them."""

import textwrap

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from vit_jax.analysis.attention import FLAT_SCALE, MIN_CONTRAST, color_scale, head_map, mass_mask
from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.overlay import (
    COLORS,
    OUTLINE,
    enlarge,
    outline,
    overlay,
    spotlight,
    stretch,
)
from vit_jax.figures.style import finish, show_image, text_width, truncate
from vit_jax.schema import pair

KEEP = 0.6  # share of the attention inside the outline, as in figure 1 of arXiv:2104.14294
# Lengths in inches.
MIN_CELL = 1.3  # side of an image
MAX_CELL = 2.2
WIDTH = 9  # preferred width of the figure; MIN_CELL and MAX_CELL take precedence
CELL_GAP = 0.1  # between the images of a model
MODEL_GAP = 0.3  # between models
MIN_MODEL_WIDTH = 4.6  # room for the name and the note of a model
LABEL_HEIGHT = 0.32  # two lines of text below an image
HEADER_HEIGHT = 0.6  # titles above the first row
LINE_HEIGHT = 0.16  # each line of a note or of the legend
CHARS_PER_INCH = 15  # Latin letters in the font size of the notes
MIN_PIXELS = 224  # images with interpolated maps are enlarged to about this height
METHODS = ("gradcam", "rollout")  # keys of a model that select the phrases `explain_METHOD`


def attention_grid(
    images,
    models,
    *,
    titles=None,
    style="map",
    keep=KEEP,
    interpolation="nearest",
    phrases=ENGLISH,
):
    """Draw one row per image: the image, then the maps and the features of each model.

    Each map has its own color scale, and its maximum is printed below it. The scale of a map of
    attention is that of `color_scale`; a nearly uniform one is marked and has no outline.

    Args:
      images: sequence of uint8 [h, w, 1 or 3].
      models: list of dicts, for example from `panel`, with the keys
        "name": name of the model;
        "note": text below the name, such as the layer and the resolution;
        "columns": {title: maps [b, rows, columns]};
        "uniform" (optional): share of a patch in uniform attention; without it, the maps are not
          attention;
        "labels" (optional): text left of each row;
        "colors" (optional): features as RGB [b, rows, columns, 3] in [0, 1];
        "views" (optional): the model's images, if they differ from `images`;
        "rollout", "gradcam" (optional): whether the columns contain such maps.
      titles: text below each image.
      style: "map" draws the map alone; "overlay" draws it over the image; "mask" darkens the image
        outside the smallest set of patches that holds the share `keep` of the map. The first two
        styles outline that set instead.
      keep: share of the map's sum inside the mask or the outline.
      interpolation: of the maps, "nearest", one square per patch, or "bilinear". Masks and outlines
        consist of whole patches.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    titles = titles or [""] * len(images)
    counts = [len(model["columns"]) + ("colors" in model) for model in models]
    cell = float(np.clip(WIDTH / (1 + sum(counts)), MIN_CELL, MAX_CELL))
    widths = [max(count * (cell + CELL_GAP), MIN_MODEL_WIDTH) for count in counts]
    start = cell + CELL_GAP + MODEL_GAP
    lefts = [start + sum(widths[:i]) + i * MODEL_GAP for i in range(len(models))]
    width = CELL_GAP + lefts[-1] + widths[-1]
    legend = _wrap(_legend_text(models, style, keep, phrases), width - start)
    notes = [_wrap(model["note"], inches) for model, inches in zip(models, widths, strict=True)]
    header = HEADER_HEIGHT + LINE_HEIGHT * max(map(len, notes))
    row_height = cell + LABEL_HEIGHT
    height = header + len(images) * row_height + LINE_HEIGHT * (len(legend) + 2)
    figure = Figure(figsize=(width, height))

    def add_axes(x, row):
        left = CELL_GAP + x
        bottom = height - header - cell - row * row_height
        return figure.add_axes((left / width, bottom / height, cell / width, cell / height))

    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        ax = add_axes(0, row)
        show_image(ax, image, interpolation=None)
        ax.set_xlabel(truncate(title, cell * CHARS_PER_INCH), fontsize=8, labelpad=2)
        ax.set_title("" if row else phrases("image"), fontsize=9, pad=3)
        for i, model in enumerate(models):
            axes = [add_axes(lefts[i] + j * (cell + CELL_GAP), row) for j in range(counts[i])]
            view = model.get("views", images)[row]
            _draw_row(axes, model, row, view, style, keep, interpolation, phrases)
            if row == 0:
                _draw_header(axes, model, notes[i], widths[i], phrases)
    _draw_legend(figure, legend, start + CELL_GAP, cell, style, phrases)
    return finish(figure)


def attention_figure(
    names, images, extracted, heads, indices, rows=None, *, phrases=ENGLISH, **options
):
    """Draw the results of `attention_maps.extract` for one or more models.

    Args:
      names: names of all images.
      images: all images, uint8 [h, w, 1 or 3] each.
      extracted: results of `attention_maps.extract`, one per model.
      heads: as in `panel`.
      indices: indices of the images to draw.
      rows: as in `panel`.
      phrases: `Catalog` of the section "figures".
      **options: passed to `attention_grid`.

    Returns:
      A matplotlib `Figure`.
    """
    repeated = [i for i in indices for _ in (rows or [0])]
    models = [panel(result, heads, list(indices), rows, phrases=phrases) for result in extracted]
    titles = [names[i] for i in repeated]
    return attention_grid(
        [images[i] for i in repeated], models, titles=titles, phrases=phrases, **options
    )


def panel(extracted, heads, images, rows=None, *, phrases=ENGLISH):
    """Convert the result of `attention_maps.extract` to an entry of `models` in `attention_grid`.

    Args:
      extracted: result of `attention_maps.extract`.
      heads: list of head indices, "mean", "max" or "rollout".
      images: indices of the images to draw.
      rows: indices into `extracted.layers`: each image gets one row per layer and one column per
        head. None: each image gets one row, with all layers and heads side by side, followed by
        the features.
      phrases: `Catalog` of the section "figures".

    Returns:
      A dict, see `attention_grid`.
    """
    depth = extracted.depth
    layers = [phrases("layer_of", layer=layer, depth=depth) for layer in extracted.layers]
    titled = {
        head_title(head, extracted, phrases): select_maps(extracted, head)[images] for head in heads
    }
    note = phrases("attention_of", query=query_name(extracted, phrases))
    model = {"name": extracted.name, "rollout": "rollout" in heads, "columns": {}}
    model["uniform"] = uniform_share(extracted.maps.shape[-2:], extracted.prefix)
    if rows is not None:
        for title, maps in titled.items():
            model["columns"][title] = maps[:, rows].reshape(-1, *maps.shape[2:])
        model["labels"] = [layers[row] for _ in images for row in rows]
    else:
        model["colors"] = extracted.colors[images]
        for i, layer in enumerate(layers):
            for title, maps in titled.items():
                layer_and_head = layer if len(heads) == 1 else f"{layer}, {title}"
                model["columns"][layer_and_head if len(layers) > 1 else title] = maps[:, i]
        if len(layers) == 1:
            note += f", {layers[0]}"
        elif len(heads) == 1:
            note += f", {next(iter(titled))}"
    return model | {"note": f"{note}\n{describe_grid(extracted, phrases)}"}


def select_maps(extracted, head):
    """Return the maps [b, layers, rows, columns] of a head index, "mean", "max" or "rollout"."""
    return extracted.rollout if head == "rollout" else head_map(extracted.maps, head)


def head_title(head, extracted, phrases=ENGLISH):
    """Return the column title of a head index, "mean", "max" or "rollout"."""
    count = extracted.maps.shape[2]
    if head == "rollout":
        return phrases("rollout")
    if head in ("mean", "max"):
        return phrases(f"{head}_of", heads=count) if count > 1 else phrases("single_head")
    return phrases("head", head=head)


def query_name(extracted, phrases=ENGLISH):
    """Return the name of the query of the attention maps: [CLS] or the average patch."""
    return "[CLS]" if extracted.class_token else phrases("average_patch")


def describe_grid(extracted, phrases=ENGLISH):
    """Describe the image size, the patch grid and the share of a patch in uniform attention."""
    rows, columns = extracted.maps.shape[-2:]
    height, width = extracted.size
    sizes = dict(height=height, width=width, rows=rows, columns=columns)
    sizes["patch"] = "x".join(map(str, pair(extracted.patch)))
    text = phrases("geometry", **sizes)
    if extracted.trained_grid not in (None, (rows, columns)):
        old_rows, old_columns = extracted.trained_grid
        text += phrases("resized", rows=old_rows, columns=old_columns)
    share = uniform_share((rows, columns), extracted.prefix)
    return text + phrases("even_share", share=100 * share)


def uniform_share(grid, prefix):
    """Return the share of a patch in uniform attention; prefix: tokens before the patches."""
    rows, columns = grid
    return 1 / (rows * columns + prefix)


def describe_map(values, uniform, phrases=ENGLISH):
    """Describe a map [rows, columns] of attention: maximum, uniform share, nearly uniform or not.

    Returns:
      One or two lines of text.
    """
    shares = dict(maximum=100 * float(values.max()), uniform=100 * uniform)
    text = phrases("maximum_and_uniform", **shares)
    return f"{text}\n{phrases('nearly_uniform')}" if color_scale(values)[1] else text


def _draw_row(axes, model, row, image, style, keep, interpolation, phrases):
    """Draw the maps and features of one model for one image."""
    if interpolation != "nearest":
        image = enlarge(image, MIN_PIXELS)
    for ax, maps in zip(axes, model["columns"].values(), strict=False):
        values = np.asarray(maps[row], np.float64)
        top, nearly_uniform = values.max() or 1, False
        text = phrases("maximum", share=100 * values.max())
        if "uniform" in model:
            top, nearly_uniform = color_scale(values)
            text = describe_map(values, model["uniform"], phrases)
        rows, columns = values.shape
        mask = mass_mask(values, keep)
        extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
        if style == "map":
            if interpolation != "nearest":
                values = stretch(values, image.shape, interpolation)
            show_image(ax, values, cmap=COLORS, vmin=0, vmax=top, extent=extent)
        elif style == "overlay":
            colors = overlay(image, values, top=top, interpolation=interpolation)
            show_image(ax, colors, extent=extent)
        else:
            show_image(ax, spotlight(image, mask), extent=extent)
        if style != "mask" and not nearly_uniform:
            line = dict(colors=OUTLINE, linewidths=np.clip(10 / rows, 0.4, 1.4), clip_on=False)
            ax.add_collection(LineCollection(outline(mask), **line))
        ax.set_xlabel(text, fontsize=6.5, labelpad=2, color="0.3")
    if "colors" in model:
        show_image(axes[-1], model["colors"][row])
    if "labels" in model:
        axes[0].set_ylabel(model["labels"][row], fontsize=9, labelpad=3)


def _draw_header(axes, model, note, width, phrases):
    """Write the model's name, its note and the column titles above the first row."""
    for ax, name in zip(axes, [*model["columns"], phrases("features")], strict=False):
        ax.set_title(name, fontsize=9, pad=3)
    offset = dict(xytext=(0, 20), textcoords="offset points", xycoords="axes fraction")
    axes[0].annotate("\n".join(note), (0, 1), **offset, fontsize=8, linespacing=1.3)
    name = truncate(model["name"], width * CHARS_PER_INCH * 0.75)  # a larger font than the note's
    offset["xytext"] = (0, 22 + 72 * LINE_HEIGHT * len(note))
    axes[0].annotate(name, (0, 1), **offset, fontsize=10, fontweight="bold")


def _legend_text(models, style, keep, phrases):
    """Return the explanation of the maps, the outline and the features."""
    lines = []
    if style != "mask" and not all(model.get("gradcam") for model in models):
        lines.append(phrases("explain_overlay" if style == "overlay" else "explain_map"))
    lines += [
        phrases(f"explain_{method}")
        for method in METHODS
        if any(model.get(method) for model in models)
    ]
    if any("uniform" in model for model in models):
        text = phrases("explain_uniform", contrast=MIN_CONTRAST)
        if style != "mask":
            text += phrases("explain_uniform_scale", scale=FLAT_SCALE)
        lines.append(text)
    lines.append(phrases("explain_lit" if style == "mask" else "explain_outline", share=keep))
    if any("colors" in model for model in models):
        lines.append(phrases("explain_features"))
    return "\n".join(lines)


def _draw_legend(figure, lines, left, cell, style, phrases):
    """Draw the color bar and the explanation below the last row."""
    width, height = figure.get_size_inches()
    top = LINE_HEIGHT * (len(lines) + 0.3)
    if style != "mask":
        ax = figure.add_axes((CELL_GAP / width, top / height, cell / width, 0.12 / height))
        figure.colorbar(ScalarMappable(cmap=COLORS), cax=ax, orientation="horizontal", ticks=[])
        font = dict(xycoords="axes fraction", va="top", fontsize=8)
        ax.annotate("0", (0, -0.3), **font)
        ax.annotate(phrases("scale_maximum"), (1, -0.3), **font, ha="right")
    font = dict(va="top", fontsize=8, color="0.2", linespacing=1.4)
    figure.text(left / width, (top + LINE_HEIGHT) / height, "\n".join(lines), **font)


def _wrap(text, inches):
    """Wrap text to lines that fit into this width."""
    lines = []
    for line in text.splitlines():
        max_chars = inches * CHARS_PER_INCH * len(line) / text_width(line)
        lines += textwrap.wrap(line, max(1, int(max_chars)))
    return lines
