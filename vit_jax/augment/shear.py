"""Pillow's bicubic shear and translation along one axis, in half the time.

Pillow interpolates 4 x 4 pixels; along one axis 4 in a line are enough, in NumPy for all pixels at
once. The result is the same to the last bit.
"""

import numpy as np
from PIL import Image

ROWS = 56  # at a time, so that the arrays stay in the processor's cache
MARGIN = np.float32(1e-3)  # more than the error of the float32 below, which is under 4e-4


def shear(pil, axis, slope, shift, fill):
    """An image, gray or RGB, whose pixel i of line j is what was at i + slope * (j + 1/2) + shift.

    axis: 0, columns are the lines, or 1, rows are. Equals pil.transform(pil.size, AFFINE, map,
    BICUBIC, fillcolor=fill) with the map (1, slope, shift, 0, 1, 0) for axis 1 and
    (1, 0, 0, slope, 1, shift) for axis 0.
    """
    image = np.asarray(pil)
    image = image[..., None] if image.ndim == 2 else image
    n, lines = image.shape[axis], image.shape[1 - axis]
    at = np.arange(n) + 0.5  # [lines, n], in Pillow's order of additions
    at = at + (slope * (np.arange(lines) + 0.5))[:, None] + shift if slope else at[None] + shift
    inside = (at >= 0) & (at < n)
    result = Image.new(pil.mode, pil.size, fill)
    if not inside.any():
        return result
    some = np.flatnonzero(inside.any(0))
    start, stop = int(some[0]), int(some[-1]) + 1
    at, inside = at[:, start:stop] - 0.5, inside[:, start:stop]
    taps, part = _taps(image, axis, at)
    out, unsure = np.empty(taps[0].shape, np.uint8), []
    for y in range(0, len(out), ROWS):
        d = part if len(part) == 1 else part[y : y + ROWS]
        out[y : y + ROWS], found = _cubic([tap[y : y + ROWS] for tap in taps], d)
        unsure.append(found + y * out.shape[1])
    _repair(out, np.concatenate(unsure), image, axis, at)
    view = out if image.shape[2] == 1 else out.reshape(len(out), -1, image.shape[2])
    mask = np.broadcast_to(inside, (lines, stop - start))
    corner = (start, 0) if axis else (0, start)
    result.paste(Image.fromarray(view), corner, Image.fromarray(mask if axis else mask.T))
    return result


def _taps(image, axis, at):
    """-> the 4 pixels about each place, int16 [h, w * c] each, and how far it is past the second.

    Those of places outside of the image are any. A whole line has the shift of its first pixel; in
    the others it may be rounded to the next integer, with the rest then near to 0 or 1.
    """
    n, count, c = image.shape[axis], at.shape[1], image.shape[2]
    first = np.floor(at[:, 0]).astype(int)
    part = (at[:, 0] - first).astype(np.float32)
    edges = [image.take([i, i], axis) for i in (0, -1)]
    padded = np.concatenate([edges[0], image, edges[1]], axis)
    shape = (len(image), count + 3, c) if axis else (count + 3, image.shape[1], c)
    moved = np.zeros(shape, np.int16)
    starts = [0, *(np.flatnonzero(np.diff(first)) + 1).tolist()]
    for a, b in zip(starts, [*starts[1:], None], strict=True):
        f = int(first[a])
        low, high = max(0, -f - 1), min(count + 3, n + 3 - f)
        if low < high and axis:
            moved[a:b, low:high] = padded[a:b, low + f + 1 : high + f + 1]
        elif low < high:
            moved[low:high, a:b] = padded[low + f + 1 : high + f + 1, a:b]
    moved = moved.reshape(len(moved), -1)
    if axis:
        return [moved[:, i * c : (i + count) * c] for i in range(4)], part[:, None]
    part = np.repeat(part, c) if len(part) > 1 else part
    return [moved[i : i + count] for i in range(4)], part[None]


def _cubic(taps, d):
    """Pillow's cubic through 4 pixels at d past the second -> uint8, and where it may be wrong."""
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
    unsure = np.flatnonzero(low != high)
    a, b, p2 = (x.ravel()[unsure] for x in (a, b, p2))
    return high, unsure[(a | b | p2) != 0]  # of 4 equal pixels the cubic is exact


def _repair(out, where, image, axis, at):
    """The same in Pillow's own float64 arithmetic, where the last bit decides."""
    row, column = np.divmod(where, out.shape[1])
    column, channel = np.divmod(column, image.shape[2])
    line, place = (row, column) if axis else (column, row)
    place = at[line if len(at) > 1 else 0, place]
    second = np.floor(place)
    d, second = place - second, second.astype(int)
    near = [np.clip(second + i, 0, image.shape[axis] - 1) for i in (-1, 0, 1, 2)]
    pixels = [image[(row, i, channel) if axis else (i, column, channel)] for i in near]
    v1, v2, v3, v4 = (x.astype(np.float64) for x in pixels)
    p2, p3, p4 = v3 - v1, 2 * (v1 - v2) + v3 - v4, -v1 + v2 - v3 + v4
    out.ravel()[where] = np.clip(v2 + d * (p2 + d * (p3 + d * p4)), 0, 255)
