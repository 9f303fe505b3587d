"""Shared style of the figures: colors, axes, images and truncated labels."""

import unicodedata

from matplotlib.ticker import MaxNLocator

from vit_jax.errors import printable
from vit_jax.figures.fonts import set_fonts

# The color-blind safe palette of Okabe and Ito.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
WIDE_CHAR_WIDTH = 1.75  # width of a Hangul or Chinese character, in Latin letters


def finish(figure, title=""):
    """Add the title, set fonts that cover all characters, and return the figure."""
    if title:
        figure.suptitle(title, fontsize=11)
    return set_fonts(figure)


def despine(ax, grid=True):
    """Remove the top and right spines and, optionally, draw a light grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    if grid:
        ax.grid(color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)


def integer_ticks(ax, nbins="auto"):
    """Place the ticks of the x axis at integers."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=nbins))
    ax.xaxis.set_major_formatter("{x:,.0f}")


def show_image(ax, image, **style):
    """Show an image, uint8 [h, w, 1 or 3], or a map [h, w] without interpolation and ticks."""
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
        style = dict(cmap="gray", vmin=0, vmax=255) | style
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(linewidth=0.5, color="0.5")
    return ax.imshow(image, **dict(interpolation="none") | style)


def text_width(text):
    """Estimate the width of a text in Latin letters."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + (WIDE_CHAR_WIDTH - 1) * wide


def truncate(text, max_chars, keep_end=True):
    """Shorten a name to `max_chars` printable characters, with "…" for its start or its end."""
    text = printable(text)
    max_chars = int(max_chars)
    if len(text) <= max_chars:
        return text
    return "…" + text[1 - max_chars :] if keep_end else text[: max_chars - 1] + "…"
