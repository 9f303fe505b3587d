"""The compiled resize is bit-exact with Pillow."""

import itertools

import numpy as np
import pytest

from vit_jax.augment import resize


def images():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (260, 300, 3), np.uint8)
    yield from (noise, noise[:120, :90], np.where(noise > 128, 255, 0).astype(np.uint8))
    yield noise[::2, ::-1]  # not contiguous


def test_compiled_matches_pillow():
    compiled = resize._compiled()
    assert compiled  # None if the result differs from the installed Pillow
    rng = np.random.default_rng(1)
    num_vertical_first = 0
    for image in images():
        height, width = image.shape[:2]
        for i in range(40):
            h, w = (int(n) for n in rng.integers(1, (height + 1, width + 1)))
            y, x = (int(rng.integers(n)) for n in (height - h + 1, width - w + 1))
            random_size = tuple(int(n) for n in rng.integers(1, 330, 2))
            size = [(64, 64), (w, 70), (70, h), random_size][i % 4]
            if size == (w, h):
                continue
            actual = compiled(image, *size, (y, x, h, w))
            expected = resize._pillow(image[y : y + h, x : x + w], *size)
            np.testing.assert_array_equal(actual, expected, err_msg=f"{w} x {h} to {size}")
            num_vertical_first += h - size[1] > 2 * max(w - size[0], 0)
    assert num_vertical_first > 20  # cases in which Pillow 13 runs the vertical pass first


@pytest.mark.parametrize("channels", [1, 3])
def test_box_equals_crop_with_and_without_numba(channels, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (240, 200, channels), np.uint8)
    boxes = [(10, 20, 200, 150), (0, 0, 50, 40), (3, 4, 64, 64)]
    views = [resize.resize(image, 64, 64, box) for box in boxes]
    crops = [resize.resize(image[y : y + h, x : x + w], 64, 64) for y, x, h, w in boxes]
    monkeypatch.setattr(resize, "_compiled", lambda: None)
    without_numba = [resize.resize(image, 64, 64, box) for box in boxes]
    for view, crop, expected in zip(views, crops, without_numba, strict=True):
        assert view.shape == (64, 64, channels)
        np.testing.assert_array_equal(view, expected)
        np.testing.assert_array_equal(crop, expected)
    np.testing.assert_array_equal(without_numba[2], image[3:67, 4:68])


def test_small_images_are_compiled_once_there_are_many(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    box = (3, 2, 25, 28)
    compiled = resize._compiled()
    calls = []
    monkeypatch.setattr(resize, "_compiled", lambda: lambda *a: calls.append(a) or compiled(*a))
    monkeypatch.setattr(resize, "_small_resizes", itertools.count())
    monkeypatch.setattr(resize, "SMALL_BEFORE_COMPILING", 3)
    views = [resize.resize(image, 16, 16, box) for _ in range(5)]
    assert len(calls) == 2
    for view in views:
        np.testing.assert_array_equal(view, views[0])


def test_window_equals_crop_of_the_resized_image():
    rng = np.random.default_rng(0)
    differences = []
    for i in range(120):
        h, w = int(rng.integers(1, 30)), int(rng.integers(30, 4000))
        image = rng.integers(0, 256, (h, w, (1, 3)[i % 2]), np.uint8)
        image = np.ascontiguousarray(image.swapaxes(0, 1)) if i % 3 else image
        side = int(rng.integers(8, 50))
        height, width = (side * n // h for n in image.shape[:2])
        y, x = (int(rng.integers(n - 7)) for n in (height, width))
        actual = resize.resize_window(image, width, height, (y, x, 8, 8))
        expected = resize._pillow(image, width, height)[y : y + 8, x : x + 8]
        differences.append(np.abs(actual.astype(int) - expected).ravel())
    differences = np.concatenate(differences)
    assert differences.max() <= 2 and (differences > 0).mean() < 0.002
