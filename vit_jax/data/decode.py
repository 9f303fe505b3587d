"""Decode image files to uint8 [h, w, c] arrays. Safe for untrusted files.

Supports the formats in `FORMATS`, detected by content rather than by file name. For uploads, pass
formats=UPLOAD_FORMATS, which excludes TIFF, PPM and AVIF: Pillow's parsers are its attack surface.

* Animations and files with several pages decode to the first frame or page.
* EXIF orientation is applied. All other metadata, such as color profiles, is ignored.
* Transparent images are composited on white, unless four channels are asked for: then they keep
  their alpha channel, and other images are opaque.
* Channels of 12 and 16 bits are truncated to their upper 8 bits. Signed, 32-bit and floating-point
  pixels, which TIFF and PPM files may have, are rejected: the range of their values is unknown.

Images are decoded with Pillow. Ordinary JPEGs are decoded by simplejpeg, faster and to identical
pixels, as both use libjpeg-turbo; where it is missing, by Pillow.
"""

import ctypes
import functools
import io
import logging
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, TiffImagePlugin

from vit_jax.data import _metadata
from vit_jax.errors import DecodeError, printable

# Formats of Pillow.
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
FORMATS = (*UPLOAD_FORMATS, "DIB", "TIFF", "PPM", "AVIF")
# Suffixes of files in these formats, in lower case.
SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm "
    ".avif .avifs".split()
)
MAX_PIXELS = 89_000_000  # 267 MB decoded to RGB; the compressed file can be as small as 10 kB
MAX_BYTES_PER_PIXEL = 6  # of a file, relative to max_pixels: uncompressed RGB of 16 bits
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by the number of channels
BAND_PIXELS = 2**20  # of the rows that are converted at a time
# EXIF orientation -> a function of an array [h, w, c] that makes the image upright.
TRANSPOSES = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
# None, CCITT, LZW, JPEG, Deflate and PackBits. Others are rare, and LZMA can allocate 4 GB.
TIFF_COMPRESSIONS = {"raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg"}
TIFF_COMPRESSIONS |= {"tiff_adobe_deflate", "tiff_deflate", "packbits"}
MAX_TILE_PIXELS = 2**22  # of TIFF tiles that are larger than the image
# TIFF tags and a value of PHOTOMETRIC.
BITS = 258
PHOTOMETRIC = 262
WHITE_IS_ZERO = 0
TILE_WIDTH = 322
TILE_LENGTH = 323
SAMPLE_FORMAT = 339
UNKNOWN_RANGE = (
    "signed, 32-bit or floating-point pixels have no known range; convert the image to unsigned "
    "8 or 16 bits"
)

# Corrupt TIFF files are reported once, by DecodeError: not by Pillow, nor by libtiff, which
# prints to stderr. Wheels of Pillow contain their own libtiff.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
for _directory in ("pillow.libs", "PIL/.dylibs"):  # Linux and macOS
    for _library in Path(Image.__file__).parents[1].glob(f"{_directory}/libtiff*"):
        ctypes.CDLL(str(_library)).TIFFSetErrorHandler(None)

# By default, exceeding Pillow's pixel limit, slightly above MAX_PIXELS, only raises a warning.
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Pillow's own reader of uncompressed TIFF files is wrong for YCbCr and for planes of 16 bits.
TiffImagePlugin.READ_LIBTIFF = True


def decode(file, channels=3, *, name=None, max_pixels=MAX_PIXELS, formats=FORMATS):
    """Decode an image.

    Args:
      file: a path, or the contents of a file as bytes.
      channels: 3 (RGB), 1 (luma) or 4 (RGBA).
      name: name of the image in error messages; None: the path.
      max_pixels: maximum number of pixels, checked in the header before decompression. Half as
        many for WebP, whose decoder needs four copies of the image.
      formats: accepted formats, a subset of FORMATS.

    Returns:
      uint8 [h, w, channels], possibly read-only.

    Raises:
      DecodeError: if the file is missing, unreadable, unsupported, too large or corrupt.
    """
    head = b""
    try:
        data = file if isinstance(file, bytes) else _read(file, MAX_BYTES_PER_PIXEL * max_pixels)
        head = data[:64]
        kind = _metadata.detect(data, formats)
        accepted = [kind] if kind else [name for name in formats if name not in _metadata.MAGIC]
        data, exif = _metadata.remove_metadata(data, kind)
        with Image.open(io.BytesIO(data), "r", accepted) as im:
            limit = max_pixels // 2 if im.format == "WEBP" else max_pixels
            if im.width * im.height > limit:
                raise DecodeError(f"{im.width} x {im.height} pixels exceed the limit of {limit:,}")
            mode = MODES.get(channels, "RGB")
            array = _decode_jpeg(im, data, mode, exif)
            if array is None:
                if im.format == "TIFF":
                    _check_tiff(im)
                im.load()
                array = _to_array(im, mode, exif, head)
            return array
    except Exception as e:  # Pillow raises nearly every built-in exception type on corrupt files
        name = name or (f"image of {len(file)} bytes" if isinstance(file, bytes) else file)
        raise DecodeError(printable(f"{name}: {_cause(e, head, formats)}")) from e


