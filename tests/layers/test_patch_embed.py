"""Tests of resized position embeddings against the reference implementations."""

import jax.numpy as jnp
import numpy as np
import pytest

import tests
from vit_jax.layers.patch_embed import RESIZE, adapt_kernel, cubic_matrix, resize_positions

GOLDEN = tests.GOLDEN / "dino"
DEIT = np.load(tests.GOLDEN / "deit3/pos_embed_finetune/tables.npz")


def load(folder, table):
    """Return learned position embeddings, and a dict of those that the reference resized."""
    return jnp.asarray(np.load(GOLDEN / folder / table)), np.load(
        GOLDEN / folder / "interpolated.npz"
    )


@pytest.mark.parametrize("size", ["96x96", "224x160", "112x336"])
def test_positions_match_dino(size):
    table, expected = load("pos_embed", "pos_embed_224.npy")
    grid = tuple(int(side) // 16 for side in size.split("x"))
    resized = resize_positions(table, (14, 14), grid, 1, "dino")
    np.testing.assert_allclose(resized, expected[f"to_{size}"], atol=2e-5)
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])


@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        ("timm", "timm_{}_bicubic_aa"),
        ("timm", "dinov2_{}_off0.0_aa1"),
        ("dino", "dinov2_{}_off0.1_aa0"),
    ],
)
@pytest.mark.parametrize("grid", [(16, 16), (7, 7), (20, 12)])
def test_positions_match_dinov2(rule, reference, grid):
    table, expected = load("pos_embed_dinov2_timm", "pos_embed.npy")
    resized = resize_positions(table, (37, 37), grid, 1, rule)
    name = reference.format("{}x{}".format(*grid))
    np.testing.assert_allclose(resized, expected[name], atol=2e-5)


@pytest.mark.parametrize("side", [14, 6])
def test_positions_match_deit_finetuning(side):
    resized = resize_positions(jnp.asarray(DEIT["source"]), (12, 12), (side, side), 0, "deit")
    np.testing.assert_allclose(resized, DEIT[f"to_{side}x{side}"], atol=2e-5)
    # The other rules differ by more than the tolerance.
    for rule in ("timm", "dino"):
        other = resize_positions(jnp.asarray(DEIT["source"]), (12, 12), (side, side), 0, rule)
        assert np.abs(other - resized).max() > 1e-3


@pytest.mark.parametrize("rule", RESIZE)
def test_only_the_same_grid_is_returned_unchanged(rule):
    table, expected = load("pos_embed", "pos_embed_224.npy")
    assert resize_positions(table, (14, 14), (14, 14), 1, rule) is table
    np.testing.assert_array_equal(table, expected["to_224x224"])
    assert not np.allclose(resize_positions(table, (14, 14), (7, 28), 1, rule), table)


@pytest.mark.parametrize("rule", RESIZE)
@pytest.mark.parametrize("new", [1, 6, 14, 30])
def test_interpolation_weights_sum_to_one(rule, new):
    np.testing.assert_allclose(cubic_matrix(14, new, rule).sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("patch", [8, 14])
def test_kernels_of_other_patches_match_flexivit(patch):
    kernels = np.load(GOLDEN / "pos_embed_dinov2_timm/patch_embed_flexivit.npz")
    kernel = kernels["kernel16"].transpose(2, 3, 1, 0)
    resized = adapt_kernel(kernel, patch, 3)
    expected = kernels[f"to{patch}"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(resized, expected, rtol=1e-5, atol=5e-5)


def test_kernels_of_other_channels():
    kernel = np.random.default_rng(0).normal(size=(2, 2, 3, 5)).astype(np.float32)
    assert adapt_kernel(kernel, 2, 3) is kernel
    np.testing.assert_allclose(adapt_kernel(kernel, 2, 1)[:, :, 0], kernel.sum(2), rtol=1e-6)
    four = adapt_kernel(kernel, 2, 4)
    np.testing.assert_allclose(four, kernel[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6)
