"""Overlays of patch maps on images, masked images, and animations.

Images are uint8 [h, w, 1 or 3]. Maps are [rows, columns] and are enlarged to the image's size.
"""

import io

import numpy as np
from matplotlib import colormaps
from PIL import Image

from vit_jax.figures import INTERPOLATIONS

COLORS = "magma"  # perceptually uniform, also in grayscale
OUTLINE = "#00D5FF"  # does not occur in COLORS
STRENGTH = (0.45, 0.85)  # opacity of the colors at 0 and at the map's maximum
DIMMED = 0.15  # brightness outside a mask


def overlay(image, values, *, top=None, strength=STRENGTH, colors=COLORS, interpolation="nearest"):
    """Draw a map in color over the image in gray.

    Args:
      image: uint8 [h, w, 1 or 3].
      values: non-negative map [rows, columns].
      top: value of the last color, such as that of `analysis.attention.color_scale`; None: the
        map's maximum.
      strength: opacity of the colors at 0 and at the top, in [0, 1].
      colors: name of a matplotlib colormap.
      interpolation: "nearest", one square per patch, or "bilinear".

    Returns:
      float [h, w, 3] in [0, 1].
    """
    values = np.asarray(values, np.float64)
    values = stretch(values / (top or values.max() or 1), image.shape, interpolation)
    colored = colormaps[colors](values)[..., :3]
    opacity = np.interp(values, (0, 1), strength)
    gray = image @ (np.array([0.299, 0.587, 0.114]) if image.shape[-1] == 3 else np.ones(1)) / 255
    return ((1 - opacity) * gray)[..., None] + opacity[..., None] * colored


def spotlight(image, mask):
    """Darken an image outside a mask.

    Args:
      image: uint8 [h, w, 1 or 3].
      mask: bool [rows, columns].

    Returns:
      float [h, w, 3] in [0, 1].
    """
    brightness = np.where(stretch(mask, image.shape), 1, DIMMED)[..., None]
    return np.broadcast_to(image / 255 * brightness, (*image.shape[:2], 3))


def stretch(values, shape, interpolation="nearest"):
    """Resize a map to the size of an image.

    Args:
      values: [rows, columns].
      shape: shape of the image, (h, w, ...).
      interpolation: "nearest" or "bilinear". The latter has the values at the centers of the
        patches, and is constant from the outer centers to the edges, as PyTorch's `interpolate`
        with `align_corners=False`.

    Returns:
      [h, w].

    Raises:
      ValueError: for another interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation={interpolation!r} must be one of {INTERPOLATIONS}")
    for axis, size in enumerate(shape[:2]):
        count = values.shape[axis]
        if interpolation == "nearest":
            values = values.take(np.arange(size) * count // size, axis)
            continue
        positions = ((np.arange(size) + 0.5) * count / size - 0.5).clip(0, count - 1)
        low = positions.astype(int)
        share = np.expand_dims(positions - low, 1 - axis)
        high = np.minimum(low + 1, count - 1)
        values = (1 - share) * values.take(low, axis) + share * values.take(high, axis)
    return values


def enlarge(image, side):
    """Repeat the pixels of an image [h, w, c] until its height is about `side`."""
    factor = max(1, round(side / image.shape[0]))
    return image.repeat(factor, 0).repeat(factor, 1)


def outline(mask):
    """Return the border of a mask [h, w] as line segments [(x, y), (x, y)].

    The coordinates are those of `imshow`: pixel (row, column) is centered at (x=column, y=row).
    """
    padded = np.pad(np.asarray(mask, int), 1)
    ys, xs = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    lines = [[(x - 0.5, y - 0.5), (x + 0.5, y - 0.5)] for y, x in zip(ys, xs, strict=True)]
    ys, xs = np.nonzero(np.diff(padded, axis=1)[1:-1])
    return lines + [[(x - 0.5, y - 0.5), (x - 0.5, y + 0.5)] for y, x in zip(ys, xs, strict=True)]


def animate(path, figures, *, fps, dpi=100):
    """Write figures as the frames of a looping GIF or APNG.

    Identical consecutive frames are merged into one.

    Args:
      path: `pathlib.Path` that ends in .gif, .apng or .png.
      figures: iterable of matplotlib figures of the same size.
      fps: frames per second.
      dpi: pixels per inch.
    """
    frames = [_render(figure, dpi) for figure in figures]
    if path.suffix == ".gif":
        frames = [_quantize(frame) for frame in frames]
    first, *rest = frames
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def _render(figure, dpi):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return Image.open(file).convert("RGB")


def _quantize(frame):
    """Reduce a frame to an adaptive palette of 256 colors, with dithering.

    FASTOCTREE is 100 times as fast as Pillow's default method.
    """
    palette = frame.quantize(method=Image.Quantize.FASTOCTREE)
    return frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
