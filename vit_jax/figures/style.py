"""What the figures share: colors, axes without clutter, images, and texts cut to their place."""

import unicodedata

from matplotlib.ticker import MaxNLocator

from vit_jax.figures.fonts import fit

# Okabe and Ito's colors, which color-blind people tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
WIDE_LETTER = 1.75  # width of a Hangul or Chinese character, in letters


def finish(figure, title=""):
    """The figure with its title, its texts in fonts that have their characters."""
    if title:
        figure.suptitle(title, fontsize=11)
    return fit(figure)


def plain(axis, grid=True):
    """Leave out the frame at the top and the right; draw a pale grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    if grid:
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)


def count_along(axis, nbins="auto"):
    """Whole numbers at the ticks of the x axis."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=nbins))
    axis.xaxis.set_major_formatter("{x:,.0f}")


def picture(axis, image, **style):
    """Show an image, uint8 [h, w, 1 or 3], or a map [h, w], pixel by pixel, in a thin frame."""
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
        style = dict(cmap="gray", vmin=0, vmax=255) | style
    frame(axis)
    return axis.imshow(image, **dict(interpolation="none") | style)


def frame(axis):
    """A thin frame without ticks."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set(linewidth=0.5, color="0.5")


def letters(text):
    """Width of a text in Latin letters, about."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + (WIDE_LETTER - 1) * wide


def short(text, most, keep_end=True):
    """At most so many characters, keeping the end or the beginning."""
    most = int(most)
    if len(text) <= most:
        return text
    return "…" + text[1 - most :] if keep_end else text[: most - 1] + "…"
