"""Tests of weighted k-NN against the reference, scikit-learn and its invariants."""

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
# Several blocks of the bank, with an overlapping last block, and an incomplete block of queries.
BLOCK = (64, 128)
predict = functools.partial(knn.knn_predict, block=BLOCK)
nearest = functools.partial(knn.nearest, block=BLOCK)
read_out = functools.partial(knn.read_out, k=(10, 20), temperature=0.07)


def normalize(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def blobs():
    """Five overlapping classes in 8 dimensions: 700 features and labels, 150 queries and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 850)
    x = rng.normal(size=(5, 8))[labels] + 1.2 * rng.normal(size=(850, 8))
    x = normalize(x).astype(np.float32)
    return x[:700], labels[:700], x[700:], labels[700:]


@pytest.mark.parametrize("case", CASES)
def test_knn_matches_reference(case):
    k, temperature = re.fullmatch(r"k(\d+)_T([\d.]+)", case).groups()
    k, temperature = int(k), float(temperature)
    golden = np.load(GOLDEN / f"{case}.npz")
    bank, queries = (
        normalize(np.load(GOLDEN / f"{x}_features_raw.npy")) for x in ("train", "test")
    )
    labels = np.load(GOLDEN / "train_labels.npy")
    predicted = predict(bank, labels, queries, k, temperature, 12)
    np.testing.assert_array_equal(predicted, golden["pred"])
    similarities, indices = nearest(bank, queries, k)
    votes = knn.count_votes(similarities, labels[indices], temperature, 12)
    votes *= np.exp(similarities[:, :1].astype(np.float64) / temperature)
    np.testing.assert_allclose(votes, golden["votes"], rtol=1e-5)


def test_knn_matches_scikit_learn(blobs):
    bank, labels, queries, _ = blobs
    peer = KNeighborsClassifier(
        20, algorithm="brute", weights=lambda d: np.exp((1 - d**2 / 2) / 0.07)
    )
    expected = peer.fit(bank.astype(np.float64), labels).predict(queries.astype(np.float64))
    for asarray in (np.asarray, jnp.asarray):
        predicted = predict(asarray(bank), asarray(labels), asarray(queries), 20, 0.07, 5)
        np.testing.assert_array_equal(predicted, expected)


def test_nearest_matches_sorting(blobs):
    bank, _, queries, _ = blobs
    # Ties within a block and across blocks; the lowest index comes first.
    bank[[3, 7, 690]] = bank[130]
    similarities, indices = nearest(bank, np.concatenate([queries, bank[:1], bank[3:4]]), 300)
    rows = np.concatenate([queries, bank[:1], bank[3:4]]).astype(np.float64)
    exact = np.einsum("nd,md->nm", rows, bank.astype(np.float64))
    np.testing.assert_allclose(similarities, -np.sort(-exact)[:, :300], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, indices, 1), similarities, atol=1e-6)
    assert all(len(set(row)) == 300 for row in indices)
    assert indices[-2, 0] == 0 and indices[-1, :4].tolist() == [3, 7, 130, 690]


def test_knn_invariants(blobs):
    bank, labels, queries, _ = blobs
    similarities = queries @ bank.T
    best = labels[similarities.argmax(1)]
    np.testing.assert_array_equal(predict(bank, labels, queries, 1, 0.07, 5), best)
    # At a very low temperature only the nearest neighbor counts, without overflow.
    np.testing.assert_array_equal(predict(bank, labels, queries, 50, 1e-5, 5), best)

    # The order of the training images does not matter.
    expected = predict(bank, labels, queries, 20, 0.07, 5)
    order = np.random.default_rng(1).permutation(700)
    permuted = predict(bank[order], labels[order], queries, 20, 0.07, 5)
    np.testing.assert_array_equal(permuted, expected)

    # At a high temperature all neighbors have equal weight: the majority class wins.
    k = 7
    neighbor_labels = labels[np.argsort(-similarities)[:, :k]]
    counts = (neighbor_labels[:, :, None] == np.arange(5)).sum(1)
    unique = (counts == counts.max(1, keepdims=True)).sum(1) == 1
    majority = predict(bank, labels, queries, k, 1e6, 5)
    assert unique.sum() > 100
    np.testing.assert_array_equal(majority[unique], counts.argmax(1)[unique])
    # If k exceeds the number of training images, all of them vote.
    overall = predict(bank, labels, queries, 10_000, 1e6, 5)
    assert (overall == np.bincount(labels).argmax()).all()


@pytest.mark.parametrize("labels", [[4, 1, 2, 0], [1, 4, 2, 0]])
def test_ties_are_resolved_by_row_and_by_class(labels):
    bank = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    classify = functools.partial(predict, bank, np.array(labels), bank[:1], temperature=0.07)
    # One neighbor: the first of three equal rows. Two and three: the lowest class with one vote.
    predicted = [int(classify(k=k, num_classes=5)[0]) for k in (1, 2, 3)]
    assert predicted == [labels[0], 1, 1]


def test_nan_features_count_as_wrong(blobs):
    bank, labels, queries, expected = blobs
    queries[3] = np.nan
    predicted = predict(bank, labels, queries, 20, 0.07, 5)
    assert predicted[3] == -1 and (np.delete(predicted, 3) >= 0).all()
    broken = {"pooled": bank * np.nan, "label": labels}
    scores = read_out(broken, {"pooled": queries, "label": expected})
    assert scores == {"knn10": 0.0, "knn20": 0.0}


def test_read_out_normalizes_features_and_supports_a_small_bank(blobs):
    bank, labels, queries, expected = blobs
    lengths = np.random.default_rng(2).uniform(0.1, 10, (700, 1)).astype(np.float32)
    scores = read_out(
        {"pooled": bank * lengths, "label": labels}, {"pooled": 5 * queries, "label": expected}
    )
    for k in (10, 20):
        correct = predict(bank, labels, queries, k, 0.07, 5) == expected
        assert scores[f"knn{k}"] == correct.mean() > 0.5
    small = {"pooled": bank[:3], "label": labels[:3]}
    scores = read_out(small, {"pooled": queries, "label": expected})
    correct = predict(bank[:3], labels[:3], queries, 3, 0.07, 5) == expected
    assert scores == {"knn10": correct.mean(), "knn20": correct.mean()}


def test_invalid_arguments_are_rejected(blobs):
    bank, labels, queries, _ = blobs
    cases = [((bank, labels[1:], queries, 1, 1.0, 5), "shapes do not match")]
    cases += [((bank, labels, queries[:, 1:], 1, 1.0, 5), "shapes do not match")]
    cases += [((bank[:0], labels[:0], queries, 1, 1.0, 5), "above 0")]
    cases += [((bank, labels, queries[:0], 1, 1.0, 5), "above 0")]
    cases += [((bank, labels, queries, 0, 1.0, 5), "above 0")]
    cases += [((bank, labels, queries, 1, 0.0, 5), "above 0")]
    cases += [((bank, labels, queries, 1, 1.0, 4), "expected 0 to 3")]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            predict(*arguments)
