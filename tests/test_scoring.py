"""Top-k credit: ties are shared, NaN and invalid labels earn nothing."""

import itertools

import numpy as np
import pytest
from jax import numpy as jnp

from vit_jax.scoring import top_k_credit


@pytest.mark.parametrize("k", [1, 2, 5])
def test_ties_earn_the_mean_over_all_orders(k):
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, size=(20, 5)).astype(np.float32)  # many ties
    labels = rng.integers(0, 5, size=20)
    # A stable sort of permuted columns breaks ties in the order of the permutation.
    hits = [
        (
            np.array(order)[np.argsort(-logits[:, order], axis=1, kind="stable")[:, :k]].T == labels
        ).any(0)
        for order in map(list, itertools.permutations(range(5)))
    ]
    credit = top_k_credit(jnp.asarray(logits), jnp.asarray(labels), k)
    assert credit.dtype == jnp.float32
    np.testing.assert_allclose(credit, np.mean(hits, 0), rtol=1e-6)


def test_nan_and_invalid_labels():
    nan, inf = np.nan, np.inf
    rows = [
        ([nan, 0, 0], 0, 0),  # NaN of the true class
        ([nan, nan, nan], 0, 0),
        ([1, nan, 0], 0, 0),  # NaN of another class counts as greater
        ([1, 0, inf], 2, 1),
        ([inf, 0, inf], 2, 0.5),
        ([1, 1, 1], 1, 1 / 3),
        ([0, 0, 1], -1, 0),
        ([0, 0, 1], 3, 0),
    ]
    logits, labels, expected = map(np.array, zip(*rows, strict=True))
    np.testing.assert_allclose(top_k_credit(jnp.asarray(logits), labels, 1), expected, rtol=1e-6)
    # With more guesses than classes, only a row without a valid true logit earns nothing.
    assert top_k_credit(jnp.asarray(logits), labels, 5).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
