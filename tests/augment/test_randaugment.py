"""RandAugment's operations pixel for pixel, and its draws in distribution."""

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


def test_all_operations_are_there():
    assert {case.split("_")[1] for case in CASES} == set(randaugment.NAMES)
    assert len(randaugment.NAMES) == 15


@pytest.mark.parametrize("case", CASES)
def test_an_operation_is_timms(case):
    level, name, sign = re.fullmatch(r"m(\d+)_(\w+?)(_neg|_pos)?", case).groups()
    magnitude = -int(level) if sign == "_neg" else int(level)
    found = augment.apply_op(name, GOLDEN["input"], magnitude)
    np.testing.assert_array_equal(found[::4, ::4], GOLDEN[case])


def test_sharpness_is_pillows():
    rng = np.random.default_rng(0)
    for shape in ((30, 41, 3), (17, 9, 1), (2, 9, 3), (9, 1, 1)):
        pil = randaugment.to_pil(rng.integers(0, 256, shape, np.uint8))
        for factor in (0.1, 0.5, 1.3, 1.9):
            expected = ImageEnhance.Sharpness(pil).enhance(factor)
            found = randaugment.Sharpness(pil).enhance(factor)
            np.testing.assert_array_equal(found, expected)


def test_posterize_to_no_bits_is_black():
    assert not augment.apply_op("PosterizeIncreasing", GOLDEN["input"], 10).any()


def test_draws(monkeypatch):
    seen = []

    def record(name):
        return lambda pil, x, fill: seen.append((name, 10 * x, fill)) or pil

    fakes = {name: record(name) for name in randaugment.NAMES}
    monkeypatch.setattr(randaugment, "OPERATIONS", fakes)
    options = parse_randaugment("rand-m9-mstd0.5-inc1")
    rng, count = np.random.default_rng(0), 6000
    image = np.zeros((8, 8, 3), np.uint8)
    for _ in range(count):
        randaugment.rand_augment(image, rng, **options, fill=(1, 2, 3))
    # Two draws an image, each applied with probability 1 / 2.
    assert abs(len(seen) - count) < 5 * (2 * count / 4) ** 0.5
    names, levels, fills = zip(*seen, strict=True)
    counts = np.unique(names, return_counts=True)[1]
    assert len(counts) == 15 and np.abs(counts - count / 15).max() < 5 * (count / 15) ** 0.5
    levels = np.array(levels)
    assert abs((levels < 0).mean() - 0.5) < 0.04 and np.abs(levels).max() == 10
    assert abs(np.median(np.abs(levels)) - 9) < 0.03 and abs(np.abs(levels).std() - 0.49) < 0.03
    assert set(fills) == {(1, 2, 3)}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_either_kind_follow_their_rng(channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 24, channels), np.uint8)
    before = image.copy()
    for name in randaugment.NAMES:
        assert augment.apply_op(name, image, 5).shape == image.shape
    options = parse_randaugment("rand-m9-mstd0.5-inc1")

    def draw(seed):
        return randaugment.rand_augment(image, np.random.default_rng(seed), **options)

    assert any((draw(seed) != image).any() for seed in range(8))
    for seed in range(8):
        np.testing.assert_array_equal(draw(seed), draw(seed))
    np.testing.assert_array_equal(image, before)


def test_what_is_written():
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


def test_a_training_view_is_changed_by_it_as_the_config_says():
    c = defaults()
    c.model.image, c.augment.crop = 24, "none"
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    plain, _ = augment.transforms(c)
    c.augment.randaugment = "rand-m9-p1-inc1"
    train, evaluation = augment.transforms(c)
    assert train.keywords["policy"].keywords["fill"] == (124, 116, 104)  # the mean
    assert (train(image, np.random.default_rng(0)) != plain(image, None)).any()
    np.testing.assert_array_equal(evaluation(image), plain(image, None))


def test_big_visions_operations():
    """Each at magnitude 10 against plain arithmetic, on an image with all levels."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (240, 230, 3), np.uint8)
    pil, wide = randaugment.to_pil(image), image.astype(int)

    def at(i, share=1.0, center=(0.5, 0.5)):
        found = randaugment.BIG_VISION[i](pil, share, (128, 128, 128), np.array(center))
        return randaugment.to_array(found).astype(int)

    assert len(randaugment.BIG_VISION) == 16
    np.testing.assert_array_equal(at(4), wide // 16 * 16)  # 4 bits
    np.testing.assert_array_equal(at(5), wide)  # a threshold of 256
    np.testing.assert_array_equal(at(5, 0.5), np.where(wide < 128, wide, 255 - wide))
    np.testing.assert_array_equal(at(8), np.clip(wide * 1.9, 0, 255).astype(int))
    np.testing.assert_array_equal(at(15), np.where(wide < 128, wide + 110, wide).clip(0, 255))
    for sign in (1, -1):  # 100 pixels to the left or right
        moved = np.full_like(wide, 128)
        kept, came = (np.s_[:, :-100], np.s_[:, 100:])[::sign]
        moved[kept] = wide[came]
        np.testing.assert_array_equal(at(12, sign), moved)
        np.testing.assert_array_equal(at(13, sign).swapaxes(0, 1).shape, (230, 240, 3))
    cut = at(14, center=(0.1, 0.5))  # about x 23, y 120: cut off at the left
    assert (cut[80:160, :63] == 128).all()
    cut[80:160, :63] = wide[80:160, :63]
    np.testing.assert_array_equal(cut, wide)
    turned = at(3)
    assert (turned[0, 0] == 128).all() and (turned[120, 115] == wide[120, 115]).all()


def test_big_visions_draws(monkeypatch):
    seen = []
    fakes = [
        lambda pil, *args, i=i: seen.append((i, *args)) or pil
        for i in range(len(randaugment.BIG_VISION))
    ]
    monkeypatch.setattr(randaugment, "BIG_VISION", fakes)
    options = parse_randaugment("big_vision-n2-m15")
    assert options == {"magnitude": 15, "layers": 2}
    rng, image = np.random.default_rng(0), np.zeros((8, 8, 1), np.uint8)
    for _ in range(2000):
        randaugment.big_vision(image, rng, **options)
    assert len(seen) == 4000  # none is left out
    counts = np.unique([i for i, *_ in seen], return_counts=True)[1]
    assert len(counts) == 16 and np.abs(counts - 250).max() < 5 * 250**0.5
    assert {x for _, x, *_ in seen} == {-1.5, 1.5}
    assert abs(np.mean([x < 0 for _, x, *_ in seen]) - 0.5) < 0.04
    c = defaults()
    c.augment.randaugment = "big_vision-n2-m10"
    train, _ = augment.transforms(c)
    assert train.keywords["policy"].func is randaugment.big_vision
