"""Decode image files to uint8 [h, w, c] arrays. Safe for untrusted files.

Supports JPEG, PNG, WebP, GIF and BMP, detected by content rather than by file name. Pillow's forty
other parsers are disabled to reduce the attack surface. Animations decode to their first frame,
EXIF orientation is applied, transparent images are composited on white, 16-bit channels are
truncated to their upper 8 bits, and color profiles are ignored.

Images are decoded with Pillow. If simplejpeg is installed (the extra "fast"), it decodes ordinary
JPEGs faster and to identical pixels, as both use libjpeg-turbo.
"""

import functools
import io
import os
import warnings

import numpy as np
from PIL import Image, ImageChops

from vit_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 89_000_000  # 267 MB decoded to RGB; the compressed file can be as small as 10 kB
MAX_BUFFERED_BYTES = 2**26  # Pillow reads larger files from disk incrementally
ORIENTATION_TAG = 0x0112  # EXIF; 1 is upright
# EXIF orientation -> the Image.Transpose that makes the image upright.
TRANSPOSES = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))

# By default, exceeding Pillow's pixel limit, slightly above MAX_PIXELS, only raises a warning.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class DecodeError(UserError):
    """Raised when a file cannot be decoded. The message is one line: the file and the cause."""


def decode(file, channels=3, *, name=None, max_pixels=MAX_PIXELS):
    """Decode an image.

    Args:
      file: a path, or the contents of a file as bytes.
      channels: 3 (RGB) or 1 (luma).
      name: name of the image in error messages; None: the path.
      max_pixels: maximum number of pixels, checked in the header before decompression.

    Returns:
      uint8 [h, w, channels], possibly read-only.

    Raises:
      DecodeError: if the file is missing, unreadable, unsupported, too large or corrupt.
    """
    head = b""
    try:
        data = file if isinstance(file, bytes) else _read(file)
        head = data[:64]
        # Pillow parses headers in dozens of small reads: buffer the file unless it is large.
        buffered = isinstance(file, bytes) or len(data) < MAX_BUFFERED_BYTES
        with Image.open(io.BytesIO(data) if buffered else file, "r", FORMATS) as im:
            if im.width * im.height > max_pixels:
                raise DecodeError(
                    f"{im.width} x {im.height} pixels exceed the limit of {max_pixels:,}"
                )
            mode = "L" if channels == 1 else "RGB"
            array = _decode_jpeg(im, mode)
            if array is None:
                im.load()
                array = _to_array(im, mode)
            return array
    except Exception as e:  # Pillow raises nearly every built-in exception type on corrupt files
        name = name or (f"image of {len(file)} bytes" if isinstance(file, bytes) else str(file))
        raise DecodeError(f"{name}: {_cause(e, head)}") from e


def _read(path):
    with open(path, "rb") as file:
        return file.read(MAX_BUFFERED_BYTES)


def _decode_jpeg(im, mode):
    """Decode an open image with simplejpeg.

    Returns:
      uint8 [h, w, c], or None unless the image is an intact, upright RGB or grayscale JPEG.
    """
    upright = _orientation(im) not in TRANSPOSES
    simplejpeg = _simplejpeg()
    if im.format != "JPEG" or im.mode not in ("L", mode) or not upright or simplejpeg is None:
        return None
    if not isinstance(im.fp, io.BytesIO):
        return None
    try:
        array = simplejpeg.decode_jpeg(im.fp.getvalue(), "GRAY" if mode == "L" else "RGB")
    except ValueError:  # truncated or corrupt: fall back to Pillow, which reports or tolerates it
        return None
    return array if array.shape[:2] == (im.height, im.width) else None


@functools.cache
def _simplejpeg():
    """Import simplejpeg. Return None if it is missing or its pixels differ from Pillow's."""
    try:
        import simplejpeg
    except ImportError:
        return None
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 35, 3), np.uint8))
    options = [{"subsampling": ratio} for ratio in ("4:4:4", "4:2:2", "4:2:0")]
    for option in [*options, {"progressive": True}]:
        file = io.BytesIO()
        noise.save(file, "JPEG", **option)
        with Image.open(file) as im:
            if not np.array_equal(simplejpeg.decode_jpeg(file.getvalue(), "RGB"), np.asarray(im)):
                return None
    return simplejpeg


def _to_array(im, mode):
    """Convert an open image to an array, uint8 [h, w, c]. mode: "L" or "RGB"."""
    transpose = TRANSPOSES.get(_orientation(im))
    if im.mode.startswith("I"):  # 16-bit grayscale; convert() would clip it at 255
        # Keep the upper byte, as Pillow does for 16-bit color.
        im = Image.fromarray((np.asarray(im).astype(np.int32) >> 8).astype(np.uint8))
    elif im.has_transparency_data:
        white = Image.new("RGBA", im.size, "white")
        im = Image.alpha_composite(white, im.convert("RGBA")).convert("RGB")
    elif im.mode == "CMYK" and "adobe" not in im.info:
        # Pillow assumes that all CMYK JPEGs are inverted, as Adobe's are.
        im = ImageChops.invert(im)
    if im.mode != mode:
        im = im.convert(mode)
    if transpose is not None:
        im = im.transpose(transpose)
    array = np.asarray(im)
    return array[:, :, None] if mode == "L" else array


def _orientation(im):
    """Return the EXIF orientation, 1 to 8; 1 if the EXIF data is missing or corrupt."""
    try:
        return im.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # corrupt EXIF data is common in images that decode correctly
        return 1


def _cause(error, head):
    """Describe in one line why a file cannot be decoded. head: the first bytes of the file."""
    if isinstance(error, DecodeError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too many pixels"
    if isinstance(error, OSError) and error.errno:  # raised by the file system, not the decoder
        return os.strerror(error.errno).lower()
    if not head:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
            return "an HTML or XML document, not an image"
        return "not a JPEG, PNG, WebP, GIF or BMP image"
    return f"corrupt image: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
