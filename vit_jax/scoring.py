"""Scores of predictions, shared by training and evaluation.

Top-k accuracy is computed with JAX, everything else with NumPy in float64.
"""

import math

import jax.numpy as jnp
import numpy as np

CHUNK_ROWS = 4096  # rows of logits that are converted to float64 at a time
MAX_ITERATIONS = 200  # of `fit_temperature`, which needs about 10


def top_k_credit(logits, labels, k):
    """Compute the top-k credit of each row: the expected top-k accuracy with ties broken at random.

    With `greater` classes above the true class and `tied` classes equal to it, which include
    itself, the credit is clip((k - greater) / tied, 0, 1). A NaN of another class counts as
    greater. A row whose true logit is NaN, or whose label is out of range, earns 0.

    Args:
      logits: [b, c].
      labels: int [b].
      k: number of guesses.

    Returns:
      float32 [b], from 0 to 1.
    """
    # take_along_axis wraps negative indices, and fills with NaN beyond the last class.
    index = jnp.where(labels < 0, logits.shape[-1], labels)[:, None]
    true_logit = jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=jnp.nan)
    greater = (~(logits <= true_logit)).sum(-1)
    tied = (logits == true_logit).sum(-1)
    credit = jnp.clip((k - greater) / jnp.maximum(tied, 1), 0, 1)
    return jnp.where(tied > 0, credit, 0).astype(jnp.float32)


def label_set_credit(logits, targets, k):
    """Compute the top-k credit of each row if any of several labels counts as correct.

    This is the accuracy of ImageNet-ReaL (arXiv:2006.07159). Ties are broken at random and a NaN
    counts as in `top_k_credit`, which is the case of one label per row.

    Args:
      logits: NumPy array [b, c].
      targets: bool [b, c], the correct labels of each row. A row without any earns 0.
      k: number of guesses.

    Returns:
      float64 [b], from 0 to 1.
    """
    valid = targets & ~np.isnan(logits)
    best = np.where(valid, logits, -np.inf).max(-1, keepdims=True)
    greater = (~(logits <= best)).sum(-1)
    tied = (logits == best).sum(-1)
    correct = (valid & (logits == best)).sum(-1)
    guesses = np.minimum(k - greater, tied)  # among the tied classes
    miss = np.ones(len(logits))
    for i in range(k):
        rest = np.maximum(tied - correct - i, 0) / np.maximum(tied - i, 1)
        miss *= np.where(i < guesses, rest, 1)
    return np.where(valid.any(-1), 1 - miss, 0)


def calibration_bins(logits, labels, bins=15):
    """Group rows by confidence, the probability of the predicted class.

    Bins have equal width. Bin i is (i / bins, (i + 1) / bins]: open below and closed above.

    Args:
      logits: NumPy array [n, c].
      labels: int [n].
      bins: number of bins.

    Returns:
      {"count": int [bins], "confidence": float64 [bins], "accuracy": float64 [bins]}, the number of
      rows in each bin and their means, which are 0 in an empty bin.
    """
    confidence = np.concatenate([np.exp(log_p).max(-1) for _, log_p, _ in _chunks(logits, labels)])
    correct = logits.argmax(-1) == labels
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, "left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    means = {
        name: np.bincount(index, values, bins) / np.maximum(count, 1)
        for name, values in (("confidence", confidence), ("accuracy", correct))
    }
    return {"count": count} | means


def expected_calibration_error(logits, labels, bins=15):
    """Compute the ECE, the mean of |accuracy - confidence| over `calibration_bins` (a fraction).

    Bins are weighted by their number of rows (arXiv:1706.04599, equation 3). The result is NaN if a
    logit is.
    """
    groups = calibration_bins(logits, labels, bins)
    gap = np.abs(groups["accuracy"] - groups["confidence"])
    return float(gap @ groups["count"] / len(labels))


def mean_cross_entropy(logits, labels, temperature=1.0):
    """Compute the mean cross-entropy of softmax(logits / temperature), in nats.

    Args:
      logits: NumPy array [n, c].
      labels: int [n].
      temperature: T.
    """
    total = 0.0
    for _, log_p, true in _chunks(logits, labels, 1 / temperature):
        total -= log_p[np.arange(len(true)), true].sum()
    return float(total / len(labels))


