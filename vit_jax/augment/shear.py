"""Pillow's bicubic shear and translation along one axis, faster and bit-exact.

Pillow interpolates over 4x4 pixels. Along one axis, 4 pixels are sufficient. They are evaluated by
a function that Numba compiles or, where Numba is missing, by NumPy in one vectorized pass.
"""

import functools
import math
import threading

import numpy as np
from PIL import Image

CHUNK_ROWS = 56  # rows processed at once, so that the arrays stay in the CPU cache
COMPILE_LOCK = threading.Lock()
MIN_COMPILED_PIXELS = 100 * 100  # compilation takes 1 to 2 s, which does not pay off below
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
    if image.ndim == 3 and image.shape[0] * image.shape[1] >= MIN_COMPILED_PIXELS:
        with COMPILE_LOCK:  # otherwise several threads would compile at the same time
            compiled = _compile()
        if compiled:
            return Image.fromarray(compiled(image, axis, slope, shift, fill))
    return _vectorized(pil, image, axis, slope, shift, fill)


def _vectorized(pil, image, axis, slope, shift, fill):
    """Shear with NumPy, see `shear`. image: the pixels of `pil`."""
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


@functools.cache
def _compile():
    """Compile the shear of RGB images.

    Returns:
      A function (image, axis, slope, shift, fill) -> image, or None if Numba is not installed or
      the result differs from the installed version of Pillow.
    """
    try:
        import numba
    except ImportError:
        return None
    pixels = numba.types.Array(numba.uint8, 3, "C", readonly=True)
    out = numba.uint8[:, :, ::1]
    jit = functools.partial(numba.njit, nogil=True, cache=True, error_model="numpy")
    loop = jit(numba.void(pixels, numba.int64, numba.float64, numba.float64, out))(_loop)

    def compiled(image, axis, slope, shift, fill):
        image = np.ascontiguousarray(image)
        result = np.empty_like(image)
        result[:] = fill
        loop(image, axis, slope, shift, result)
        return result

    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    pil = Image.fromarray(noise)
    for axis, slope, shift in ((0, 0.27, 0.0), (1, -0.27, 0.0), (0, 0.0, 3.3), (1, 0.0, -7.0)):
        data = (1, slope, shift, 0, 1, 0) if axis else (1, 0, 0, slope, 1, shift)
        transform, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
        expected = pil.transform(pil.size, transform, data, bicubic, fillcolor=(1, 2, 3))
        if not np.array_equal(compiled(noise, axis, slope, shift, (1, 2, 3)), expected):
            return None
    return compiled


def _loop(image, axis, slope, shift, out):
    """Shear an image, in the order of Pillow's operations. `out` holds the fill color.

    Indices are unsigned, because Numba checks signed ones for negative values.
    """
    size = image.shape[axis]
    last = size - 1
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            i, line = (x, y) if axis else (y, x)
            position = i + 0.5
            if slope != 0.0:
                position += slope * (line + 0.5)
            position += shift
            if position < 0.0 or position >= size:
                continue
            position -= 0.5
            second = int(math.floor(position))
            d = position - second
            t1, t2 = np.uintp(max(second - 1, 0)), np.uintp(max(second, 0))
            t3, t4 = np.uintp(min(second + 1, last)), np.uintp(min(second + 2, last))
            row, column = np.uintp(y), np.uintp(x)
            for channel in range(np.uintp(3)):
                if axis:
                    v1, v2 = image[row, t1, channel], image[row, t2, channel]
                    v3, v4 = image[row, t3, channel], image[row, t4, channel]
                else:
                    v1, v2 = image[t1, column, channel], image[t2, column, channel]
                    v3, v4 = image[t3, column, channel], image[t4, column, channel]
                a, b = np.float64(v1) - v2, np.float64(v3) - v4
                p2, p3, p4 = np.float64(v3) - v1, 2 * a + b, -a - b
                v = v2 + d * (p2 + d * (p3 + d * p4))
                out[row, column, channel] = np.uint8(min(max(v, 0.0), 255.0))


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
