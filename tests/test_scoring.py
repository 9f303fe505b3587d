"""Tests of top-k credit, calibration, accuracy per class and mistakes."""

import itertools

import numpy as np
import pytest
from jax import numpy as jnp

from tests import GOLDEN
from vit_jax import scoring
from vit_jax.scoring import label_set_credit, top_k_credit

CALIBRATION = np.load(GOLDEN / "calibration/calibration.npz")


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


@pytest.mark.parametrize("k", [1, 2, 5])
def test_credit_of_several_labels_is_the_mean_over_all_orders(k):
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 3, size=(20, 5)).astype(np.float32)
    targets = rng.random((20, 5)) < 0.4
    targets[0] = False
    hits = []
    for order in map(list, itertools.permutations(range(5))):
        top = np.argsort(-logits[:, order], axis=1, kind="stable")[:, :k]
        hits.append(np.take_along_axis(targets[:, order], top, 1).any(1))
    np.testing.assert_allclose(label_set_credit(logits, targets, k), np.mean(hits, 0), atol=1e-12)


def test_credit_of_one_label_is_top_k_credit():
    rng = np.random.default_rng(2)
    logits = rng.choice([np.nan, -np.inf, 0, 1, 2, np.inf], size=(200, 7)).astype(np.float32)
    labels = rng.integers(0, 7, size=200)
    targets = labels[:, None] == np.arange(7)
    for k in (1, 5, 9):
        expected = top_k_credit(jnp.asarray(logits), jnp.asarray(labels), k)
        np.testing.assert_allclose(label_set_credit(logits, targets, k), expected, atol=1e-6)


@pytest.mark.parametrize("case", ["overconfident", "underconfident"])
def test_calibration_matches_torchmetrics(case):
    """ECE of torchmetrics; the temperature is the optimum that torch's LBFGS finds in float64."""
    logits, labels = CALIBRATION[f"{case}_logits"], CALIBRATION[f"{case}_labels"].astype(int)
    for bins in (10, 15, 20):
        ece = scoring.expected_calibration_error(logits, labels, bins)
        assert ece == pytest.approx(float(CALIBRATION[f"{case}_ece{bins}"]), abs=1e-6)
    temperature = scoring.fit_temperature(logits, labels)
    assert temperature == pytest.approx(float(CALIBRATION[f"{case}_temperature"]), rel=1e-6)
    loss = scoring.mean_cross_entropy(logits, labels)
    assert loss == pytest.approx(float(CALIBRATION[f"{case}_loss"]), rel=1e-9)
    scaled = scoring.mean_cross_entropy(logits, labels, temperature)
    assert scaled == pytest.approx(float(CALIBRATION[f"{case}_loss_scaled"]), rel=1e-9)
    ece = scoring.expected_calibration_error(logits / temperature, labels)
    assert ece == pytest.approx(float(CALIBRATION[f"{case}_ece15_scaled"]), abs=1e-6)
    double = scoring.fit_temperature(2 * logits, labels)
    assert double == pytest.approx(2 * temperature, rel=1e-6)


def test_chunks_do_not_change_the_result(monkeypatch):
    logits, labels = CALIBRATION["overconfident_logits"], CALIBRATION["overconfident_labels"]
    functions = (scoring.fit_temperature, scoring.mean_cross_entropy, scoring.calibration_bins)
    whole = [function(logits, labels) for function in functions]
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 100)  # 256 rows
    parts = [function(logits, labels) for function in functions]
    assert parts[:2] == pytest.approx(whole[:2], rel=1e-12)
    for name, values in whole[2].items():
        np.testing.assert_allclose(parts[2][name], values, rtol=1e-12)


def test_bins_are_open_below_and_closed_above():
    """Confidences 1/2 and 1 are exact in floating point, and edges of two bins."""
    logits = np.array([[0.0, 0.0], [0.0, -1e4], [0.0, np.log(3)]])
    bins = scoring.calibration_bins(logits, np.array([0, 1, 1]), bins=2)
    assert bins["count"].tolist() == [1, 2]
    np.testing.assert_allclose(bins["confidence"], [0.5, (1 + 0.75) / 2])
    np.testing.assert_allclose(bins["accuracy"], [1, 0.5])
    ece = scoring.expected_calibration_error(logits, np.array([0, 1, 1]), bins=2)
    assert ece == pytest.approx((0.5 + 2 * 0.375) / 3)


def test_temperatures_without_an_optimum():
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert scoring.fit_temperature(logits, np.array([0, 1])) == 0  # always right
    assert scoring.fit_temperature(logits, np.array([1, 0])) == np.inf  # always wrong
    assert np.isnan(scoring.fit_temperature(logits * np.nan, np.array([0, 1])))
    assert np.isnan(scoring.expected_calibration_error(logits * np.nan, np.array([0, 1])))
    # Three of four rows right at margin 1: p = 3/4 = sigmoid(1 / T).
    logits = np.repeat([[1.0, 0.0]], 4, 0)
    temperature = scoring.fit_temperature(logits, np.array([0, 0, 0, 1]))
    assert temperature == pytest.approx(1 / np.log(3), rel=1e-9)
    temperature = scoring.fit_temperature(1e6 * logits, np.array([0, 0, 0, 1]))
    assert temperature == pytest.approx(1e6 / np.log(3), rel=1e-9)


def test_accuracy_of_each_class_and_mistakes():
    labels = np.array([0, 0, 0, 2, 2, 2, 2, 1])
    predicted = np.array([0, 2, 2, 2, 1, 0, 1, 1])
    logits = np.eye(4)[predicted]
    accuracy = scoring.class_accuracy(labels, (predicted == labels).astype(float), 4)
    np.testing.assert_allclose(accuracy, [1 / 3, 1, 1 / 4, np.nan])
    pairs = [(0, 2, 2), (2, 1, 2), (2, 0, 1)]
    assert scoring.confused_pairs(logits, labels) == pairs
    assert scoring.confused_pairs(logits, labels, 1) == pairs[:1]
    assert scoring.confused_pairs(np.eye(4)[labels], labels) == []
    logits[1] = np.nan
    assert scoring.confused_pairs(logits, labels) == [(2, 1, 2), (0, 2, 1), (2, 0, 1)]
