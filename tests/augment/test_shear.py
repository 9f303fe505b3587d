"""`augment.shear` is bit-exact with Pillow's transform."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.augment import shear

AFFINE, BICUBIC = Image.Transform.AFFINE, Image.Resampling.BICUBIC
RNG = np.random.default_rng(0)
# With shifts of n / 10, the interpolated value of 1% of the pixels is at or just below an integer.
SHIFTS = [0.0, 0.5, -0.5, 100.8, -100.8, 33.3, 1e-9, -1e-9, 400.0, *RNG.uniform(-90, 90, 3)]
SLOPES = [0.3, -0.3, 0.25, -0.27, *RNG.uniform(-0.3, 0.3, 3)]


def images():
    noise = RNG.integers(0, 256, (150, 131, 3), np.uint8)
    ramp = np.broadcast_to(np.arange(140, dtype=np.uint8)[:, None], (140, 120))
    mixed = np.stack([ramp, ramp.clip(60, 90), np.where(ramp % 40 < 20, 0, 255)], -1)
    yield from (noise, mixed.astype(np.uint8), np.swapaxes(mixed, 0, 1).astype(np.uint8))
    yield from (noise[..., 0], noise[:1], noise[:, :1], noise[:1, :1, 0])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_shear_matches_pillow(axis, compiled, monkeypatch):
    if compiled:
        assert shear._compile() is not None
    else:
        monkeypatch.setattr(shear, "_compile", lambda: None)
    cases = [(0.0, shift) for shift in SHIFTS] + [(slope, 0.0) for slope in SLOPES] + [(0.2, 9.4)]
    for image in images():
        pil = Image.fromarray(np.ascontiguousarray(image))
        fill = 99 if pil.mode == "L" else (124, 116, 104)
        for slope, shift in cases:
            data = (1, slope, shift, 0, 1, 0) if axis else (1, 0, 0, slope, 1, shift)
            expected = pil.transform(pil.size, AFFINE, data, BICUBIC, fillcolor=fill)
            actual = shear.shear(pil, axis, slope, shift, fill)
            assert actual.mode == pil.mode
            np.testing.assert_array_equal(actual, expected, err_msg=f"{pil}, {slope}, {shift}")


def test_float32_alone_is_not_exact(monkeypatch):
    """Without the float64 recomputation, some pixels differ by one level."""
    monkeypatch.setattr(shear, "_compile", lambda: None)
    monkeypatch.setattr(shear, "_recompute", lambda *_: None)
    noise = Image.fromarray(RNG.integers(0, 256, (150, 131, 3), np.uint8))
    expected = noise.transform(noise.size, AFFINE, (1, 0, 100.8, 0, 1, 0), BICUBIC, fillcolor=0)
    actual = np.asarray(shear.shear(noise, 1, 0.0, 100.8, 0), int)
    error = np.abs(actual - np.asarray(expected, int))
    assert error.max() == 1 and 0 < (error > 0).mean() < 0.02
