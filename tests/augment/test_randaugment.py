"""RandAugment: operations are compared by pixel, random choices by distribution."""

import re

import numpy as np
import pytest
from PIL import ImageEnhance

import tests
from vit_jax import augment
from vit_jax.augment import randaugment
from vit_jax.config import defaults, parse_randaugment
from vit_jax.errors import UserError

GOLDEN = np.load(tests.GOLDEN / "augment/randaugment.npz")
CASES = sorted(set(GOLDEN.files) - {"input"})


def test_operations_cover_golden_cases():
    assert {case.split("_")[1] for case in CASES} == set(randaugment.NAMES)
    assert len(randaugment.NAMES) == 15


@pytest.mark.parametrize("case", CASES)
def test_operation_matches_timm(case):
    level, name, sign = re.fullmatch(r"m(\d+)_(\w+?)(_neg|_pos)?", case).groups()
    magnitude = -int(level) if sign == "_neg" else int(level)
    image = augment.apply_op(name, GOLDEN["input"], magnitude)
    np.testing.assert_array_equal(image[::4, ::4], GOLDEN[case])


def test_sharpness_matches_pillow():
    rng = np.random.default_rng(0)
    for shape in ((30, 41, 3), (17, 9, 1), (2, 9, 3), (9, 1, 1)):
        pil = randaugment.to_pil(rng.integers(0, 256, shape, np.uint8))
        for factor in (0.1, 0.5, 1.3, 1.9):
            expected = ImageEnhance.Sharpness(pil).enhance(factor)
            actual = randaugment.Sharpness(pil).enhance(factor)
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_on_images_of_one_pixel(channels):
    """All operations map a constant image to a constant, which does not depend on its size."""
    center = np.array([0.5, 0.5])
    for level in (-1.0, -0.3, 0.0, 0.9):
        for name, op in (*randaugment.OPERATIONS.items(), *enumerate(randaugment.BIG_VISION)):
            args = () if name in randaugment.OPERATIONS else (center,)
            values = set()
            for shape in ((1, 1), (1, 9), (9, 1), (20, 20)):
                pil = randaugment.to_pil(np.full((*shape, channels), 90, np.uint8))
                fill = randaugment._fill((90,) * 3, pil)
                result = randaugment.to_array(op(pil, level, fill, *args))
                assert result.shape == (*shape, channels)
                values |= set(result.ravel().tolist())
            assert len(values) == 1, (name, level)


def test_posterize_to_zero_bits_is_black():
    assert not augment.apply_op("PosterizeIncreasing", GOLDEN["input"], 10).any()


def test_rand_augment_sampling(monkeypatch):
    calls = []

    def record(name):
        return lambda pil, x, fill: calls.append((name, 10 * x, fill)) or pil

    fakes = {name: record(name) for name in randaugment.NAMES}
    monkeypatch.setattr(randaugment, "OPERATIONS", fakes)
    options = parse_randaugment("rand-m9-mstd0.5-inc1")
    rng, count = np.random.default_rng(0), 6000
    image = np.zeros((8, 8, 3), np.uint8)
    for _ in range(count):
        randaugment.rand_augment(image, rng, **options, fill=(1, 2, 3))
    # Two operations are sampled per image, and each is applied with probability 1 / 2.
    assert abs(len(calls) - count) < 5 * (2 * count / 4) ** 0.5
    names, levels, fills = zip(*calls, strict=True)
    counts = np.unique(names, return_counts=True)[1]
    assert len(counts) == 15 and np.abs(counts - count / 15).max() < 5 * (count / 15) ** 0.5
    levels = np.array(levels)
    assert abs((levels < 0).mean() - 0.5) < 0.04 and np.abs(levels).max() == 10
    assert abs(np.median(np.abs(levels)) - 9) < 0.03 and abs(np.abs(levels).std() - 0.49) < 0.03
    assert set(fills) == {(1, 2, 3)}


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_is_deterministic_and_leaves_input_unchanged(channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 24, channels), np.uint8)
    original = image.copy()
    for name in randaugment.NAMES:
        assert augment.apply_op(name, image, 5).shape == image.shape
    options = parse_randaugment("rand-m9-mstd0.5-inc1")

    def augmented(seed):
        return randaugment.rand_augment(image, np.random.default_rng(seed), **options)

    assert any((augmented(seed) != image).any() for seed in range(8))
    for seed in range(8):
        np.testing.assert_array_equal(augmented(seed), augmented(seed))
    np.testing.assert_array_equal(image, original)


