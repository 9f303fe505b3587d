"""Tests of the linear probe: accuracy, SGD steps, standardization and invalid features."""

import jax
import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from vit_jax.errors import UserError
from vit_jax.evaluators import linear_probe, linear_probe_keys

DEFAULTS = {name: key.default for name, key in linear_probe_keys.defaults().items()}


@pytest.fixture
def blobs():
    """Four Gaussian classes in 6 dimensions of different scales: train [2000], queries [400]."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 2400).astype(np.int32)
    x = 1.5 * rng.normal(size=(4, 6))[label] + rng.normal(size=(2400, 6))
    x = (x * [1e-2, 1, 1, 1, 10, 10] + [0, 5, 0, 0, 0, 100]).astype(np.float32)
    train = {"pooled": x[:2000], "label": label[:2000]}
    return train, {"pooled": x[2000:], "label": label[2000:]}


@pytest.mark.parametrize("max_exact", [DEFAULTS["max_exact"], 0])  # logistic regression, SGD
def test_accuracy_matches_linear_discriminant_analysis(blobs, max_exact):
    train, queries = blobs
    sgd = {"epochs": 20, "batch_size": 128, "lr": 0.2}  # 300 steps
    options = DEFAULTS | sgd | {"max_exact": max_exact}
    scores = linear_probe.read_out(train, queries, **options)
    # Linear discriminant analysis is optimal for Gaussian classes with a shared covariance.
    peer = LinearDiscriminantAnalysis().fit(train["pooled"], train["label"])
    best = peer.score(queries["pooled"], queries["label"])
    assert scores.keys() == {"linear_acc1"} and 0.6 < best < 0.99
    assert scores["linear_acc1"] == pytest.approx(best, abs=0.02)


def test_sgd_matches_numpy():
    """The reference uses PyTorch's momentum and updates the learning rate once per epoch."""
    rng = np.random.default_rng(1)
    n, size, epochs = 22, 8, 4
    x, label = rng.normal(size=(n, 3)).astype(np.float32), rng.integers(0, 3, n).astype(np.int32)
    options = {"epochs": epochs, "batch_size": size, "lr": 20.0, "momentum": 0.9}
    init_key, *epoch_keys = jax.random.split(jax.random.key(0), 1 + epochs)
    w = np.vstack([0.01 * np.asarray(jax.random.normal(init_key, (3, 3))), np.zeros(3)])
    moment = np.zeros((4, 3))
    inputs = np.hstack([x, np.ones((n, 1), np.float32)])
    targets = np.eye(3)[label]
    for epoch, key in enumerate(epoch_keys):
        lr = 20.0 * size / 256 * (1 + np.cos(np.pi * epoch / epochs)) / 2
        order = np.asarray(jax.random.permutation(key, n))
        for rows in (order[:8], order[8:16]):
            p = np.exp(inputs[rows] @ w)
            gradient = inputs[rows].T @ (p / p.sum(1, keepdims=True) - targets[rows]) / size
            moment = 0.9 * moment + gradient
            w = w - lr * moment
    points = rng.normal(size=(5000, 3)).astype(np.float32)
    expected = (np.hstack([points, np.ones((5000, 1))]) @ w).argmax(1)
    assert len(set(expected)) == 3
    assert (linear_probe.sgd(x, label, points, **options) == expected).mean() > 0.999


def test_nan_features_and_a_single_class(blobs):
    train, queries = blobs
    nan = {"pooled": np.full_like(train["pooled"], np.nan), "label": train["label"]}
    assert linear_probe.read_out(nan, queries, **DEFAULTS) == {"linear_acc1": 0.0}
    with pytest.raises(UserError, match="two or more classes"):
        one_class = train | {"label": 0 * train["label"]}
        linear_probe.read_out(one_class, queries, **DEFAULTS)


def test_standardization_does_not_amplify_rounding_noise(blobs):
    x = blobs[0]["pooled"]
    scaled = linear_probe.standardizer(x)(x)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-3)
    # A collapsed model: features of all images differ in the last bits only.
    collapsed = np.float32([0, 1, 2, 3, 4, 5]) + np.float32(2e-7) * np.sign(x)
    assert 0 < np.abs(linear_probe.standardizer(collapsed)(collapsed)).max() < 0.1
