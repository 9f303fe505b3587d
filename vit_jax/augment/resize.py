"""Pillow's bicubic resize, compiled by Numba if that is installed (the extra "fast").

The pixels are Pillow's to the last bit, since the arithmetic is: separate passes per axis, weights
as integers with 22 fractional bits, and an intermediate image of 8 bits.
"""

import functools
import math
import threading

import numpy as np
import PIL
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC
COMPILING = threading.Lock()
LARGE = 100 * 100  # pixels; smaller images are not worth the second or two of compiling


def resize(image, width, height, box=None):
    """Resize an image, or its box (y, x, h, w): uint8 [h, w, 1 or 3] -> uint8 [height, width, c].

    Equals Image.resize of the cropped image; pixels outside of the box have no influence.
    """
    y, x, h, w = box or (0, 0, *image.shape[:2])
    if (h, w) == (height, width):
        return image[y : y + h, x : x + w]
    compiled = _compiled() if image.shape[2] == 3 and h * w >= LARGE else None
    if compiled:
        return compiled(image, width, height, (y, x, h, w))
    return _pillow(image[y : y + h, x : x + w], width, height)


def _pillow(image, width, height):
    gray = image.shape[2] == 1
    pil = Image.fromarray(image[..., 0] if gray else image).resize((width, height), BICUBIC)
    return np.asarray(pil)[..., None] if gray else np.asarray(pil)


def _compiled():
    with COMPILING:  # else several threads would compile at once
        return _compile()


@functools.cache
def _compile():
    """-> resize(image, width, height, box) of three channels; None without Numba, or where its
    pixels are not those of this version of Pillow."""
    try:
        import numba
    except ImportError:
        return None
    pixels = numba.types.Array(numba.uint8, 2, "C", readonly=True)
    table = numba.types.Array(numba.int32, 2, "C", readonly=True)
    out, n = numba.uint8[:, ::1], numba.int64
    jit = functools.partial(numba.njit, nogil=True, cache=True, error_model="numpy")
    weights = jit(table(n, n))(_weights)
    across = jit(numba.void(pixels, n, n, table, out))(_across)
    down = jit(numba.void(pixels, n, n, table, out))(_down)

    def compiled(image, width, height, box):
        y, x, h, w = box
        pixels = np.ascontiguousarray(image).reshape(len(image), -1)
        passes = [] if w == width else [(across, (h, 3 * width), w, width)]
        passes += [] if h == height else [(down, (height, 3 * width), h, height)]
        if len(passes) == 2 and _down_first(w, h, width, height):
            passes = [(down, (height, 3 * w), h, height), (across, (height, 3 * width), w, width)]
        for run, shape, before, after in passes:
            made = np.empty(shape, np.uint8)
            run(pixels, y, 3 * x, weights(before, after), made)
            pixels, y, x = made, 0, 0
        return pixels.reshape(height, width, 3)

    noise = np.random.default_rng(0).integers(0, 256, (200, 150, 3), np.uint8)
    for h, w in ((200, 150), (120, 149), (199, 60), (101, 70), (40, 31)):
        expected = _pillow(noise[:h, :w], 64, 64)
        if not np.array_equal(compiled(noise, 64, 64, (0, 0, h, w)), expected):
            return None
    return compiled


def _down_first(w, h, width, height):
    """Whether Pillow resizes the columns first: since 13.0, where the height shrinks much more."""
    recent = int(PIL.__version__.split(".")[0]) >= 13
    return recent and h - height > 2 * max(w - width, 0)


def _weights(before, after):
    """int32 [after, 2 + most]: the first pixel that each new one is made of, their number, and
    their weights in units of 2^-22. Keys (1981), a = -1/2, as wide as the pixels made are apart."""
    scale = before / after
    wide = max(scale, 1.0)
    most = math.ceil(2.0 * wide) * 2 + 1
    table, line = np.zeros((after, 2 + most), np.int32), np.empty(most)
    for i in range(after):
        center = (i + 0.5) * scale
        first = max(int(center - 2.0 * wide + 0.5), 0)
        count = min(int(center + 2.0 * wide + 0.5), before) - first
        total = 0.0
        for j in range(count):
            t = abs((j + first - center + 0.5) * (1.0 / wide))
            if t < 1.0:
                line[j] = (1.5 * t - 2.5) * t * t + 1
            elif t < 2.0:
                line[j] = (((t - 5) * t + 8) * t - 4) * -0.5
            else:
                line[j] = 0.0
            total += line[j]
        table[i, 0], table[i, 1] = first, count
        for j in range(count):
            weight = line[j] / total * (1 << 22)
            table[i, 2 + j] = int(weight - 0.5 if weight < 0 else weight + 0.5)
    return table


def _across(pixels, top, left, table, out):
    """Rows, two at a time. Unsigned indices: of signed ones Numba checks if they are negative."""
    one, two, three, half = np.uintp(1), np.uintp(2), np.uintp(3), np.int32(1 << 21)
    last = len(out) - 1
    for y in range(0, len(out), 2):
        to_a, to_b = np.uintp(y), np.uintp(min(y + 1, last))
        row_a, row_b = np.uintp(top) + to_a, np.uintp(top) + to_b
        for i in range(np.uintp(len(table))):
            a0 = a1 = a2 = b0 = b1 = b2 = half
            at = np.uintp(left) + three * np.uintp(table[i, 0])
            for j in range(two, two + np.uintp(table[i, 1])):
                k = table[i, j]
                a0 = np.int32(a0 + np.int32(pixels[row_a, at]) * k)
                a1 = np.int32(a1 + np.int32(pixels[row_a, at + one]) * k)
                a2 = np.int32(a2 + np.int32(pixels[row_a, at + two]) * k)
                b0 = np.int32(b0 + np.int32(pixels[row_b, at]) * k)
                b1 = np.int32(b1 + np.int32(pixels[row_b, at + one]) * k)
                b2 = np.int32(b2 + np.int32(pixels[row_b, at + two]) * k)
                at += three
            o = three * i
            out[to_a, o] = min(max(a0 >> 22, 0), 255)
            out[to_a, o + one] = min(max(a1 >> 22, 0), 255)
            out[to_a, o + two] = min(max(a2 >> 22, 0), 255)
            out[to_b, o] = min(max(b0 >> 22, 0), 255)
            out[to_b, o + one] = min(max(b1 >> 22, 0), 255)
            out[to_b, o + two] = min(max(b2 >> 22, 0), 255)


def _down(pixels, top, left, table, out):
    sums, width = np.empty(out.shape[1], np.int32), np.uintp(out.shape[1])
    for i in range(len(table)):
        sums[:] = 1 << 21
        for j in range(table[i, 1]):
            row, k = np.uintp(top + table[i, 0] + j), table[i, 2 + j]
            for x in range(width):
                sums[x] += np.int32(pixels[row, np.uintp(left) + x]) * k
        for x in range(width):
            out[np.uintp(i), x] = min(max(sums[x] >> 22, 0), 255)
