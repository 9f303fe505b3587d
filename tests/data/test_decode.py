import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import decode as decode_module
from vit_jax.data.decode import DecodeError, decode

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


def png(header, data):
    """Encode a PNG file from IHDR fields (width, height, bits, color type) and raw rows."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    body += chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(color_type, samples):
    """Encode a 2x1 PNG with 16 bits per channel."""
    row = b"\0" + struct.pack(f">{len(samples) * 2}H", *samples * 2)
    return png((2, 1, 16, color_type), row)


def cmyk(adobe):
    """Encode a red CMYK JPEG. Values are inverted in Adobe's files, which Pillow writes."""
    values = (0, 255, 255, 0) if adobe else (255, 0, 0, 255)
    data = encode(Image.new("CMYK", (16, 16), values), "JPEG", quality=100)
    assert b"Adobe" in data
    return data if adobe else data.replace(b"Adobe", b"Other")


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
    "1x4000": (encode(Image.new("RGB", (1, 4000), RED), "PNG"), RED),
}


@pytest.mark.parametrize("name", FILES)
def test_formats_and_modes_decode_to_expected_colors(name):
    data, color = FILES[name]
    image = decode(data)
    assert image.dtype == np.uint8 and image.shape[2] == 3
    np.testing.assert_allclose(
        image.reshape(-1, 3), np.broadcast_to(color, (image.size // 3, 3)), atol=2
    )
    gray = decode(data, channels=1)
    luma = np.dot(color, (0.299, 0.587, 0.114))
    assert gray.shape == image.shape[:2] + (1,)
    np.testing.assert_allclose(gray, luma, atol=2)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
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
        options = {"lossless": True} if fmt == "WEBP" else {}
        decoded = decode(encode(image, fmt, exif=exif.tobytes(), **options))
        assert decoded.shape == upright.shape, tag
        assert np.abs(decoded.astype(int) - upright).mean() < 8, tag


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_corrupt_exif_is_ignored():
    data = encode(solid("RGB", WHITE), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data).min() > 250


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
        (encode(noise, "TIFF"), "not a JPEG"),
        (encode(noise, "PPM"), "not a JPEG"),
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
    simplejpeg = pytest.importorskip("simplejpeg")
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
    for i in range(400):
        data = bytearray(sources[i % len(sources)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            assert decode(bytes(data)).dtype == np.uint8
        except DecodeError:
            num_errors += 1
    assert 0 < num_errors < 400
