"""Weighted k-nearest-neighbor classifier on frozen features (arXiv:1805.01978, section 3.4).

This is the k-NN evaluation of DINO (arXiv:2104.14294, section 3.2): the k training images with the
highest cosine similarity s vote for their class with weight exp(s / T).

Ties: among equally similar training images, the one with the lower index in the training split is
the nearer neighbor. Among classes with equal votes, the class with the lowest index is predicted.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError

BLOCK_SHAPE = (1024, 8192)  # queries x training images per block of similarities: 32 MiB


def read_out(bank, queries, *, k, temperature):
    """Compute the k-NN accuracy.

    Args:
      bank: {"pooled" [m, d], "label" [m]} of the training split.
      queries: {"pooled" [n, d], "label" [n]} of the split to evaluate.
      k: numbers of neighbors to evaluate. If there are fewer training images, all of them vote.
      temperature: T in the weight exp(s / T) of a vote.

    Returns:
      {"knn10": accuracy, ...}, the fraction of correctly classified queries for each k.
    """
    train, features = (normalize(x["pooled"]) for x in (bank, queries))
    similarities, indices = nearest(train, features, min(max(k), len(train)))
    labels = bank["label"][indices]
    num_classes = bank["label"].max() + 1
    scores = {}
    for count in k:
        predicted = predict(similarities[:, :count], labels[:, :count], temperature, num_classes)
        scores[f"knn{count}"] = float(np.mean(predicted == queries["label"]))
    return scores


def knn_predict(
    train_features, train_labels, features, k, temperature, num_classes, *, block=BLOCK_SHAPE
):
    """Classify features by a weighted vote of their k nearest training features.

    Args:
      train_features: L2-normalized [m, d], a numpy or jax array.
      train_labels: int [m], from 0 to num_classes - 1.
      features: L2-normalized [n, d].
      k: number of neighbors that vote; all m if k is larger.
      temperature: T in the weight exp(s / T) of a vote.
      num_classes: number of classes.
      block: rows of features and of train_features compared at a time.

    Returns:
      The predicted classes, int [n]; the lowest class on ties, -1 where a feature is NaN.

    Raises:
      UserError: if shapes do not match or a value is out of range.
    """
    train_features = np.asarray(train_features)
    features = np.asarray(features)
    labels = np.asarray(train_labels)
    if len(labels) != len(train_features) or train_features.shape[1:] != features.shape[1:]:
        raise UserError(
            f"k-NN: shapes do not match: features {list(features.shape)}, train_features "
            f"{list(train_features.shape)}, train_labels {list(labels.shape)}"
        )
    if not len(labels) or not len(features) or k < 1 or not temperature > 0:
        raise UserError(
            f"k-NN: {len(features)} features, {len(labels)} training features, k={k} and "
            f"temperature={temperature} must all be above 0"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"k-NN: train_labels range from {labels.min()} to {labels.max()}, expected 0 to "
            f"{num_classes - 1}"
        )
    similarities, indices = nearest(train_features, features, min(k, len(labels)), block=block)
    return predict(similarities, labels[indices], temperature, num_classes, rows=block[0])


def nearest(train_features, features, k, *, block=BLOCK_SHAPE):
    """Find the k most similar training features for each feature.

    Runs on one device. Its memory must hold train_features and a few blocks of similarities.

    Args:
      train_features: [m, d].
      features: [n, d].
      k: number of neighbors, at most m.
      block: rows of features and of train_features compared at a time.

    Returns:
      similarities: dot products in descending order, float32 [n, k].
      indices: rows of train_features, int32 [n, k]. Ties are in the order of the rows.
    """
    bank = jax.device_put(np.asarray(train_features, np.float32))
    parts = []
    for start in range(0, len(features), block[0]):
        rows = np.asarray(features[start : start + block[0]], np.float32)
        parts.append(jax.device_get(_nearest(bank, rows, k, block[1])))
    similarities, indices = zip(*parts, strict=True)
    return np.concatenate(similarities), np.concatenate(indices)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _nearest(bank, queries, k, columns):
    """Scan over blocks of the bank, merging the top k of each block into the top k so far."""
    count = len(bank)
    size = min(columns, count)

    def merge(best, begin):
        start = jnp.minimum(begin, count - size)  # the last block overlaps the previous one
        block = jax.lax.dynamic_slice_in_dim(bank, start, size)
        # Full float32: the default precision of accelerators cannot rank close neighbors.
        values = jnp.einsum("nd,md->nm", queries, block, precision="highest")
        values = jnp.where(start + jnp.arange(size) < begin, -jnp.inf, values)
        values, at = jax.lax.top_k(values, min(k, size))
        values = jnp.concatenate([best[0], values], axis=1)
        indices = jnp.concatenate([best[1], start + at], axis=1)
        values, at = jax.lax.top_k(values, k)
        return (values, jnp.take_along_axis(indices, at, axis=1)), None

    shape = (len(queries), k)
    best = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    return jax.lax.scan(merge, best, jnp.arange(0, count, size))[0]


def predict(similarities, labels, temperature, num_classes, *, rows=BLOCK_SHAPE[0]):
    """Return the class with the most votes, int [n]; the lowest class on ties; -1 for NaN.

    Args:
      similarities: similarities of the k neighbors in descending order, float32 [n, k].
      labels: labels of the k neighbors, int [n, k].
      temperature: T in the weight exp(s / T) of a vote.
      num_classes: number of classes.
      rows: rows processed at a time, which bounds the size of the vote table.
    """
    predicted = []
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        votes = count_votes(similarities[part], labels[part], temperature, num_classes)
        predicted.append(np.where(np.isnan(votes).any(1), -1, votes.argmax(1)))
    return np.concatenate(predicted)


def count_votes(similarities, labels, temperature, num_classes):
    """Sum the weights exp((s - s_1) / T) of each class, float64 [n, classes].

    Subtracting s_1, the largest similarity of a row, keeps the order of the classes and prevents
    overflow at small T. See `predict` for the arguments.
    """
    s = similarities.astype(np.float64)
    weights = np.exp((s - s[:, :1]) / temperature)
    cells = np.arange(len(s))[:, None] * num_classes + labels
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(s) * num_classes)
    return votes.reshape(len(s), num_classes)


def normalize(features):
    """L2-normalize features [n, d]."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)
