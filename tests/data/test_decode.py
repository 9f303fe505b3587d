import io
import os
import socket
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.faults import pictures as fault_pictures
from vit_jax.data import decode as decode_module
from vit_jax.data.decode import DecodeError, decode
from vit_jax.data.pictures import open_images

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image, fmt, **options):
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def solid(mode, color, **info):
    image = Image.new(mode, (6, 4), color)
    image.info.update(info)
    return image


def palette(color):
    image = Image.new("P", (6, 4), 1)
    image.putpalette((9, 9, 9) + color)
    return image


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header, data, *chunks):
    """Encode a PNG file from IHDR fields (width, height, bits, color type), raw rows and chunks."""
    body = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)) + b"".join(chunks)
    body += png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(color_type, samples, *chunks):
    """Encode a 2x1 PNG with 16 bits per channel."""
    row = b"\0" + struct.pack(f">{len(samples) * 2}H", *samples * 2)
    return png((2, 1, 16, color_type), row, *chunks)


def png_bits(bits, color_type, value, *chunks):
    """Encode a 1x1 PNG with fewer than 8 bits per pixel."""
    return png((1, 1, bits, color_type), bytes([0, value << (8 - bits)]), *chunks)


def shorts(*values):
    return struct.pack(f">{len(values)}H", *values)


def tiff(bits, photometric, data, order="<", *, size=(4, 3), big=False, num_entries=None, **tags):
    """Encode a TIFF file with one strip.

    Args:
      bits: bits of each channel of a pixel.
      photometric: 0 (white is zero), 1, 2 (RGB), 3 (palette), 5 (CMYK), 6 (YCbCr) or 8 (Lab).
      data: the strip; a list: one strip per channel.
      order: "<" or ">".
      size: width and height.
      big: write a BigTIFF.
      num_entries: number of directory entries in the header; None: the true number.
      **tags: t<number>=[values] adds or replaces tags.
    """
    strips = data if isinstance(data, list) else [data]
    values = {256: size[:1], 257: size[1:], 258: bits, 259: [1], 262: [photometric]}
    values |= {273: [0] * len(strips), 277: [len(bits)], 278: size[1:], 284: [min(len(strips), 2)]}
    values |= {279: [len(strip) for strip in strips]}
    values |= {int(name[1:]): value for name, value in tags.items()}
    kind, letter, number = (16, "Q", 43) if big else (4, "L", 42)
    inline = struct.calcsize("<" + letter)
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", number)
    header += struct.pack("<HHQ", 8, 0, 16) if big else struct.pack(order + "L", 8)
    start = len(header) + (8 + 20 * len(values) if big else 2 + 12 * len(values)) + inline
    extra = sum(inline * len(value) for value in values.values())
    ends = np.cumsum([0, *map(len, strips)]) + start + extra
    values[273] = tags.get("t273", ends[:-1].tolist())
    entries, block = b"", b""
    for tag in sorted(values):
        is_short = tag in (258, 320)  # Pillow and libtiff expect these as 16-bit integers
        count, packed = (
            len(values[tag]),
            struct.pack(
                order + str(len(values[tag])) + ("H" if is_short else letter), *values[tag]
            ),
        )
        entries += struct.pack(order + "HH" + letter, tag, 3 if is_short else kind, count)
        if len(packed) > inline:
            entries += struct.pack(order + letter, start + len(block))
            block += packed
        else:
            entries += packed.ljust(inline, b"\0")
    count = struct.pack(order + ("Q" if big else "H"), num_entries or len(values))
    block = block.ljust(extra, b"\0")
    return header + count + entries + bytes(inline) + block + b"".join(strips)


def samples(order, *values, count=12):
    """Return 16-bit samples, repeated for each pixel."""
    return struct.pack(f"{order}{len(values) * count}H", *values * count)