def _read(path, max_bytes):
    info = os.stat(path)
    if stat.S_ISDIR(info.st_mode):
        raise DecodeError("is a directory")
    if not stat.S_ISREG(info.st_mode):  # opening a pipe may block, and a device may have no end
        raise DecodeError("a pipe, socket or device, not a file")
    if info.st_size > max_bytes:
        raise DecodeError(f"{info.st_size:,} bytes exceed the limit of {max_bytes:,}")
    with open(path, "rb") as file:
        return file.read(info.st_size)


def _decode_jpeg(im, data, mode, exif):
    """Decode an open image with simplejpeg.

    Returns:
      uint8 [h, w, c], or None unless the image is an intact, upright RGB or grayscale JPEG.
    """
    if im.format != "JPEG" or mode == "RGBA" or im.mode not in ("L", mode):
        return None
    simplejpeg = _simplejpeg()
    if simplejpeg is None or _metadata.orientation(exif) in TRANSPOSES:
        return None
    try:
        array = simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB")
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


def _check_tiff(im):
    """Raise DecodeError if an open TIFF image may need a lot of memory, or has signed samples."""
    tile = im.tag_v2.get(TILE_WIDTH, 0) * im.tag_v2.get(TILE_LENGTH, 0)
    if tile > max(im.width * im.height * 5 // 4, MAX_TILE_PIXELS):
        raise DecodeError(f"tiles of {tile:,} pixels in an image of {im.width} x {im.height}")
    compression = im.info["compression"]
    if compression not in TIFF_COMPRESSIONS:
        raise DecodeError(f"TIFF compression {compression} is not supported")
    if 2 in im.tag_v2.get(SAMPLE_FORMAT, ()):
        raise DecodeError(UNKNOWN_RANGE)


def _to_array(im, mode, exif, head):
    """Convert a loaded image to an array, uint8 [h, w, c], a band of rows at a time.

    Whole images would need a copy in memory for each conversion.

    Args:
      im: the image.
      mode: "L", "RGB" or "RGBA".
      exif: EXIF data that was removed from the file.
      head: the first bytes of the file.
    """
    if im.format == "PNG" and im.mode in ("L", "RGB") and "transparency" in im.info:
        # Pillow scales pixels to 8 bits, but not the transparent color.
        depth = head[24]  # bits per channel
        color = np.array(im.info["transparency"]) % 2**depth
        color = color >> 8 if depth == 16 else color * (255 // (2**depth - 1))
        im.info["transparency"] = tuple(color.tolist()) if im.mode == "RGB" else int(color)
    tags = dict(im.tag_v2) if im.format == "TIFF" else {}
    array = np.empty((im.height, im.width, len(mode)), np.uint8)
    rows = max(1, BAND_PIXELS // im.width)
    for top in range(0, im.height, rows):
        band = im.crop((0, top, im.width, min(top + rows, im.height)))
        band = _convert(band, mode, im.format, tags)
        array[top : top + rows] = np.asarray(band).reshape(-1, im.width, len(mode))
    transpose = _metadata.orientation(exif or im.info.get("exif", b""))
    if transpose in TRANSPOSES:
        array = np.ascontiguousarray(TRANSPOSES[transpose](array))
    return array


def _convert(im, mode, kind, tags):
    """Convert an image to another mode.

    Args:
      im: the image.
      mode: "L", "RGB" or "RGBA".
      kind: the format of its file.
      tags: its TIFF tags.
    """
    if im.mode.startswith("I;16") or (im.mode == "I" and kind == "PPM"):
        im = _upper_byte(im, tags)  # convert() would clip values at 255
    elif im.mode in ("I", "F"):
        raise DecodeError(UNKNOWN_RANGE)
    elif im.has_transparency_data:
        im = im.convert("RGBA")
        if mode != "RGBA":
            white = Image.new("RGBA", im.size, "white")
            im = Image.alpha_composite(white, im).convert("RGB")
    elif im.mode == "CMYK" and kind == "JPEG" and "adobe" not in im.info:
        # Pillow assumes that all CMYK JPEGs are inverted, as Adobe's are.
        im = ImageChops.invert(im)
    elif im.mode == "LAB":
        profiles = (ImageCms.createProfile(space) for space in ("LAB", "sRGB"))
        im = ImageCms.profileToProfile(im, *profiles, outputMode="RGB")
    if mode == "RGBA" and im.mode not in ("L", "RGB", "RGBA"):
        im = im.convert("RGB")  # Pillow converts few modes to RGBA
    return im if im.mode == mode else im.convert(mode)


def _upper_byte(im, tags):
    """Convert a 12- or 16-bit grayscale image to mode "L"."""
    samples = np.asarray(im)
    gray = (samples >> (tags.get(BITS, (16,))[0] - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        gray = 255 - gray
    if "transparency" in im.info:
        gray[samples == im.info["transparency"]] = 255
    return Image.fromarray(gray)


def _cause(error, head, formats):
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
        if kind := _metadata.detect(head, formats):
            return f"corrupt {kind} image, or a variant that is not supported"
        names = ["WebP" if name == "WEBP" else name for name in formats if name != "DIB"]
        return f"not a {', '.join(names[:-1])} or {names[-1]} image"
    return f"corrupt image: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
