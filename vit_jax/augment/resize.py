"""Pillow's resize; the bicubic one is compiled with Numba, where it is installed.

The compiled function is bit-exact, because the arithmetic is the same: one pass per axis, integer
weights with 22 fractional bits, and an 8-bit intermediate image.
"""

import functools
import itertools
import math
import threading

import numpy as np
import PIL
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC
BILINEAR = Image.Resampling.BILINEAR
COMPILE_LOCK = threading.Lock()
_small_resizes = itertools.count()
# Compilation takes 1 to 2 s. It pays off for large images, or once Pillow has taken as long.
MIN_COMPILED_PIXELS = 100 * 100
SMALL_BEFORE_COMPILING = 20_000


def resize(image, width, height, box=None, kernel=BICUBIC):
    """Resize an image, or a box within it.

    Equals PIL's Image.resize of the cropped image: pixels outside of the box have no effect.

    Args:
      image: uint8 [h, w, 1, 3 or 4].
      width: width of the result, in pixels.
      height: height of the result, in pixels.
      box: (y, x, h, w) of the box in pixels; None: the whole image.
      kernel: BICUBIC or BILINEAR.

    Returns:
      uint8 [height, width, 1, 3 or 4].
    """
    y, x, h, w = box or (0, 0, *image.shape[:2])
    if (h, w) == (height, width):
        return image[y : y + h, x : x + w]
    fast = kernel == BICUBIC and image.shape[2] == 3
    if fast and h * w < MIN_COMPILED_PIXELS:
        fast = next(_small_resizes) >= SMALL_BEFORE_COMPILING
    if compiled := _compiled() if fast else None:
        return compiled(image, width, height, (y, x, h, w))
    return _pillow(image[y : y + h, x : x + w], width, height, kernel=kernel)


def resize_window(image, width, height, window, kernel=BICUBIC):
    """Compute a window of the resized image, in memory proportional to the window.

    Equals a crop of the image that PIL's Image.resize returns, except for rare differences of one
    or two levels, as Pillow rounds the coordinates of boxes to float32.

    Args:
      image: uint8 [h, w, 1, 3 or 4].
      width: width of the whole resized image, in pixels.
      height: height of the whole resized image, in pixels.
      window: (y, x, h, w) of the window in the resized image, in pixels.
      kernel: BICUBIC or BILINEAR.

    Returns:
      uint8 [h, w, 1, 3 or 4].
    """
    y, x, h, w = window
    top, bottom, rows = _source(image.shape[0], height, y, h)
    left, right, columns = _source(image.shape[1], width, x, w)
    result = image[rows, columns]
    vertical_first = _vertical_first(image.shape[1], image.shape[0], width, height)
    for axis in (0, 1) if vertical_first else (1, 0):
        if axis:
            n = result.shape[0]
            result = _pillow(result, w, n, (left, 0, right, n), kernel)
        else:
            n = result.shape[1]
            result = _pillow(result, n, h, (0, top, n, bottom), kernel)
    return result


def _source(old_size, new_size, start, size):
    """Return the part of an axis that a window of the resized axis depends on.

    Returns:
      The window's first and last coordinate, relative to a slice of the axis, and the slice.
    """
    scale = old_size / new_size
    first, last = start * scale, (start + size) * scale
    margin = 2 * max(scale, 1) + 1  # support of the kernel, and rounding
    low = max(0, math.floor(first - margin))
    high = min(old_size, math.ceil(last + margin))
    return first - low, min(last, high) - low, slice(low, high)


def _pillow(image, width, height, box=None, kernel=BICUBIC):
    gray = image.shape[2] == 1
    pil = Image.fromarray(image[..., 0] if gray else image).resize((width, height), kernel, box)
    return np.asarray(pil)[..., None] if gray else np.asarray(pil)


def _compiled():
    with COMPILE_LOCK:  # otherwise several threads would compile at the same time
        return _compile()


@functools.cache
def _compile():
    """Compile the resize of RGB images.

    Returns:
      A function (image, width, height, box) -> resized image, or None if Numba is not installed or
      the result differs from the installed version of Pillow.
    """
    try:
        import numba
    except ImportError:
        return None
    pixels = numba.types.Array(numba.uint8, 2, "C", readonly=True)
    table = numba.types.Array(numba.int32, 2, "C", readonly=True)
    out, n = numba.uint8[:, ::1], numba.int64
    jit = functools.partial(numba.njit, nogil=True, cache=True, error_model="numpy")
    weights = jit(table(n, n))(_weights)
    horizontal = jit(numba.void(pixels, n, n, table, out))(_horizontal)
    vertical = jit(numba.void(pixels, n, n, table, out))(_vertical)

    def compiled(image, width, height, box):
        y, x, h, w = box
        pixels = np.ascontiguousarray(image).reshape(len(image), -1)
        passes = [] if w == width else [(horizontal, (h, 3 * width), w, width)]
        passes += [] if h == height else [(vertical, (height, 3 * width), h, height)]
        if len(passes) == 2 and _vertical_first(w, h, width, height):
            passes = [
                (vertical, (height, 3 * w), h, height),
                (horizontal, (height, 3 * width), w, width),
            ]
        for resample, shape, old_size, new_size in passes:
            resized = np.empty(shape, np.uint8)
            resample(pixels, y, 3 * x, weights(old_size, new_size), resized)
            pixels, y, x = resized, 0, 0
        return pixels.reshape(height, width, 3)

    noise = np.random.default_rng(0).integers(0, 256, (200, 150, 3), np.uint8)
    for h, w in ((200, 150), (120, 149), (199, 60), (101, 70), (40, 31)):
        expected = _pillow(noise[:h, :w], 64, 64)
        if not np.array_equal(compiled(noise, 64, 64, (0, 0, h, w)), expected):
            return None
    return compiled


