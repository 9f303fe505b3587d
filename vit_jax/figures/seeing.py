"""What models look at: images, and beside them attention maps, and features as colours."""

import textwrap

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from vit_jax.attention import mass_mask

COLORS, OUTLINE = "magma", "#00D5FF"  # even to the eye, also without colour; none of its colours
KEEP = 0.6  # share of the attention inside the outline, as in figure 1 of arXiv:2104.14294
CELL, GAP, BETWEEN = 1.3, 0.1, 0.3  # inches: side of a picture, space beside it, between models
LINE, HEAD, FOOT = 0.2, 0.6, 0.16  # of text below a picture; above all; a line more of a text
PER_INCH = 15  # characters of small type
LEGEND = (
    "Attention: the share of it that a patch receives. Every map has its own scale.",
    f"Outline: the fewest patches that hold {KEEP:.0%} of the mean of the heads.",
    "Features: the first three principal components of the patches of all these images, as red, "
    "green and blue; the colours of one model mean nothing in another.",
)


def seeing(images, models, *, titles=None, heads=(0, 1, 2)):
    """-> matplotlib Figure, a row an image: the image, then for each model maps and colours.

    images: uint8 [h, w, 1 or 3] each. models: dicts with "name", of the weights; "note", lines
    such as layer and resolution; "maps" [b, h, rows, columns], attention of every head;
    "colours" [b, rows, columns, 3] in [0, 1]. titles: text below each image. heads: which are
    drawn beside their mean; those that a model does not have are left out.
    Each map has its own scale, and its maximum is written below it. A patch is a square: nothing
    is smoothed.
    """
    titles = titles or [""] * len(images)
    counts = [model["maps"].shape[1] for model in models]
    shown = [[head for head in heads if head < count > 1] for count in counts]
    widths = [(2 + len(chosen)) * (CELL + GAP) for chosen in shown]  # of the models, in inches
    start = CELL + GAP + BETWEEN
    lefts = [start + sum(widths[:i]) + i * BETWEEN for i in range(len(models))]
    width = GAP + lefts[-1] + widths[-1]
    legend = _wrap("\n".join(LEGEND), width - start)
    notes = [_wrap(model["note"], inches) for model, inches in zip(models, widths, strict=True)]
    head = HEAD + FOOT * max(map(len, notes))
    height = head + len(images) * (CELL + LINE) + FOOT * (len(legend) + 2)
    figure = Figure(figsize=(width, height))

    def place(x, row):
        left, bottom = GAP + x, height - head - CELL - row * (CELL + LINE)
        axis = figure.add_axes((left / width, bottom / height, CELL / width, CELL / height))
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set(linewidth=0.5, color="0.5")
        return axis

    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        axis = place(0, row)
        grey = image.shape[-1] == 1
        axis.imshow(
            image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255
        )
        axis.set_xlabel(_short(title, CELL * PER_INCH), fontsize=8, labelpad=2)
        if row == 0:
            axis.set_title("image", fontsize=9, pad=3)
        for model, chosen, note, left in zip(models, shown, notes, lefts, strict=True):
            axes = [place(left + i * (CELL + GAP), row) for i in range(2 + len(chosen))]
            _draw(axes, model, row, chosen)
            if row == 0:
                _label(axes, model, chosen, note)
    _explain(figure, legend, start + GAP)
    return figure


def _draw(axes, model, row, chosen):
    """One image of one model: the mean of its maps with the outline, some heads, the colours."""
    maps = np.asarray(model["maps"][row], np.float64)
    mean = maps.mean(0)
    for axis, values in zip(axes[:-1], [mean, *maps[list(chosen)]], strict=True):
        top = values.max()
        axis.imshow(values, cmap=COLORS, vmin=0, vmax=top or 1, interpolation="nearest")
        axis.set_xlabel(f"max {top:.1%}", fontsize=7, labelpad=2, color="0.3")
    lines = outline(mass_mask(mean, KEEP))
    style = dict(colors=OUTLINE, linewidths=min(1.4, 16 / len(mean)), clip_on=False)
    axes[0].add_collection(LineCollection(lines, **style))
    axes[-1].imshow(model["colours"][row], interpolation="nearest")


def outline(mask):
    """The border of a mask [h, w] as line segments in imshow's coordinates, [[(x, y), (x, y)]]."""
    padded = np.pad(np.asarray(mask, int), 1)
    ys, xs = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    lines = [[(x - 0.5, y - 0.5), (x + 0.5, y - 0.5)] for y, x in zip(ys, xs, strict=True)]
    ys, xs = np.nonzero(np.diff(padded, axis=1)[1:-1])
    return lines + [[(x - 0.5, y - 0.5), (x - 0.5, y + 0.5)] for y, x in zip(ys, xs, strict=True)]


def _label(axes, model, chosen, note):
    """Above the first row: which weights, and what each column is."""
    count = model["maps"].shape[1]
    names = [f"mean of {count} heads" if count > 1 else "1 head"]
    names += [*(f"head {h}" for h in chosen), "features"]
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name, fontsize=9, pad=3)
    place = dict(xytext=(0, 20), textcoords="offset points", xycoords="axes fraction")
    axes[0].annotate("\n".join(note), (0, 1), **place, fontsize=8, linespacing=1.3)
    name = _short(model["name"], len(axes) * (CELL + GAP) * PER_INCH * 0.75)
    place["xytext"] = (0, 22 + 72 * FOOT * len(note))
    axes[0].annotate(name, (0, 1), **place, fontsize=10, fontweight="bold")


def _explain(figure, lines, left):
    """Below the last row: the colour scale, and how to read the rest."""
    width, height = figure.get_size_inches()
    top = FOOT * (len(lines) + 0.3)
    axis = figure.add_axes((GAP / width, top / height, CELL / width, 0.12 / height))
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


def _short(text, most):
    """At most so many characters, keeping the end."""
    return text if len(text) <= most else "…" + text[1 - int(most) :]