def fit_temperature(logits, labels):
    """Fit the temperature T that minimizes the cross-entropy of softmax(logits / T).

    Temperature scaling (arXiv:1706.04599, section 4.2), fitted to convergence by Newton's method on
    1 / T, in which the cross-entropy is convex, with bisection where a step leaves the bracket.

    Args:
      logits: NumPy array [n, c].
      labels: int [n].

    Returns:
      T. It is 0 if no other class exceeds the true one in any row, infinite if uniform
      probabilities are the best, and NaN if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        return math.nan
    true_logits = logits[np.arange(len(labels)), labels]
    if (true_logits == logits.max(-1)).all():
        return 0.0
    if _slope(logits, labels, 0.0)[0] >= 0:
        return math.inf
    lower, upper, scale = 0.0, math.inf, 1.0
    for _ in range(MAX_ITERATIONS):
        slope, curvature = _slope(logits, labels, scale)
        lower, upper = (scale, upper) if slope < 0 else (lower, scale)
        step = slope / curvature if curvature > 0 else math.inf
        candidate = scale - step
        if not lower < candidate < upper:
            candidate = 2 * scale if math.isinf(upper) else (lower + upper) / 2
        converged = abs(candidate - scale) <= 1e-9 * scale
        scale = candidate
        if converged:
            break
    return 1 / scale


def class_accuracy(labels, credit, num_classes):
    """Compute the mean credit of the rows of each class, float64 [num_classes]; NaN without rows.

    Args:
      labels: int [n].
      credit: float [n], such as that of `label_set_credit`.
      num_classes: number of classes.
    """
    count = np.bincount(labels, minlength=num_classes)
    total = np.bincount(labels, credit, num_classes)
    return np.divide(total, count, out=np.full(num_classes, np.nan), where=count > 0)


def confused_pairs(logits, labels, limit=10):
    """List the most frequent mistakes as (label, predicted class, count), in descending order.

    Rows with a NaN are left out. Equally frequent pairs are in the order of the classes.

    Args:
      logits: NumPy array [n, c].
      labels: int [n].
      limit: maximum number of pairs.
    """
    predicted = logits.argmax(-1)
    wrong = (predicted != labels) & ~np.isnan(logits).any(-1)
    pairs, counts = np.unique(
        np.stack([labels[wrong], predicted[wrong]], -1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:limit]
    return [(*map(int, pairs[i]), int(counts[i])) for i in order]


def mean_corruption_error(errors, reference):
    """Compute the mCE of ImageNet-C as a fraction, 1.0 for the reference model.

    The mean error over the severities of each corruption is divided by the error of the reference
    model, AlexNet in arXiv:1903.12261, section 4.3; the mCE is the mean of these ratios.

    Args:
      errors: {corruption: error of each severity}, fractions.
      reference: {corruption: error of the reference model}, with the same corruptions.

    Raises:
      ValueError: if the corruptions differ.
    """
    if errors.keys() != reference.keys():
        raise ValueError(f"errors of {sorted(errors)}, expected {sorted(reference)}")
    return float(np.mean([np.mean(errors[name]) / reference[name] for name in reference]))


def _slope(logits, labels, scale):
    """Return the first and second derivative by `scale` of the cross-entropy of scale * logits."""
    slope = curvature = 0.0
    for z, log_p, true in _chunks(logits, labels, scale):
        p = np.exp(log_p)
        mean = (p * z).sum(-1)
        slope += (mean - z[np.arange(len(true)), true]).sum()
        curvature += ((p * z**2).sum(-1) - mean**2).sum()
    return slope / len(labels), curvature / len(labels)


def _chunks(logits, labels, scale=1.0):
    """Yield z, log softmax(scale * z) and the labels of chunks of rows.

    z are the logits, in float64, shifted to a maximum of 0 in each row.
    """
    for start in range(0, len(logits), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        z = logits[rows].astype(np.float64)
        with np.errstate(invalid="ignore"):  # an infinite logit gives NaN
            z -= z.max(-1, keepdims=True)
            log_p = scale * z - np.log(np.exp(scale * z).sum(-1, keepdims=True))
        yield z, log_p, labels[rows]
