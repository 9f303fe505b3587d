"""Remove metadata from encoded images before Pillow reads them.

Pillow rejects large text and color profiles, and reads others in quadratic time or memory: an EXIF
or TIFF directory of 1 MB whose values overlap becomes 50 GB. The functions here take and return the
contents of a file, and leave it unchanged from the first byte that they cannot parse.
"""

from vit_jax.errors import DecodeError

MAGIC = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0"),  # Pillow does not support big-endian BigTIFF
}
# Second bytes of JPEG markers: those without a segment, and those of metadata, which are comments
# and APP segments except JFIF and Adobe.
JPEG_STANDALONE = frozenset([0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)])
JPEG_METADATA = frozenset([*range(0xE1, 0xF0), 0xFE]) - {0xEE}
JPEG_SCAN = 0xDA
PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs")
ORIENTATION_TAG = 0x0112
# TIFF tags that describe the pixels: size, layout, strips, tiles, orientation and palette.
TIFF_TAGS = {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320}
TIFF_TAGS |= {322, 323, 324, 325, 338, 339, 347, 529, 530, 531, 532}
MAX_TIFF_VALUES = 2**20  # per tag, such as offsets of strips


def detect(data, formats):
    """Return the name of the format of a file, one of MAGIC and `formats`, or None."""
    for name, magic in MAGIC.items():
        if data.startswith(magic) and name in formats:
            return name
    return None


def remove_metadata(data, kind):
    """Remove metadata from a file. kind: its format, as in `detect`.

    Returns:
      The file, and the EXIF data if it is a JPEG.

    Raises:
      DecodeError: if the directory of a TIFF file is corrupt or has too many values.
    """
    if kind == "JPEG":
        return _reduce_jpeg(data)
    reduce = {"PNG": _reduce_png, "GIF": _reduce_gif, "TIFF": _reduce_tiff}.get(kind)
    return (reduce(data) if reduce else data), b""


def orientation(exif):
    """Return the orientation in EXIF data, 1 to 8 in valid data; 1 if it is missing or corrupt."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order:
        start = _integer(tiff, 4, 4, order)
        stop = min(start + 2 + 12 * _integer(tiff, start, 2, order), len(tiff) - 11)
        for pos in range(start + 2, stop, 12):
            if _integer(tiff, pos, 2, order) == ORIENTATION_TAG:
                return _integer(tiff, pos + 8, 2, order)
    return 1


def _reduce_jpeg(data):
    """Remove metadata before the first scan. Like Pillow, skips bytes that are in no segment."""
    parts, start, pos, exif = [], 0, 2, b""
    while (pos := data.find(b"\xff", pos)) >= 0 and pos + 4 <= len(data):
        marker = data[pos + 1]
        if marker in (0, 0xFF):  # an escaped byte or padding
            pos += 1
        elif marker in JPEG_STANDALONE:
            pos += 2
        elif marker < 0xC0 or marker == JPEG_SCAN:
            break
        else:
            end = pos + 2 + max(2, data[pos + 2] << 8 | data[pos + 3])
            if end > len(data):
                break
            if marker in JPEG_METADATA:
                if marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", pos + 4):
                    exif = data[pos + 4 : end]
                parts.append(data[start:pos])
                start = end
            pos = end
    return b"".join([*parts, data[start:]]), exif


def _reduce_png(data):
    """Remove text, color profiles and resolutions."""
    parts, start, pos = [], 0, 8
    while pos + 8 <= len(data):
        end = pos + 12 + _integer(data, pos, 4, "big")
        if data[pos + 4 : pos + 8] in PNG_METADATA and end <= len(data):
            parts.append(data[start:pos])
            start = end
        pos = end
    return b"".join([*parts, data[start:]])


def _reduce_gif(data):
    """Remove comments and application extensions before the first frame."""
    parts, start = [], 0
    pos = 13 + (6 << (data[10] & 7) if len(data) > 10 and data[10] & 0x80 else 0)
    while pos < len(data) and data[pos] not in b",;":
        end = pos + 1
        if data[pos : pos + 1] == b"!":
            end += 1
            while end < len(data) and data[end]:
                end += 1 + data[end]
            end += 1
            if data[pos + 1 : pos + 2] != b"\xf9":  # graphic control extension: transparency
                parts.append(data[start:pos])
                start = end
        pos = end
    return b"".join([*parts, data[start:]])


def _reduce_tiff(data):
    """Remove all pages but the first, and all tags that do not describe its pixels."""
    order = "little" if data.startswith(b"II") else "big"
    big = data[2] == 43  # BigTIFF
    count_size, entry_size, offset_size = (8, 20, 8) if big else (2, 12, 4)
    start = _integer(data, offset_size, offset_size, order)
    first = start + count_size
    stop = first + entry_size * _integer(data, start, count_size, order)
    if stop + offset_size > len(data):
        raise DecodeError("corrupt image: the TIFF directory is truncated")
    entries = {}
    for pos in range(first, stop, entry_size):
        tag = _integer(data, pos, 2, order)
        if tag in TIFF_TAGS and tag not in entries:
            if _integer(data, pos + 4, offset_size, order) > MAX_TIFF_VALUES:
                raise DecodeError(f"TIFF tag {tag} has more than {MAX_TIFF_VALUES:,} values")
            entries[tag] = data[pos : pos + entry_size]
    directory = len(entries).to_bytes(count_size, order) + b"".join(entries.values())
    directory += bytes(offset_size)  # no next page
    view = memoryview(data)  # slices without copies
    return b"".join([view[:start], directory, view[start + len(directory) :]])


def _integer(data, pos, size, order):
    return int.from_bytes(data[pos : pos + size], order)