def cmyk(adobe):
    """Encode a red CMYK JPEG. Values are inverted in Adobe's files, which Pillow writes."""
    values = (0, 255, 255, 0) if adobe else (255, 0, 0, 255)
    data = encode(Image.new("CMYK", (16, 16), values), "JPEG", quality=100)
    assert b"Adobe" in data
    return data if adobe else data.replace(b"Adobe", b"Other")


def TRNS(*color):
    """Return a PNG chunk that makes a color transparent."""
    return png_chunk(b"tRNS", struct.pack(f">{len(color)}H", *color))


PLTE = png_chunk(b"PLTE", bytes((9, 9, 9) + GREEN))
TIFF_PALETTE = [0, 0] + [0] * 254 + [0, 65535] + [0] * 254 + [0, 0] + [0] * 254  # 1 is green

two_frames = [palette(GREEN), palette(BLUE)]
FILES = {
    "rgb": (encode(solid("RGB", RED), "PNG"), RED),
    "gray": (encode(solid("L", 77), "PNG"), (77, 77, 77)),
    "1 bit": (encode(solid("1", 1), "PNG"), WHITE),
    "palette": (encode(palette(GREEN), "PNG"), GREEN),
    "transparent palette": (encode(palette(GREEN), "PNG", transparency=1), WHITE),
    "transparent color": (encode(solid("RGB", RED), "PNG", transparency=RED), WHITE),
    "rgba, hidden color": (encode(solid("RGBA", (255, 0, 0, 0)), "PNG"), WHITE),
    "rgba, half": (encode(solid("RGBA", (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
    "la": (encode(solid("LA", (0, 51)), "PNG"), (204, 204, 204)),
    "16 bit gray": (png16(0, [30000]), (117, 117, 117)),
    "16 bit rgb": (png16(2, [30000, 0, 65535]), (117, 0, 255)),
    "16 bit gray, alpha": (png16(4, [0, 0]), WHITE),
    "16 bit gray, transparent": (png16(0, [30000], TRNS(30000)), WHITE),
    "16 bit gray, other transparent": (png16(0, [30000], TRNS(30001)), (117, 117, 117)),
    "16 bit rgb, transparent": (png16(2, [30000, 0, 65535], TRNS(30000, 0, 65535)), WHITE),
    "16 bit rgba": (png16(6, [65535, 0, 0, 32768]), (255, 127, 127)),
    "1 bit png": (png_bits(1, 0, 1), WHITE),
    "1 bit, transparent": (png_bits(1, 0, 0, TRNS(0)), WHITE),
    "2 bit": (png_bits(2, 0, 1), (85, 85, 85)),
    "2 bit, transparent": (png_bits(2, 0, 1, TRNS(1)), WHITE),
    "2 bit, other transparent": (png_bits(2, 0, 1, TRNS(2)), (85, 85, 85)),
    "4 bit": (png_bits(4, 0, 5), (85, 85, 85)),
    "4 bit, transparent": (png_bits(4, 0, 5, TRNS(5)), WHITE),
    "1 bit palette": (png_bits(1, 3, 1, PLTE), GREEN),
    "2 bit palette": (png_bits(2, 3, 1, PLTE), GREEN),
    "4 bit palette": (png_bits(4, 3, 1, PLTE), GREEN),
    "palette, alpha": (png_bits(4, 3, 1, PLTE, png_chunk(b"tRNS", b"\0\x33")), (204, 255, 204)),
    "palette, index": (png_bits(4, 3, 1, PLTE, png_chunk(b"tRNS", b"\xff\0")), WHITE),
    "adobe cmyk": (cmyk(adobe=True), RED),
    "plain cmyk": (cmyk(adobe=False), RED),
    "progressive": (encode(solid("RGB", BLUE), "JPEG", progressive=True, quality=100), BLUE),
    "webp": (encode(solid("RGBA", (0, 0, 0, 0)), "WEBP", lossless=True), WHITE),
    "webp animated": (
        encode(solid("RGB", RED), "WEBP", lossless=True, save_all=True, append_images=two_frames),
        RED,
    ),
    "gif animated": (
        encode(two_frames[0], "GIF", save_all=True, append_images=two_frames[1:]),
        GREEN,
    ),
    "bmp": (encode(solid("RGB", RED), "BMP"), RED),
    "dib": (encode(solid("RGB", RED), "DIB"), RED),
    "1x4000": (encode(Image.new("RGB", (1, 4000), RED), "PNG"), RED),
    "mpo": (
        encode(solid("RGB", RED), "MPO", save_all=True, append_images=[solid("RGB", BLUE)]),
        RED,
    ),
    "avif": (encode(solid("RGB", RED), "AVIF", quality=100), RED),
    "avif, alpha": (encode(solid("RGBA", (0, 0, 0, 0)), "AVIF", quality=100), WHITE),
    "ppm": (encode(solid("RGB", RED), "PPM"), RED),
    "pgm": (encode(solid("L", 77), "PPM"), (77, 77, 77)),
    "pgm, 16 bit": (b"P5 2 1 65535\n" + shorts(30000, 30000), (117, 117, 117)),
    "pbm": (encode(solid("1", 1), "PPM"), WHITE),
    "ppm, text": (b"P3 1 1 255\n255 0 0\n", RED),
}
for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
    FILES[f"tiff, {name}"] = encode(solid("RGB", BLUE), "TIFF", compression=name), BLUE
for name in ("raw", "group3", "group4"):
    FILES[f"tiff, 1 bit, {name}"] = encode(solid("1", 1), "TIFF", compression=name), WHITE
for order, name in (("<", "little"), (">", "big")):
    planes = [samples(order, value) for value in (30000, 0, 65535)]
    files = {
        "gray": (tiff([8], 1, bytes([77] * 12), order), (77, 77, 77)),
        "inverted": (tiff([8], 0, bytes([178] * 12), order), (77, 77, 77)),
        "4 bit": (tiff([4], 1, bytes([0x55] * 6), order), (85, 85, 85)),
        "palette": (tiff([8], 3, bytes([1] * 12), order, t320=TIFF_PALETTE), GREEN),
        "palette, alpha": (
            tiff([8, 8], 3, bytes([1, 51] * 12), order, t320=TIFF_PALETTE, t338=[2]),
            (204, 255, 204),
        ),
        "gray, alpha": (tiff([8, 8], 1, bytes([0, 51] * 12), order, t338=[2]), (204, 204, 204)),
        "rgba": (tiff([8] * 4, 2, bytes([255, 0, 0, 128] * 12), order, t338=[2]), (255, 127, 127)),
        "rgba, premultiplied": (
            tiff([8] * 4, 2, bytes([128, 0, 0, 128] * 12), order, t338=[1]),
            (255, 127, 127),
        ),
        "rgbx": (tiff([8] * 4, 2, bytes([255, 0, 0, 128] * 12), order, t338=[0]), RED),
        "cmyk": (tiff([8] * 4, 5, bytes([0, 255, 255, 0] * 12), order), RED),
        "ycbcr": (tiff([8] * 3, 6, bytes([76, 85, 255] * 12), order, t530=[1, 1]), RED),
        "lab": (tiff([8] * 3, 8, bytes([128, 40, 236] * 12), order), (171, 91, 155)),
        "16 bit": (tiff([16], 1, samples(order, 30000), order), (117, 117, 117)),
        "16 bit rgb": (tiff([16] * 3, 2, samples(order, 30000, 0, 65535), order), (117, 0, 255)),
        "16 bit planes": (tiff([16] * 3, 2, planes, order), (117, 0, 255)),
        "8 bit planes": (tiff([8] * 3, 2, [b"\xff" * 12, bytes(12), bytes(12)], order), RED),
        "16 bit rgba": (
            tiff([16] * 4, 2, samples(order, 65535, 0, 0, 32768), order, t338=[2]),
            (255, 127, 127),
        ),
        "16 bit cmyk": (tiff([16] * 4, 5, samples(order, 0, 65535, 65535, 0), order), RED),
        "16 bit deflate": (
            tiff([16], 1, zlib.compress(samples(order, 30000)), order, t259=[8]),
            (117, 117, 117),
        ),
    }
    FILES |= {f"tiff, {name} endian, {key}": value for key, value in files.items()}
FILES["bigtiff"] = tiff([8] * 3, 2, bytes([255, 0, 0] * 12), big=True), RED
FILES["tiff, 16 bit, inverted"] = tiff([16], 0, samples("<", 65535 - 30000)), (117, 117, 117)
FILES["tiff, 12 bit"] = tiff([12], 1, bytes([0x75, 0x07, 0x50] * 6)), (117, 117, 117)
LOSSY = ("adobe cmyk", "plain cmyk", "progressive", "mpo", "avif", "tiff, jpeg")
LOSSY += tuple(name for name in FILES if name.endswith(("ycbcr", "lab")))


@pytest.mark.parametrize("name", FILES)
def test_formats_and_modes_decode_to_expected_colors(name):
    data, color = FILES[name]
    image = decode(data)
    assert image.dtype == np.uint8 and image.shape[2] == 3
    tolerance = 2 if name in LOSSY else 0
    expected = np.broadcast_to(color, image.shape)
    np.testing.assert_allclose(image, expected, atol=tolerance)
    gray = decode(data, channels=1)
    luma = np.dot(color, (0.299, 0.587, 0.114))
    assert gray.shape == image.shape[:2] + (1,)
    np.testing.assert_allclose(gray, luma, atol=tolerance + 0.5)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation(fmt):
    upright = np.zeros((24, 32, 3), np.uint8)
    upright[:8, :8], upright[:8, -8:], upright[-8:, :8] = RED, GREEN, BLUE
    T = Image.Transpose
    # Transform of the stored image for each orientation: the inverse of the correction.
    stored = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM}
    stored |= {5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    for tag, method in stored.items():
        image = Image.fromarray(upright)
        image = image if method is None else image.transpose(method)
        exif = Image.Exif()
        exif[0x0112] = tag
        options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(fmt, {})
        decoded = decode(encode(image, fmt, exif=exif.tobytes(), **options))
        assert decoded.shape == upright.shape, tag
        assert np.abs(decoded.astype(int) - upright).mean() < 8, tag


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_corrupt_exif_is_ignored():
    data = encode(solid("RGB", WHITE), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data).min() > 250


def test_suffixes_are_those_of_the_formats():
    Image.init()
    suffixes = {s for s, name in Image.EXTENSION.items() if name in (*decode_module.FORMATS, "MPO")}
    assert set(decode_module.SUFFIXES) == suffixes - {".pfm"}  # floating point


def test_uploads_exclude_formats():
    for fmt in ("TIFF", "PPM", "AVIF", "DIB"):
        data = encode(solid("RGB", RED), fmt)
        assert decode(data).shape == (4, 6, 3)
        with pytest.raises(DecodeError, match="not a JPEG, PNG, WebP, GIF or BMP image"):
            decode(data, formats=decode_module.UPLOAD_FORMATS)
    for fmt in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        data = encode(solid("RGB", RED), fmt)
        assert decode(data, formats=decode_module.UPLOAD_FORMATS).shape == (4, 6, 3)


def test_first_page_of_a_tiff():
    pages = [solid("RGB", color) for color in (GREEN, BLUE)]
    data = encode(solid("RGB", RED), "TIFF", save_all=True, append_images=pages)
    assert (decode(data) == RED).all()


def directory(num_tags, size):
    """Return a TIFF directory of tags whose values overlap, each of `size` bytes."""
    tags = (struct.pack("<HHLL", 1000 + i, 7, size, 8) for i in range(num_tags))
    header = b"II*\0" + struct.pack("<LH", 8, num_tags)
    return (header + b"".join(tags) + bytes(4)).ljust(size + 8, b"\0")


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_metadata():
    """Yield the names of small images with a lot of metadata, and the files."""
    red = solid("RGB", RED)
    jpeg = encode(red, "JPEG", quality=100)
    exif, icc = b"Exif\0\0", b"ICC_PROFILE\0"
    for name, block in {
        "EXIF of 50 MB": segment(0xE1, exif + bytes(60_000)) * 830,
        "EXIF bomb": segment(0xE1, exif + directory(4000, 60_000)),
        "ICC profile": b"".join(segment(0xE2, icc + bytes([i, 255]) * 20_000) for i in range(255)),
        "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(60_000)) * 200,
        "comment": segment(0xFE, bytes(60_000)) * 200,
    }.items():
        yield f"JPEG, {name}", jpeg[:2] + block + jpeg[2:]
        yield f"JPEG, padding and {name}", jpeg[:20] + b"\xff\0\1\xff" + block + jpeg[20:]
    header, pixels, end = np.split(np.frombuffer(encode(red, "PNG"), np.uint8), [33, -12])
    header, pixels, end = header.tobytes(), pixels.tobytes(), end.tobytes()
    bomb = zlib.compress(bytes(10**8))
    for name, chunk in {
        "ICC bomb": png_chunk(b"iCCP", b"name\0\0" + bomb),
        "text bomb": png_chunk(b"zTXt", b"name\0\0" + bomb),
        "international text bomb": png_chunk(b"iTXt", b"name\0\1\0\0\0" + bomb),
        "text of 70 MB": png_chunk(b"tEXt", b"name\0" + bytes(10**7)) * 7,
        "EXIF bomb": png_chunk(b"eXIf", directory(60_000, 10**6)),
    }.items():
        yield f"PNG, {name}", header + chunk + pixels + end
        yield f"PNG, {name} at the end", header + pixels + chunk + end
    yield "WebP, EXIF bomb", encode(red, "WEBP", lossless=True, exif=directory(60_000, 10**6))
    gif = encode(palette(RED), "GIF")
    start = 13 + (6 << (gif[10] & 7))
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0"  # 10 MB
    yield "GIF, comment", gif[:start] + comment + gif[start:]


def test_metadata_of_any_size_is_ignored():
    for name, data in with_metadata():
        tracemalloc.start()
        image = decode(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.abs(image.astype(int) - RED).max() <= 2, name
        assert peak < 5e6, name


def add_tags(data, tags):
    """Add entries (tag, type, count, value) to the directory of a little-endian TIFF file."""
    count = struct.unpack_from("<H", data, 8)[0]
    entries = [bytearray(data[10 + 12 * i :][:12]) for i in range(count)]
    added = [struct.pack("<HHLL", *tag) for tag in tags]
    shift = 12 * len(added)
    for entry in entries:
        if entry[0] | entry[1] << 8 == 273:  # the offset of the strip
            entry[8:] = struct.pack("<L", struct.unpack("<L", entry[8:])[0] + shift)
    directory = struct.pack("<H", count + len(added)) + b"".join([*entries, *added])
    return data[:8] + directory + data[10 + 12 * count :]


def test_tiff_bombs_are_rejected_or_harmless():
    gray = tiff([8], 1, bytes([77] * 12))
    for tags in (
        [(1000 + i, 7, 10**6, 8) for i in range(50_000)],  # tags with overlapping values
        [(273, 4, 200_000, 8)] * 50_000,  # the same tag
        [(34665, 4, 1, 8), (330, 4, 1, 8)],  # directories that refer to themselves
    ):
        data = add_tags(gray, tags).ljust(2 * 10**6, b"\0")
        tracemalloc.start()
        assert (decode(data) == 77).all()
        assert tracemalloc.get_traced_memory()[1] < 2e7
        tracemalloc.stop()
    zeros = zlib.compress(bytes(10**6))
    square = {"t322": [40_000], "t323": [40_000], "t324": [8], "t325": [len(zeros)]}
    for data, cause in (
        (tiff([8], 1, zeros, t259=[8], **square), "tiles of 1,600,000,000 pixels"),
        (tiff([8], 1, zeros, size=(20_000, 20_000), t259=[8]), "pixels"),
        (tiff([8], 1, zeros, t259=[34925]), "compression lzma is not supported"),
        (add_tags(gray, [(320, 3, 2**31, 8)]), "TIFF tag 320 has more than 1,048,576 values"),
        (gray[:100], "directory is truncated"),
    ):
        with pytest.raises(DecodeError, match=cause):
            decode(data)


def test_names_in_errors_are_printable(tmp_path):
    path = tmp_path / os.fsdecode(b"a\nb\x1b[31m\xff[1].png")
    path.write_bytes(b"text")
    with pytest.raises(DecodeError) as e:
        decode(path)
    assert rf"{tmp_path}/a\nb\x1b[31m\udcff[1].png: not a JPEG" in str(e.value)
    pictures, errors = open_images([str(path)])
    assert not pictures and errors == [str(e.value)]


noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
JPEG = encode(noise, "JPEG")


@pytest.mark.parametrize(
    "data, cause",
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"just some text", "not a JPEG"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:-2], "truncated"),
        (JPEG[:30], "corrupt|truncated|not a JPEG"),
        (encode(noise, "PNG")[:1000], "truncated"),
        (encode(noise, "JPEG2000"), "not a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF image"),
        (encode(noise, "TIFF")[:2000], "corrupt image"),
        (tiff([16, 16], 1, bytes(48), t338=[2]), "corrupt TIFF image, or a variant"),
        (tiff([32], 1, bytes(48)), "8 or 16 bits"),
        (tiff([32], 1, bytes(48), t339=[3]), "8 or 16 bits"),
        (tiff([16], 1, bytes(24), t339=[2]), "8 or 16 bits"),
        (tiff([8], 1, bytes(12), t339=[2]), "8 or 16 bits"),
        (b"Pf 2 1 -1\n" + bytes(8), "8 or 16 bits"),
    ],
)
def test_invalid_files_raise_one_line_errors(data, cause, tmp_path):
    path = tmp_path / "사진.jpg"
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=cause) as e:
        decode(path)
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)
    with pytest.raises(DecodeError, match=cause):
        decode(data)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(DecodeError, match=r"gone\.jpg: no such file"):
        decode(tmp_path / "gone.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9440, 9500, 20000, 2**31 - 1])
def test_decompression_bomb_is_rejected_from_its_header(side):
    black = png((side, side, 8, 2), bytes(1000))
    tracemalloc.start()
    with pytest.raises(DecodeError, match="pixels"):
        decode(black)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    with pytest.raises(DecodeError, match="32 x 32 pixels exceed the limit of 1,000"):
        decode(JPEG, max_pixels=1000)


def jpegs():
    rng = np.random.default_rng(0)
    for i, subsampling in enumerate(("4:4:4", "4:2:2", "4:2:0") * 4):
        h, w = rng.integers(1, 50, 2)
        image = Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = i % 9  # 0 is invalid, 1 to 8 are valid
        options = {"quality": 30 + 6 * i, "subsampling": subsampling, "progressive": i % 4 == 3}
        yield encode(image, "JPEG", exif=exif.tobytes(), **options)
        yield encode(image, "JPEG", **options)
        yield encode(image, "JPEG", keep_rgb=True)
        yield encode(image.convert("L"), "JPEG", **options)
    yield from (cmyk(adobe=True), cmyk(adobe=False))


@pytest.mark.filterwarnings("ignore")
def test_simplejpeg_matches_pillow(monkeypatch):
    """Pixels and errors are identical for intact, corrupt and truncated files."""
    import simplejpeg

    rng = np.random.default_rng(0)
    files = list(jpegs())
    decoded_shapes = []

    class Recorder:
        def decode_jpeg(self, *args):
            array = simplejpeg.decode_jpeg(*args)
            decoded_shapes.append(array.shape)
            return array

    def outcome(data, channels, decoder):
        monkeypatch.setattr(decode_module, "_simplejpeg", lambda: decoder)
        try:
            return decode(data, channels)
        except DecodeError as e:
            return np.array(str(e))

    assert decode_module._simplejpeg() is simplejpeg
    for data in files:
        for channels in (1, 3):
            outcomes = [outcome(data, channels, decoder) for decoder in (Recorder(), None)]
            np.testing.assert_array_equal(*outcomes)
    # A third of the calls: upright images with the requested number of channels.
    assert len(decoded_shapes) > 30
    for i in range(300):
        data = bytearray(files[i % len(files)])
        for _ in range(rng.integers(3)):
            data[rng.integers(len(data))] = rng.integers(256)
        data = bytes(data[: rng.integers(len(data))] if i % 3 == 0 else data)
        np.testing.assert_array_equal(*(outcome(data, 3, d) for d in (simplejpeg, None)))


@pytest.mark.filterwarnings("ignore")  # Pillow warns about corrupt metadata
def test_mutated_files_decode_or_raise_decode_error():
    rng = np.random.default_rng(0)
    sources = [data for data, _ in FILES.values() if len(data) < 3000] + [JPEG]
    num_errors = 0
    for i in range(1000):
        data = bytearray(sources[i % len(sources)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            assert decode(bytes(data)).dtype == np.uint8
        except DecodeError:
            num_errors += 1
    assert 0 < num_errors < 1000


def test_pipes_sockets_and_devices_are_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", "/dev/zero", "/dev/null"):
            with pytest.raises(DecodeError, match=f"^{path}: a pipe, socket or device"):
                decode(path)


def test_bands_of_rows_equal_the_whole_image(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 7, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(pixels), "PNG", exif=exif)
    whole = decode(data)
    monkeypatch.setattr(decode_module, "BAND_PIXELS", 21)  # three rows
    assert whole.shape == (7, 50, 3) and np.array_equal(decode(data), whole)


def test_corrupt_tiff_prints_nothing(capfd):
    data = bytearray(encode(Image.new("RGB", (40, 30)), "TIFF", compression="tiff_adobe_deflate"))
    data[8:40] = bytes(32)
    with pytest.raises(DecodeError):
        decode(bytes(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("start", range(0, 2000, 167))
def test_corrupt_file_is_decoded_or_refused(start, tmp_path):
    """A sample of `tests.faults.pictures`: each of its dozen ranges, including bombs."""
    number = start // 10 * 10 + start // 167 % 3
    data, shape = fault_pictures.make(number)
    (tmp_path / "file").write_bytes(data)
    try:
        got = decode(tmp_path / "file", max_pixels=50_000_000).shape
    except DecodeError as error:
        got = None
        assert str(error).startswith(f"{tmp_path}/file: ") and str(error).isprintable()
    assert shape in ("any", got)


class Square:
    """The preprocessing of a model whose view is one pixel."""

    image, keep_shape, channels = 1, False, 3
    crop, crop_mode, interpolation = 1.0, "center", "bicubic"

    def view(self, image):
        return image[:1, :1]


def test_only_the_views_of_opened_images_are_kept(tmp_path):
    for name in ("a.png", "c.png"):
        Image.new("RGB", (60, 40), RED).save(tmp_path / name)
    os.mkfifo(tmp_path / "b.png")
    names = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    pictures, errors = open_images(names, models=[Square()])
    assert [picture.name for picture in pictures] == [names[0], names[2]] and len(errors) == 1
    assert all(picture.image is None for picture in pictures)
    assert np.array_equal(pictures[0].view(Square()), np.full((1, 1, 3), RED))
