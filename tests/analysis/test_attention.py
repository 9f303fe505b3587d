"""Maps, masks and colors of arrays whose answers are known."""

import jax
import numpy as np
import pytest

from vit_jax.analysis import attention


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


def test_one_map_of_all_heads():
    maps = softmaxed(2, 3, 4, 5, 6)
    np.testing.assert_array_equal(attention.head_map(maps, 3), maps[:, :, 3])
    np.testing.assert_allclose(
        attention.head_map(maps, "mean"), sum(maps.swapaxes(0, 2)[:]).swapaxes(0, 1) / 4, rtol=1e-6
    )
    assert (attention.head_map(maps, "max") == np.max(maps, axis=2)).all()


def test_rollout_of_what_is_known():
    """Each layer mixes half of a token with half of what it attends to."""
    n = 4
    same = np.broadcast_to(np.eye(n, dtype=np.float32), (3, 1, 2, n, n))
    np.testing.assert_array_equal(attention.rollout(same), same[:, :, 0])
    even = np.full((3, 1, 2, n, n), 1 / n)
    for i, found in enumerate(attention.rollout(even)[:, 0]):
        own = 0.5 ** (i + 1)  # what has stayed where it was; the rest is spread over all
        np.testing.assert_allclose(found, own * np.eye(n) + (1 - own) / n)
    right = np.roll(np.eye(n), 1, axis=1)  # token i sees i + 1 alone
    steps = attention.rollout(np.broadcast_to(right, (3, 1, 2, n, n)))[2, 0, 0]
    np.testing.assert_allclose(steps, np.array([1, 3, 3, 1]) / 8)  # (1 + x)^3 / 2^3
    # The first layer is applied first: 0 sees 1 in the second, which saw 2 in the first.
    first, second = np.eye(n), np.eye(n)
    first[1], second[0] = np.eye(n)[2], np.eye(n)[1]
    found = attention.rollout(np.stack([first, second])[:, None, None])[1, 0]
    np.testing.assert_allclose(found[0], [0.5, 0.25, 0.25, 0])
    # Heads count by their mean, rows of any sum as if it were 1.
    x = softmaxed(2, 3, 4, 5, 5)
    mixed = (x.mean(2) + np.eye(5)) / 2
    found = attention.rollout(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [mixed[0], mixed[1] @ mixed[0]], atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(attention.rollout)(x), found, atol=1e-6)


def test_text_changes_at_its_bounds_and_is_two_characters_a_patch():
    low = np.array([[0, 0.39, 0.4, 0.79], [0.8, 0.81, 1, 0.3999]])
    expected = "░░░░▓▓▓▓\n██████░░"
    for scale in (1, 0.1, 0.07, 1 / 3, 1e-4):
        assert attention.as_text(scale * low) == expected
        assert attention.as_text(np.float32(scale * low)) == expected
    assert attention.as_text(np.zeros((1, 2))) == "░░░░"
    assert all(
        f"{shade} {low}" in attention.LEGEND
        for shade, low in zip("█▓░", ("0.8", "0.4", "0 "), strict=True)
    )


def test_a_mask_is_the_fewest_patches_that_hold_the_share():
    values = np.float32([[0.05, 0.4, 0.1], [0.25, 0.2, 0.0]])
    for keep, count in ((0.3, 1), (0.4, 1), (0.41, 2), (0.65, 2), (0.85, 3), (0.86, 4), (1, 5)):
        mask = attention.mass_mask(7 * values, keep)
        assert mask.sum() == count and mask[0, 1]
        assert values[mask].min() > values[~mask].max()
    ties = attention.mass_mask(np.full((1, 5), 0.2, np.float32), 0.6)  # in float32 above 0.6
    assert ties.tolist() == [[True, True, True, False, False]]
    assert not attention.mass_mask(np.zeros((2, 2))).any()
    few = softmaxed(4, 4)
    counts = [np.sort(few, None)[-k:].sum() < 0.6 * few.sum() for k in range(1, 17)]
    assert attention.mass_mask(few, 0.6).sum() == sum(counts) + 1  # one fewer holds less
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
    colors = attention.pca(tokens)
    assert colors.shape == (4, 100, 3) and colors.dtype == np.float32
    for i in range(2):
        ours, truth = colors[..., i].ravel(), scores[:, i]
        inside = (ours > 0) & (ours < 1)
        assert 0.97 < inside.mean() < 0.99  # the percentiles
        assert np.corrcoef(ours[inside], truth[inside])[0, 1] > 0.999
    np.testing.assert_array_equal(colors[..., 2], 0.5)  # there is no third axis
    np.testing.assert_array_equal(colors, attention.pca(tokens))
    np.testing.assert_allclose(colors[::-1], attention.pca(tokens[::-1]), atol=1e-5)


def test_colors_withstand_an_outlier_and_no_spread_at_all():
    tokens = np.random.default_rng(0).normal(size=(2, 200, 6))
    tokens[0, 0, 0] = 60
    assert attention.pca(tokens)[..., 0].std() > 0.2
    np.testing.assert_array_equal(attention.pca(np.ones((1, 4, 2))), np.full((1, 4, 3), 0.5))
