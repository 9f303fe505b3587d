"""Tests of attention maps, rollout, masks and PCA colors against known results."""

import jax
import numpy as np
import pytest

from vit_jax.analysis import attention


def random_softmax(*shape):
    x = np.exp(np.random.default_rng(0).normal(size=shape))
    return (x / x.sum(-1, keepdims=True)).astype(np.float32)


def test_cls_maps_return_the_cls_row():
    x = random_softmax(2, 3, 4, 7, 7)  # [CLS] and 2 x 3 patches
    maps = attention.cls_maps(x, (2, 3))
    assert maps.shape == (2, 3, 4, 2, 3)
    assert maps[1, 2, 3, 1, 0] == x[1, 2, 3, 0, 1 + 3]
    np.testing.assert_allclose(maps.sum((-1, -2)), 1 - x[..., 0, 0], rtol=1e-5)
    with pytest.raises(ValueError, match="6 patches do not form a 2 x 2 grid"):
        attention.cls_maps(x, (2, 2))
    with pytest.raises(ValueError, match="needs a .CLS. token"):
        attention.cls_maps(x, (2, 3), prefix=0)


def test_patch_maps_average_over_queries():
    x = random_softmax(1, 1, 2, 7, 7)
    maps = attention.patch_maps(x, (3, 2), prefix=1)
    expected = sum(x[0, 0, 1, q, 1 + 2 * 2 + 1] for q in range(1, 7)) / 6
    assert maps.shape == (1, 1, 2, 3, 2)
    assert maps[0, 0, 1, 2, 1] == pytest.approx(expected, rel=1e-5)


def test_head_map_selects_or_reduces_heads():
    maps = random_softmax(2, 3, 4, 5, 6)
    np.testing.assert_array_equal(attention.head_map(maps, 3), maps[:, :, 3])
    np.testing.assert_allclose(
        attention.head_map(maps, "mean"), sum(maps.swapaxes(0, 2)[:]).swapaxes(0, 1) / 4, rtol=1e-6
    )
    assert (attention.head_map(maps, "max") == np.max(maps, axis=2)).all()


def test_rollout_matches_known_results():
    """Each layer keeps half of a token and adds half of the tokens it attends to."""
    n = 4
    identity = np.broadcast_to(np.eye(n, dtype=np.float32), (3, 1, 2, n, n))
    np.testing.assert_array_equal(attention.rollout(identity), identity[:, :, 0])
    uniform = np.full((3, 1, 2, n, n), 1 / n)
    for i, result in enumerate(attention.rollout(uniform)[:, 0]):
        residual = 0.5 ** (i + 1)  # the rest is spread over all tokens
        np.testing.assert_allclose(result, residual * np.eye(n) + (1 - residual) / n)
    shift = np.roll(np.eye(n), 1, axis=1)  # token i attends only to token i + 1
    shifted = attention.rollout(np.broadcast_to(shift, (3, 1, 2, n, n)))[2, 0, 0]
    np.testing.assert_allclose(shifted, np.array([1, 3, 3, 1]) / 8)  # (1 + x)^3 / 2^3
    # Order of layers: in the first layer token 1 attends to 2, in the second token 0 attends to 1.
    first = np.eye(n)
    first[1] = np.eye(n)[2]
    second = np.eye(n)
    second[0] = np.eye(n)[1]
    result = attention.rollout(np.stack([first, second])[:, None, None])[1, 0]
    np.testing.assert_allclose(result[0], [0.5, 0.25, 0.25, 0])
    # Heads are averaged, and rows are normalized.
    x = random_softmax(2, 3, 4, 5, 5)
    mixed = (x.mean(2) + np.eye(5)) / 2
    result = attention.rollout(x)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [mixed[0], mixed[1] @ mixed[0]], atol=1e-6)
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(attention.rollout)(x), result, atol=1e-6)