def _vertical_first(w, h, width, height):
    """Return whether Pillow runs the vertical pass first.

    Since version 13.0, it does so if the height shrinks much more than the width; before, if the
    image is more than 100 times as tall as wide.
    """
    if int(PIL.__version__.split(".")[0]) >= 13:
        return h - height > 2 * max(w - width, 0)
    return h > 100 * w and h > height


def _weights(old_size, new_size):
    """Compute the weights of one pass: cubic convolution (Keys, 1981) with a = -1/2.

    The kernel is stretched by the scale when downsampling.

    Returns:
      int32 [new_size, 2 + max_count]: for each output pixel, the first input pixel, the number of
      input pixels, and their weights in units of 2^-22.
    """
    scale = old_size / new_size
    stretch = max(scale, 1.0)
    max_count = math.ceil(2.0 * stretch) * 2 + 1
    table = np.zeros((new_size, 2 + max_count), np.int32)
    kernel = np.empty(max_count)
    for i in range(new_size):
        center = (i + 0.5) * scale
        first = max(int(center - 2.0 * stretch + 0.5), 0)
        count = min(int(center + 2.0 * stretch + 0.5), old_size) - first
        total = 0.0
        for j in range(count):
            t = abs((j + first - center + 0.5) * (1.0 / stretch))
            if t < 1.0:
                kernel[j] = (1.5 * t - 2.5) * t * t + 1
            elif t < 2.0:
                kernel[j] = (((t - 5) * t + 8) * t - 4) * -0.5
            else:
                kernel[j] = 0.0
            total += kernel[j]
        table[i, 0] = first
        table[i, 1] = count
        for j in range(count):
            weight = kernel[j] / total * (1 << 22)
            table[i, 2 + j] = int(weight - 0.5 if weight < 0 else weight + 0.5)
    return table


def _horizontal(pixels, top, left, table, out):
    """Resample the rows, two at a time.

    Indices are unsigned, because Numba checks signed ones for negative values.
    """
    one, two, three, half = np.uintp(1), np.uintp(2), np.uintp(3), np.int32(1 << 21)
    last = len(out) - 1
    for y in range(0, len(out), 2):
        out_a, out_b = np.uintp(y), np.uintp(min(y + 1, last))
        row_a, row_b = np.uintp(top) + out_a, np.uintp(top) + out_b
        for i in range(np.uintp(len(table))):
            a0 = a1 = a2 = b0 = b1 = b2 = half
            x = np.uintp(left) + three * np.uintp(table[i, 0])
            for j in range(two, two + np.uintp(table[i, 1])):
                k = table[i, j]
                a0 = np.int32(a0 + np.int32(pixels[row_a, x]) * k)
                a1 = np.int32(a1 + np.int32(pixels[row_a, x + one]) * k)
                a2 = np.int32(a2 + np.int32(pixels[row_a, x + two]) * k)
                b0 = np.int32(b0 + np.int32(pixels[row_b, x]) * k)
                b1 = np.int32(b1 + np.int32(pixels[row_b, x + one]) * k)
                b2 = np.int32(b2 + np.int32(pixels[row_b, x + two]) * k)
                x += three
            o = three * i
            out[out_a, o] = min(max(a0 >> 22, 0), 255)
            out[out_a, o + one] = min(max(a1 >> 22, 0), 255)
            out[out_a, o + two] = min(max(a2 >> 22, 0), 255)
            out[out_b, o] = min(max(b0 >> 22, 0), 255)
            out[out_b, o + one] = min(max(b1 >> 22, 0), 255)
            out[out_b, o + two] = min(max(b2 >> 22, 0), 255)


def _vertical(pixels, top, left, table, out):
    """Resample the columns."""
    sums, width = np.empty(out.shape[1], np.int32), np.uintp(out.shape[1])
    for i in range(len(table)):
        sums[:] = 1 << 21
        for j in range(table[i, 1]):
            row, k = np.uintp(top + table[i, 0] + j), table[i, 2 + j]
            for x in range(width):
                sums[x] += np.int32(pixels[row, np.uintp(left) + x]) * k
        for x in range(width):
            out[np.uintp(i), x] = min(max(sums[x] >> 22, 0), 255)
