"""vit_jax.resize, compiled, against Pillow, pixel for pixel."""

import numpy as np
import pytest

from vit_jax.augment import resize


def images():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (260, 300, 3), np.uint8)
    yield from (noise, noise[:120, :90], np.where(noise > 128, 255, 0).astype(np.uint8))
    yield noise[::2, ::-1]  # not contiguous


def test_compiled_is_pillows_pixel_for_pixel():
    pytest.importorskip("numba")
    compiled, rng, tall = resize._compiled(), np.random.default_rng(1), 0
    assert compiled  # its pixels are those of the Pillow that is installed
    for image in images():
        height, width = image.shape[:2]
        for i in range(40):
            h, w = (int(n) for n in rng.integers(1, (height + 1, width + 1)))
            y, x = (int(rng.integers(n)) for n in (height - h + 1, width - w + 1))
            to = [(64, 64), (w, 70), (70, h), tuple(int(n) for n in rng.integers(1, 330, 2))][i % 4]
            if to == (w, h):
                continue
            found = compiled(image, *to, (y, x, h, w))
            expected = resize._pillow(image[y : y + h, x : x + w], *to)
            np.testing.assert_array_equal(found, expected, err_msg=f"{w} x {h} to {to}")
            tall += h - to[1] > 2 * max(w - to[0], 0)
    assert tall > 20  # in these, Pillow 13 resizes the columns first


@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_is_a_cropped_image_with_and_without_numba(channels, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (240, 200, channels), np.uint8)
    boxes = [(10, 20, 200, 150), (0, 0, 50, 40), (3, 4, 64, 64)]
    views = [resize.resize(image, 64, 64, box) for box in boxes]
    crops = [resize.resize(image[y : y + h, x : x + w], 64, 64) for y, x, h, w in boxes]
    monkeypatch.setattr(resize, "_compiled", lambda: None)
    plain = [resize.resize(image, 64, 64, box) for box in boxes]
    for view, crop, expected in zip(views, crops, plain, strict=True):
        assert view.shape == (64, 64, channels)
        np.testing.assert_array_equal(view, expected)
        np.testing.assert_array_equal(crop, expected)
    np.testing.assert_array_equal(plain[2], image[3:67, 4:68])