def test_parse_randaugment():
    expected = {"magnitude": 9, "std": 0.5, "layers": 2, "p": 0.5}
    assert parse_randaugment("rand-m9-mstd0.5-inc1") == expected
    assert parse_randaugment("rand-m7-n3-p1-inc1") == {
        "magnitude": 7,
        "std": 0.0,
        "layers": 3,
        "p": 1,
    }
    assert parse_randaugment("") is None
    for text in (
        "rand-m9-mstd0.5",
        "augmix-m3-inc1",
        "rand-m11-inc1",
        "rand-x9-inc1",
        "m9",
        "big_vision-m31",
        "big_vision-p1",
    ):
        with pytest.raises(UserError, match="augment.randaugment"):
            parse_randaugment(text)


def test_train_view_applies_config_policy():
    c = defaults()
    c.model.image, c.augment.crop = 24, "none"
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    plain, _ = augment.transforms(c)
    c.augment.randaugment = "rand-m9-p1-inc1"
    train, evaluation = augment.transforms(c)
    assert train.keywords["policy"].keywords["fill"] == (124, 116, 104)  # ImageNet mean
    assert (train(image, np.random.default_rng(0)) != plain(image, None)).any()
    np.testing.assert_array_equal(evaluation(image), plain(image, None))


def test_big_vision_operations():
    """Operations at magnitude 10 match NumPy on an image with all 256 levels."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (240, 230, 3), np.uint8)
    pil = randaugment.to_pil(image)
    pixels = image.astype(int)

    def apply(i, x=1.0, center=(0.5, 0.5)):
        augmented = randaugment.BIG_VISION[i](pil, x, (128, 128, 128), np.array(center))
        return randaugment.to_array(augmented).astype(int)

    assert len(randaugment.BIG_VISION) == 16
    np.testing.assert_array_equal(apply(4), pixels // 16 * 16)  # 4 bits
    np.testing.assert_array_equal(apply(5), pixels)  # a threshold of 256
    np.testing.assert_array_equal(apply(5, 0.5), np.where(pixels < 128, pixels, 255 - pixels))
    np.testing.assert_array_equal(apply(8), np.clip(pixels * 1.9, 0, 255).astype(int))
    expected = np.where(pixels < 128, pixels + 110, pixels).clip(0, 255)
    np.testing.assert_array_equal(apply(15), expected)
    for sign in (1, -1):  # 100 pixels to the left or right
        shifted = np.full_like(pixels, 128)
        target, source = (np.s_[:, :-100], np.s_[:, 100:])[::sign]
        shifted[target] = pixels[source]
        np.testing.assert_array_equal(apply(12, sign), shifted)
        np.testing.assert_array_equal(apply(13, sign).swapaxes(0, 1).shape, (230, 240, 3))
    cut = apply(14, center=(0.1, 0.5))  # centered at x = 23, y = 120; clipped at the left edge
    assert (cut[80:160, :63] == 128).all()
    cut[80:160, :63] = pixels[80:160, :63]
    np.testing.assert_array_equal(cut, pixels)
    rotated = apply(3)
    assert (rotated[0, 0] == 128).all() and (rotated[120, 115] == pixels[120, 115]).all()


def test_big_vision_sampling(monkeypatch):
    calls = []
    fakes = [
        lambda pil, *args, i=i: calls.append((i, *args)) or pil
        for i in range(len(randaugment.BIG_VISION))
    ]
    monkeypatch.setattr(randaugment, "BIG_VISION", fakes)
    options = parse_randaugment("big_vision-n2-m15")
    assert options == {"magnitude": 15, "layers": 2}
    rng, image = np.random.default_rng(0), np.zeros((8, 8, 1), np.uint8)
    for _ in range(2000):
        randaugment.big_vision(image, rng, **options)
    assert len(calls) == 4000  # every sampled operation is applied
    counts = np.unique([i for i, *_ in calls], return_counts=True)[1]
    assert len(counts) == 16 and np.abs(counts - 250).max() < 5 * 250**0.5
    assert {x for _, x, *_ in calls} == {-1.5, 1.5}
    assert abs(np.mean([x < 0 for _, x, *_ in calls]) - 0.5) < 0.04
    c = defaults()
    c.augment.randaugment = "big_vision-n2-m10"
    train, _ = augment.transforms(c)
    assert train.keywords["policy"].func is randaugment.big_vision