def test_nearly_uniform_maps_have_a_wider_scale():
    values = np.full((4, 4), 1 / 17)
    assert attention.color_scale(values) == (pytest.approx(4 / 17), True)
    values[0, 0] = 2 * values[1:].mean()  # 1.9 times the mean
    assert attention.color_scale(values) == (pytest.approx(4 * values.mean()), True)
    values[0, 0] = 0.2
    assert attention.color_scale(values) == (0.2, False)
    assert attention.color_scale(values / 20) == (0.01, False)  # [CLS] keeps most of the attention
    assert attention.color_scale(np.zeros((2, 2))) == (1, False)


def test_as_text_uses_the_documented_bounds():
    values = np.array([[0, 0.39, 0.4, 0.79], [0.8, 0.81, 1, 0.3999]])
    expected = "░░░░▓▓▓▓\n██████░░"
    for scale in (1, 0.1, 0.07, 1 / 3, 1e-4):
        assert attention.as_text(scale * values) == expected
        assert attention.as_text(np.float32(scale * values)) == expected
    assert attention.as_text(np.zeros((1, 2))) == "░░░░"
    assert all(
        f"{shade} {low}" in attention.LEGEND
        for shade, low in zip("█▓░", ("0.8", "0.4", "0 "), strict=True)
    )


def test_mass_mask_is_minimal():
    values = np.float32([[0.05, 0.4, 0.1], [0.25, 0.2, 0.0]])
    for keep, count in ((0.3, 1), (0.4, 1), (0.41, 2), (0.65, 2), (0.85, 3), (0.86, 4), (1, 5)):
        mask = attention.mass_mask(7 * values, keep)
        assert mask.sum() == count and mask[0, 1]
        assert values[mask].min() > values[~mask].max()
    # In float32 three of these patches sum to more than 0.6.
    ties = attention.mass_mask(np.full((1, 5), 0.2, np.float32), 0.6)
    assert ties.tolist() == [[True, True, True, False, False]]
    assert not attention.mass_mask(np.zeros((2, 2))).any()
    maps = random_softmax(4, 4)
    too_few = [np.sort(maps, None)[-k:].sum() < 0.6 * maps.sum() for k in range(1, 17)]
    assert attention.mass_mask(maps, 0.6).sum() == sum(too_few) + 1
    for keep in (0, 1.1):
        with pytest.raises(ValueError, match="keep="):
            attention.mass_mask(values, keep)


def test_mass_mask_matches_dino():
    """DINO's visualize_attention.py drops the smallest patches that sum to at most 40%."""
    maps = random_softmax(3, 2, 49).reshape(3, 2, 7, 7)
    masks = attention.mass_mask(maps, 0.6)
    for values, mask in zip(maps.reshape(6, 49), masks.reshape(6, 49), strict=True):
        ascending = np.argsort(values)
        kept = ascending[np.cumsum(values[ascending]) / values.sum() > 0.4]
        assert set(np.flatnonzero(mask)) == set(kept)


def test_pca_recovers_planted_components():
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(8, 8)))[0][:2]
    axes = axes * np.sign(axes[range(2), np.abs(axes).argmax(1)])[:, None]
    scores = rng.uniform(-1, 1, (400, 2)) * [5, 1]
    tokens = (scores @ axes + 3).reshape(4, 100, 8)
    colors = attention.pca(tokens)
    assert colors.shape == (4, 100, 3) and colors.dtype == np.float32
    for i in range(2):
        values = colors[..., i].ravel()
        truth = scores[:, i]
        inside = (values > 0) & (values < 1)
        assert 0.97 < inside.mean() < 0.99  # clipped to the percentiles
        assert np.corrcoef(values[inside], truth[inside])[0, 1] > 0.999
    np.testing.assert_array_equal(colors[..., 2], 0.5)  # the data has only two components
    np.testing.assert_array_equal(colors, attention.pca(tokens))
    np.testing.assert_allclose(colors[::-1], attention.pca(tokens[::-1]), atol=1e-5)


def test_pca_of_outliers_and_constant_features():
    tokens = np.random.default_rng(0).normal(size=(2, 200, 6))
    tokens[0, 0, 0] = 60
    assert attention.pca(tokens)[..., 0].std() > 0.2
    np.testing.assert_array_equal(attention.pca(np.ones((1, 4, 2))), np.full((1, 4, 3), 0.5))
