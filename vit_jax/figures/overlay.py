"""A map of patches laid over its picture, and pictures one after another as an animation.

Pictures are uint8 [h, w, 1 or 3]; maps are [rows, columns], each value a rectangle of pixels:
nothing is smoothed.
"""

import io

import numpy as np
from matplotlib import colormaps
from PIL import Image

COLORS = "magma"  # even to the eye, also without color
OUTLINE = "#00D5FF"  # none of the colors of a map
STRENGTH = (0.45, 0.85)  # of a map's colors at 0 and at its maximum; the rest is the picture
DIMMED = 0.15  # of the picture's brightness outside a mask


def overlay(image, values, *, strength=STRENGTH, colors=COLORS):
    """The picture in gray beneath the map in color -> float [h, w, 3] in [0, 1].

    values: from 0; the largest has the last color of matplotlib's map `colors`. strength: how
    much of the color there is at 0 and at the largest value, from 0 to 1.
    """
    values = np.asarray(values, np.float64)
    values = stretch(values / (values.max() or 1), image.shape)
    painted, weight = colormaps[colors](values)[..., :3], np.interp(values, (0, 1), strength)
    gray = image @ (np.array([0.299, 0.587, 0.114]) if image.shape[-1] == 3 else np.ones(1)) / 255
    return ((1 - weight) * gray)[..., None] + weight[..., None] * painted


def spotlight(image, mask):
    """The picture, dark outside the mask bool [rows, columns] -> float [h, w, 3] in [0, 1]."""
    light = np.where(stretch(mask, image.shape), 1, DIMMED)[..., None]
    return np.broadcast_to(image / 255 * light, (*image.shape[:2], 3))


def stretch(values, shape):
    """[rows, columns, ...] -> [h, w, ...], the nearest value for each pixel."""
    ys, xs = (np.arange(n) * k // n for n, k in zip(shape, values.shape, strict=False))
    return values[ys][:, xs]


def outline(mask):
    """The border of a mask [h, w] as line segments in imshow's coordinates, [[(x, y), (x, y)]]."""
    padded = np.pad(np.asarray(mask, int), 1)
    ys, xs = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    lines = [[(x - 0.5, y - 0.5), (x + 0.5, y - 0.5)] for y, x in zip(ys, xs, strict=True)]
    ys, xs = np.nonzero(np.diff(padded, axis=1)[1:-1])
    return lines + [[(x - 0.5, y - 0.5), (x - 0.5, y + 0.5)] for y, x in zip(ys, xs, strict=True)]


def animate(path, figures, *, fps, dpi=100):
    """Writes figures of one size, an iterable, as the frames of a GIF or APNG that repeats.

    path: a .gif, .apng or .png. fps: frames a second. Two equal frames in a row become one.
    """
    frames = [_draw(figure, dpi) for figure in figures]
    if path.suffix == ".gif":
        frames = [_reduce(frame) for frame in frames]
    first, *others = frames
    first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)


def _draw(figure, dpi):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return Image.open(file).convert("RGB")


def _reduce(frame):
    """256 colors of its own, dithered; Pillow's default takes a hundred times as long."""
    colors = frame.quantize(method=Image.Quantize.FASTOCTREE)
    return frame.quantize(palette=colors, dither=Image.Dither.FLOYDSTEINBERG)
