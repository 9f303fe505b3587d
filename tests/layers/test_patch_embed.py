"""Positions for other image sizes, as the code the weights come from makes them."""

import jax.numpy as jnp
import numpy as np
import pytest

import tests
from vit_jax.layers.patch_embed import RESIZE, cubic_matrix, resize_positions

GOLDEN = tests.GOLDEN / "dino"


def load(folder, table):
    return jnp.asarray(np.load(GOLDEN / folder / table)), np.load(
        GOLDEN / folder / "interpolated.npz"
    )


@pytest.mark.parametrize("size", ["96x96", "224x160", "112x336"])
def test_positions_equal_dinos(size):
    table, expected = load("pos_embed", "pos_embed_224.npy")
    grid = tuple(int(side) // 16 for side in size.split("x"))
    resized = resize_positions(table, (14, 14), grid, 1, "dino")
    np.testing.assert_allclose(resized, expected[f"to_{size}"], atol=2e-5)
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        ("timm", "timm_{}_bicubic_aa"),
        ("timm", "dinov2_{}_off0.0_aa1"),
        ("dino", "dinov2_{}_off0.1_aa0"),
    ],
)
@pytest.mark.parametrize("grid", [(16, 16), (7, 7), (20, 12)])
def test_the_two_rules_are_dinov2s_too(rule, theirs, grid):
    table, expected = load("pos_embed_dinov2_timm", "pos_embed.npy")
    resized = resize_positions(table, (37, 37), grid, 1, rule)
    np.testing.assert_allclose(resized, expected[theirs.format("{}x{}".format(*grid))], atol=2e-5)


@pytest.mark.parametrize("rule", RESIZE)
def test_the_same_grid_is_left_alone_and_one_of_as_many_patches_is_not(rule):
    table, expected = load("pos_embed", "pos_embed_224.npy")
    assert resize_positions(table, (14, 14), (14, 14), 1, rule) is table
    np.testing.assert_array_equal(table, expected["to_224x224"])
    assert not np.allclose(resize_positions(table, (14, 14), (7, 28), 1, rule), table)


@pytest.mark.parametrize("rule", RESIZE)
@pytest.mark.parametrize("new", [1, 6, 14, 30])
def test_what_is_everywhere_alike_stays_so(rule, new):
    np.testing.assert_allclose(cubic_matrix(14, new, rule).sum(1), 1, atol=1e-12)
