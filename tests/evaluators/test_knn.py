"""Weighted k-NN: the reference's numbers, scikit-learn's, and what must hold of any features."""

import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import tests
from vit_jax.errors import UserError
from vit_jax.evaluators import knn

GOLDEN = tests.GOLDEN / "dino/knn"
CASES = ("k1_T0.07", "k10_T0.07", "k20_T0.07")
# Several blocks of the bank, the last one overlapping, and a rest of queries.
BLOCK = (64, 128)
predict = functools.partial(knn.knn_predict, block=BLOCK)
nearest = functools.partial(knn.nearest, block=BLOCK)
read_out = functools.partial(knn.read_out, k=(10, 20), temperature=0.07)


def normalize(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def blobs():
    """Five overlapping classes in 8 dimensions: bank [700], its labels, queries [150], theirs."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 850)
    x = rng.normal(size=(5, 8))[labels] + 1.2 * rng.normal(size=(850, 8))
    x = normalize(x).astype(np.float32)
    return x[:700], labels[:700], x[700:], labels[700:]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    k, temperature = re.fullmatch(r"k(\d+)_T([\d.]+)", case).groups()
    k, temperature, golden = int(k), float(temperature), np.load(GOLDEN / f"{case}.npz")
    bank, queries = (
        normalize(np.load(GOLDEN / f"{x}_features_raw.npy")) for x in ("train", "test")
    )
    labels = np.load(GOLDEN / "train_labels.npy")
    found = predict(bank, labels, queries, k, temperature, 12)
    np.testing.assert_array_equal(found, golden["pred"])
    similarities, at = nearest(bank, queries, k)
    votes = knn.count_votes(similarities, labels[at], temperature, 12)
    votes *= np.exp(similarities[:, :1].astype(np.float64) / temperature)
    np.testing.assert_allclose(votes, golden["votes"], rtol=1e-5)


def test_equals_scikit_learn(blobs):
    bank, labels, queries, _ = blobs
    peer = KNeighborsClassifier(
        20, algorithm="brute", weights=lambda d: np.exp((1 - d**2 / 2) / 0.07)
    )
    expected = peer.fit(bank.astype(np.float64), labels).predict(queries.astype(np.float64))
    for like in (np.asarray, jnp.asarray):
        found = predict(like(bank), like(labels), like(queries), 20, 0.07, 5)
        np.testing.assert_array_equal(found, expected)


def test_neighbors_are_those_of_sorting(blobs):
    bank, _, queries, _ = blobs
    # Equals, of which the first counts, in one block and over the border of two.
    bank[[3, 7, 690]] = bank[130]
    similarities, at = nearest(bank, np.concatenate([queries, bank[:1], bank[3:4]]), 300)
    rows = np.concatenate([queries, bank[:1], bank[3:4]]).astype(np.float64)
    exact = np.einsum("nd,md->nm", rows, bank.astype(np.float64))
    np.testing.assert_allclose(similarities, -np.sort(-exact)[:, :300], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, at, 1), similarities, atol=1e-6)
    assert all(len(set(row)) == 300 for row in at)
    assert at[-2, 0] == 0 and at[-1, :4].tolist() == [3, 7, 130, 690]


def test_properties(blobs):
    bank, labels, queries, _ = blobs
    similar = queries @ bank.T
    best = labels[similar.argmax(1)]
    np.testing.assert_array_equal(predict(bank, labels, queries, 1, 0.07, 5), best)
    # A tiny temperature leaves the nearest alone; no overflow on the way.
    np.testing.assert_array_equal(predict(bank, labels, queries, 50, 1e-5, 5), best)

    found = predict(bank, labels, queries, 20, 0.07, 5)
    order = np.random.default_rng(1).permutation(700)
    np.testing.assert_array_equal(predict(bank[order], labels[order], queries, 20, 0.07, 5), found)

    # All alike at a high temperature: the majority, and of the whole bank where k is beyond it.
    k = 7
    near = labels[np.argsort(-similar)[:, :k]]
    counts = (near[:, :, None] == np.arange(5)).sum(1)
    clear = (counts == counts.max(1, keepdims=True)).sum(1) == 1
    majority = predict(bank, labels, queries, k, 1e6, 5)
    assert clear.sum() > 100
    np.testing.assert_array_equal(majority[clear], counts.argmax(1)[clear])
    everyone = predict(bank, labels, queries, 10_000, 1e6, 5)
    assert (everyone == np.bincount(labels).argmax()).all()


def test_nan_is_never_right(blobs):
    bank, labels, queries, expected = blobs
    queries[3] = np.nan
    found = predict(bank, labels, queries, 20, 0.07, 5)
    assert found[3] == -1 and (np.delete(found, 3) >= 0).all()
    broken = {"pooled": bank * np.nan, "label": labels}
    scores = read_out(broken, {"pooled": queries, "label": expected})
    assert scores == {"knn10": 0.0, "knn20": 0.0}


def test_read_out_normalizes_and_makes_do_with_a_small_bank(blobs):
    bank, labels, queries, expected = blobs
    lengths = np.random.default_rng(2).uniform(0.1, 10, (700, 1)).astype(np.float32)
    scores = read_out(
        {"pooled": bank * lengths, "label": labels}, {"pooled": 5 * queries, "label": expected}
    )
    for k in (10, 20):
        right = predict(bank, labels, queries, k, 0.07, 5) == expected
        assert scores[f"knn{k}"] == right.mean() > 0.5
    few = {"pooled": bank[:3], "label": labels[:3]}
    scores = read_out(few, {"pooled": queries, "label": expected})
    right = predict(bank[:3], labels[:3], queries, 3, 0.07, 5) == expected
    assert scores == {"knn10": right.mean(), "knn20": right.mean()}


def test_what_cannot_be(blobs):
    bank, labels, queries, _ = blobs
    cases = [((bank, labels[1:], queries, 1, 1.0, 5), "do not fit together")]
    cases += [((bank, labels, queries[:, 1:], 1, 1.0, 5), "do not fit together")]
    cases += [((bank[:0], labels[:0], queries, 1, 1.0, 5), "above 0")]
    cases += [((bank, labels, queries[:0], 1, 1.0, 5), "above 0")]
    cases += [((bank, labels, queries, 0, 1.0, 5), "above 0")]
    cases += [((bank, labels, queries, 1, 0.0, 5), "above 0")]
    cases += [((bank, labels, queries, 1, 1.0, 4), "there are 4 classes")]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            predict(*arguments)
