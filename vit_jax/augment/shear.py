"""Pillow's bicubic shear and translation along one axis, in half the time.

Pillow interpolates over 4x4 pixels. Along one axis, 4 pixels are sufficient, which NumPy evaluates
for all pixels in one vectorized pass. The result is bit-exact.
"""

import numpy as np
from PIL import Image

CHUNK_ROWS = 56  # rows processed at once, so that the arrays stay in the CPU cache
MARGIN = np.float32(1e-3)  # in levels; above the float32 error of `_cubic`, which is below 4e-4


def shear(pil, axis, slope, shift, fill):
    """Shear and translate an image along one axis.

    Pixel i of line j of the result is the input at i + slope * (j + 1/2) + shift. Equals
    pil.transform(pil.size, AFFINE, data, BICUBIC, fillcolor=fill) with the data
    (1, slope, shift, 0, 1, 0) for axis 1 and (1, 0, 0, slope, 1, shift) for axis 0.

    Args:
      pil: PIL image in mode "L" or "RGB".
      axis: 1 to move pixels along rows (lines are rows), 0 to move them along columns.
      slope: shear, in pixels per line.
      shift: translation, in pixels.
      fill: color of pixels from outside of the image.

    Returns:
      A PIL image of the same mode and size.
    """
    image = np.asarray(pil)
    image = image[..., None] if image.ndim == 2 else image
    n, lines = image.shape[axis], image.shape[1 - axis]
    # Input positions [lines or 1, n], added in the same order as in Pillow.
    position = np.arange(n) + 0.5
    offset = (slope * (np.arange(lines) + 0.5))[:, None]
    position = position + offset + shift if slope else position[None] + shift
    inside = (position >= 0) & (position < n)
    result = Image.new(pil.mode, pil.size, fill)
    if not inside.any():
        return result
    covered = np.flatnonzero(inside.any(0))
    start, stop = int(covered[0]), int(covered[-1]) + 1
    position, inside = position[:, start:stop] - 0.5, inside[:, start:stop]
    taps, fraction = _taps(image, axis, position)
    out = np.empty(taps[0].shape, np.uint8)
    ambiguous = []
    for y in range(0, len(out), CHUNK_ROWS):
        rows = slice(y, y + CHUNK_ROWS)
        d = fraction if len(fraction) == 1 else fraction[rows]
        out[rows], indices = _cubic([tap[rows] for tap in taps], d)
        ambiguous.append(indices + y * out.shape[1])
    _recompute(out, np.concatenate(ambiguous), image, axis, position)
    view = out if image.shape[2] == 1 else out.reshape(len(out), -1, image.shape[2])
    mask = np.broadcast_to(inside, (lines, stop - start))
    corner = (start, 0) if axis else (0, start)
    result.paste(Image.fromarray(view), corner, Image.fromarray(mask if axis else mask.T))
    return result


def _taps(image, axis, position):
    """Gather the 4 pixels around each input position.

    All pixels of a line use the shift of its first pixel. For other pixels, floating-point rounding
    may move the shift across an integer; their fraction is then close to 0 or 1.

    Args:
      image: uint8 [h, w, c].
      axis: see `shear`.
      position: [lines or 1, count], the input positions.

    Returns:
      4 arrays, int16 [h, w * c], arbitrary for positions outside of the image, and the distance of
      each position from the second pixel, float32, which broadcasts with them.
    """
    n, count, c = image.shape[axis], position.shape[1], image.shape[2]
    first = np.floor(position[:, 0]).astype(int)
    fraction = (position[:, 0] - first).astype(np.float32)
    edges = [image.take([i, i], axis) for i in (0, -1)]
    padded = np.concatenate([edges[0], image, edges[1]], axis)
    shape = (len(image), count + 3, c) if axis else (count + 3, image.shape[1], c)
    shifted = np.zeros(shape, np.int16)
    starts = [0, *(np.flatnonzero(np.diff(first)) + 1).tolist()]
    for a, b in zip(starts, [*starts[1:], None], strict=True):
        f = int(first[a])
        low, high = max(0, -f - 1), min(count + 3, n + 3 - f)
        if low < high and axis:
            shifted[a:b, low:high] = padded[a:b, low + f + 1 : high + f + 1]
        elif low < high:
            shifted[low:high, a:b] = padded[low + f + 1 : high + f + 1, a:b]
    shifted = shifted.reshape(len(shifted), -1)
    if axis:
        return [shifted[:, i * c : (i + count) * c] for i in range(4)], fraction[:, None]
    fraction = np.repeat(fraction, c) if len(fraction) > 1 else fraction
    return [shifted[i : i + count] for i in range(4)], fraction[None]


def _cubic(taps, d):
    """Evaluate Pillow's cubic interpolation in float32.

    Args:
      taps: 4 arrays of neighboring pixels, int16 [h, w * c].
      d: distance from the second pixel.

    Returns:
      uint8 [h, w * c], and the flat indices of the pixels whose rounding is ambiguous.
    """
    v1, v2, v3, v4 = taps
    a, b, p2 = v1 - v2, v3 - v4, v3 - v1
    p4 = a + b
    v = (p4 + a) - p4 * d
    v *= d
    v += p2
    v *= d
    v += v2
    v -= MARGIN
    np.clip(v, 0, 255, out=v)
    low = v.astype(np.uint8)
    v += 2 * MARGIN
    high = np.minimum(v, 255, out=v).astype(np.uint8)
    ambiguous = np.flatnonzero(low != high)
    a, b, p2 = (x.ravel()[ambiguous] for x in (a, b, p2))
    return high, ambiguous[(a | b | p2) != 0]  # the cubic is exact if all 4 pixels are equal


def _recompute(out, indices, image, axis, position):
    """Recompute the pixels of `out` at the flat `indices` in float64, as Pillow does."""
    row, column = np.divmod(indices, out.shape[1])
    column, channel = np.divmod(column, image.shape[2])
    line, i = (row, column) if axis else (column, row)
    position = position[line if len(position) > 1 else 0, i]
    second = np.floor(position)
    d, second = position - second, second.astype(int)
    neighbors = [np.clip(second + i, 0, image.shape[axis] - 1) for i in (-1, 0, 1, 2)]
    pixels = [image[(row, i, channel) if axis else (i, column, channel)] for i in neighbors]
    v1, v2, v3, v4 = (x.astype(np.float64) for x in pixels)
    p2, p3, p4 = v3 - v1, 2 * (v1 - v2) + v3 - v4, -v1 + v2 - v3 + v4
    out.ravel()[indices] = np.clip(v2 + d * (p2 + d * (p3 + d * p4)), 0, 255)
