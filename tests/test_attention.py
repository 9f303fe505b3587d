"""Maps, masks and colours of arrays whose answers are known."""

import numpy as np
import pytest

from vit_jax import attention


def softmaxed(*shape):
    x = np.exp(np.random.default_rng(0).normal(size=shape))
    return (x / x.sum(-1, keepdims=True)).astype(np.float32)


def test_maps_are_the_row_of_the_class_token():
    x = softmaxed(2, 3, 4, 7, 7)  # [CLS] and 2 x 3 patches
    maps = attention.cls_maps(x, (2, 3))
    assert maps.shape == (2, 3, 4, 2, 3)
    assert maps[1, 2, 3, 1, 0] == x[1, 2, 3, 0, 1 + 3]
    np.testing.assert_allclose(maps.sum((-1, -2)), 1 - x[..., 0, 0], rtol=1e-5)
    with pytest.raises(ValueError, match="6 patches do not make a grid of 2 x 2"):
        attention.cls_maps(x, (2, 2))
    with pytest.raises(ValueError, match="no .CLS. token"):
        attention.cls_maps(x, (2, 3), prefix=0)


def test_maps_without_a_class_token_are_the_mean_of_the_patches():
    x = softmaxed(1, 1, 2, 7, 7)
    maps = attention.patch_maps(x, (3, 2), prefix=1)
    expected = sum(x[0, 0, 1, q, 1 + 2 * 2 + 1] for q in range(1, 7)) / 6
    assert maps.shape == (1, 1, 2, 3, 2)
    assert maps[0, 0, 1, 2, 1] == pytest.approx(expected, rel=1e-5)


def test_a_mask_is_the_fewest_patches_that_hold_the_share():
    values = np.float32([[0.05, 0.4, 0.1], [0.25, 0.2, 0.0]])
    for keep, count in ((0.3, 1), (0.4, 1), (0.41, 2), (0.65, 2), (0.85, 3), (0.86, 4), (1, 5)):
        mask = attention.mass_mask(7 * values, keep)
        assert mask.sum() == count and mask[0, 1]
        assert values[mask].min() > values[~mask].max()
    ties = attention.mass_mask(np.full((1, 5), 0.2, np.float32), 0.6)  # in float32 above 0.6
    assert ties.tolist() == [[True, True, True, False, False]]
    assert not attention.mass_mask(np.zeros((2, 2))).any()
    for keep in (0, 1.1):
        with pytest.raises(ValueError, match="keep="):
            attention.mass_mask(values, keep)


def test_masks_are_dinos():
    """visualize_attention.py keeps what is above the first 40 % of the sum, smallest first."""
    maps = softmaxed(3, 2, 49).reshape(3, 2, 7, 7)
    masks = attention.mass_mask(maps, 0.6)
    for values, mask in zip(maps.reshape(6, 49), masks.reshape(6, 49), strict=True):
        rising = np.argsort(values)
        kept = rising[np.cumsum(values[rising]) / values.sum() > 0.4]
        assert set(np.flatnonzero(mask)) == set(kept)


def test_the_components_of_a_plane_come_back_in_order():
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(8, 8)))[0][:2]
    axes = axes * np.sign(axes[range(2), np.abs(axes).argmax(1)])[:, None]
    scores = rng.uniform(-1, 1, (400, 2)) * [5, 1]
    tokens = (scores @ axes + 3).reshape(4, 100, 8)
    colours = attention.pca(tokens)
    assert colours.shape == (4, 100, 3) and colours.dtype == np.float32
    for i in range(2):
        ours, truth = colours[..., i].ravel(), scores[:, i]
        inside = (ours > 0) & (ours < 1)
        assert 0.97 < inside.mean() < 0.99  # the percentiles
        assert np.corrcoef(ours[inside], truth[inside])[0, 1] > 0.999
    np.testing.assert_array_equal(colours[..., 2], 0.5)  # there is no third axis
    np.testing.assert_array_equal(colours, attention.pca(tokens))
    np.testing.assert_allclose(colours[::-1], attention.pca(tokens[::-1]), atol=1e-5)


def test_colours_withstand_an_outlier_and_no_spread_at_all():
    tokens = np.random.default_rng(0).normal(size=(2, 200, 6))
    tokens[0, 0, 0] = 60
    assert attention.pca(tokens)[..., 0].std() > 0.2
    np.testing.assert_array_equal(attention.pca(np.ones((1, 4, 2))), np.full((1, 4, 3), 0.5))
