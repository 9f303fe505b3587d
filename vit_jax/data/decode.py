"""Image file -> uint8 h w c, safe for untrusted files.

JPEG, PNG, WebP, GIF and BMP, detected by content; Pillow has forty more parsers, which a hostile
file must not reach. The first frame of an animation; EXIF orientation is applied; transparency is
composited on white; 16 bits per channel become their upper 8; color profiles are ignored.

Pillow decodes. If simplejpeg is installed (the extra "fast"), it decodes plain JPEGs in less time
and to the same pixels: both are libjpeg-turbo.
"""

import functools
import io
import os
import warnings

import numpy as np
from PIL import Image, ImageChops

from vit_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 89_000_000  # 267 MB once decoded to RGB; compressed it may be 10 kB
MAX_BYTES = 2**26  # of a file that is read at once; Pillow reads larger ones piece by piece
ORIENTATION = 0x0112  # EXIF tag: 1 is upright
UPRIGHT = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # -> Image.Transpose

# Pillow's own limit, just above ours, is a warning by default.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class DecodeError(UserError):
    """A file that cannot be decoded: one line with the file and the cause."""


def decode(file, channels=3, *, name=None, max_pixels=MAX_PIXELS):
    """Decode an image.

    Args:
      file: a path, or the bytes of a file.
      channels: 3 (RGB) or 1 (luma).
      name: the name of the image in errors; None: the path.
      max_pixels: limit, checked in the header before anything is decompressed.

    Returns:
      uint8 [h, w, channels], maybe read-only.

    Raises:
      DecodeError: whatever is wrong with the file.
    """
    head = b""
    try:
        data = file if isinstance(file, bytes) else _read(file)
        head = data[:64]
        # Pillow reads a header in dozens of pieces: give it the whole file, unless it is large.
        whole = isinstance(file, bytes) or len(data) < MAX_BYTES
        with Image.open(io.BytesIO(data) if whole else file, "r", FORMATS) as im:
            if im.width * im.height > max_pixels:
                raise DecodeError(f"{im.width} x {im.height} pixels, more than {max_pixels:,}")
            mode = "L" if channels == 1 else "RGB"
            array = _decode_jpeg(im, mode)
            if array is None:
                im.load()
                array = _to_array(im, mode)
            return array
    except Exception as e:  # Pillow's parsers raise nearly every built-in class on a broken file
        name = name or (f"image of {len(file)} bytes" if isinstance(file, bytes) else str(file))
        raise DecodeError(f"{name}: {_cause(e, head)}") from e


def _read(path):
    with open(path, "rb") as file:
        return file.read(MAX_BYTES)


def _decode_jpeg(im, mode):
    """Decode an opened image with simplejpeg.

    Returns:
      uint8 [h, w, c]; None unless it is an intact, upright JPEG in RGB or gray.
    """
    upright = _orientation(im) not in UPRIGHT
    simplejpeg = _simplejpeg()
    if im.format != "JPEG" or im.mode not in ("L", mode) or not upright or simplejpeg is None:
        return None
    if not isinstance(im.fp, io.BytesIO):
        return None
    try:
        array = simplejpeg.decode_jpeg(im.fp.getvalue(), "GRAY" if mode == "L" else "RGB")
    except ValueError:  # truncated or with errors: Pillow reports or tolerates them
        return None
    return array if array.shape[:2] == (im.height, im.width) else None


@functools.cache
def _simplejpeg():
    """The module, if it is installed and this build decodes to the pixels of this Pillow."""
    try:
        import simplejpeg
    except ImportError:
        return None
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 35, 3), np.uint8))
    kinds = [{"subsampling": kind} for kind in ("4:4:4", "4:2:2", "4:2:0")]
    for kind in [*kinds, {"progressive": True}]:
        file = io.BytesIO()
        noise.save(file, "JPEG", **kind)
        with Image.open(file) as im:
            if not np.array_equal(simplejpeg.decode_jpeg(file.getvalue(), "RGB"), np.asarray(im)):
                return None
    return simplejpeg


def _to_array(im, mode):
    turn = UPRIGHT.get(_orientation(im))
    if im.mode.startswith("I"):  # 16 bits of gray; convert() would clip them at 255
        # The upper byte, as Pillow itself takes it of 16-bit color.
        im = Image.fromarray((np.asarray(im).astype(np.int32) >> 8).astype(np.uint8))
    elif im.has_transparency_data:
        white = Image.new("RGBA", im.size, "white")
        im = Image.alpha_composite(white, im.convert("RGBA")).convert("RGB")
    elif im.mode == "CMYK" and "adobe" not in im.info:
        im = ImageChops.invert(im)  # Pillow takes every CMYK JPEG for Adobe's, which are inverted
    if im.mode != mode:
        im = im.convert(mode)
    if turn is not None:
        im = im.transpose(turn)
    array = np.asarray(im)
    return array[:, :, None] if mode == "L" else array


def _orientation(im):
    """EXIF orientation, 1 to 8. Broken EXIF is common and says nothing about the pixels: 1."""
    try:
        return im.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1


def _cause(error, head):
    """What is wrong with a file that begins with `head`, in one line."""
    if isinstance(error, DecodeError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "far too many pixels for an image"
    if isinstance(error, OSError) and error.errno:  # the file system's, not the decoder's
        return os.strerror(error.errno).lower()
    if not head:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
            return "not an image but a page of text (HTML or XML)"
        return "not a JPEG, PNG, WebP, GIF or BMP image"
    return f"broken image: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
