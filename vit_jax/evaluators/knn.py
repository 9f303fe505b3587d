"""Weighted k-nearest-neighbor readout of frozen features (arXiv:1805.01978, section 3.4).

As DINO is measured (arXiv:2104.14294, section 3.2): the k training images with the most similar
features, by the cosine s, vote for their classes with the weight exp(s / T).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError

BLOCK = (1024, 8192)  # queries and training images compared at a time: 32 MiB


def read_out(bank, queries, *, k, temperature):
    """Classify by the nearest training images.

    Args:
      bank, queries: {"pooled" [n, d], "label" [n]} of the training split and the one to score.
      k: numbers of neighbors that vote. Where there are fewer training images, all of them vote.
      temperature: T in the weight exp(s / T) of a vote.

    Returns:
      {"knn10", ...}, for each k the fraction of the queries that is classified correctly.
    """
    train, features = (normalize(x["pooled"]) for x in (bank, queries))
    similarities, at = nearest(train, features, min(max(k), len(train)))
    labels, num_classes, scores = bank["label"][at], bank["label"].max() + 1, {}
    for count in k:
        predicted = predict(similarities[:, :count], labels[:, :count], temperature, num_classes)
        scores[f"knn{count}"] = float(np.mean(predicted == queries["label"]))
    return scores


def knn_predict(
    train_features, train_labels, features, k, temperature, num_classes, *, block=BLOCK
):
    """The classes that the k nearest of m training images vote for, int [n].

    train_features [m, d] and features [n, d] are L2-normalized; train_labels [m], below
    num_classes; all numpy or jax arrays. With fewer than k training images all of them vote.
    block: as of `nearest`. Raises UserError for arguments that do not fit together.
    """
    train_features = np.asarray(train_features)
    features = np.asarray(features)
    labels = np.asarray(train_labels)
    if len(labels) != len(train_features) or train_features.shape[1:] != features.shape[1:]:
        raise UserError(
            f"k-NN of features {list(features.shape)} among features {list(train_features.shape)} "
            f"with labels {list(labels.shape)}: these shapes do not fit together"
        )
    if not len(labels) or not len(features) or k < 1 or not temperature > 0:
        raise UserError(
            f"k-NN of {len(features)} images among {len(labels)} with k={k}, "
            f"temperature={temperature}: each must be above 0"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"k-NN: labels are {labels.min()} to {labels.max()}, but there are {num_classes} "
            "classes"
        )
    similarities, at = nearest(train_features, features, min(k, len(labels)), block=block)
    return predict(similarities, labels[at], temperature, num_classes, rows=block[0])


def nearest(train_features, features, k, *, block=BLOCK):
    """The k most similar rows of train_features [m, d], k <= m, for each of features [n, d].

    -> similarities float32 [n, k], falling, and indices [n, k]; the lower index of equals first.
    Computed on one device, whose memory holds train_features and a few tables of the size of a
    block: rows of features, rows of train_features.
    """
    bank, parts = jax.device_put(np.asarray(train_features, np.float32)), []
    for start in range(0, len(features), block[0]):
        rows = np.asarray(features[start : start + block[0]], np.float32)
        parts.append(jax.device_get(_nearest(bank, rows, k, block[1])))
    similarities, at = zip(*parts, strict=True)
    return np.concatenate(similarities), np.concatenate(at)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _nearest(bank, queries, k, columns):
    """Merge the best k so far with those of the next block of columns."""
    count, size = len(bank), min(columns, len(bank))

    def merge(best, begin):
        start = jnp.minimum(begin, count - size)  # the last block overlaps the one before it
        block = jax.lax.dynamic_slice_in_dim(bank, start, size)
        # Not in an accelerator's short floats: neighbors are close to each other.
        found = jnp.einsum("nd,md->nm", queries, block, precision="highest")
        found = jnp.where(start + jnp.arange(size) < begin, -jnp.inf, found)
        found, at = jax.lax.top_k(found, min(k, size))
        found = jnp.concatenate([best[0], found], axis=1)
        indices = jnp.concatenate([best[1], start + at], axis=1)
        found, at = jax.lax.top_k(found, k)
        return (found, jnp.take_along_axis(indices, at, axis=1)), None

    shape = (len(queries), k)
    best = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    return jax.lax.scan(merge, best, jnp.arange(0, count, size))[0]


def predict(similarities, labels, temperature, num_classes, *, rows=BLOCK[0]):
    """The class with the most votes, int [n]; the lowest of equals; -1 where a feature is NaN."""
    predicted = []
    for start in range(0, len(labels), rows):  # one table of votes per part
        part = slice(start, start + rows)
        votes = count_votes(similarities[part], labels[part], temperature, num_classes)
        predicted.append(np.where(np.isnan(votes).any(1), -1, votes.argmax(1)))
    return np.concatenate(predicted)


def count_votes(similarities, labels, temperature, num_classes):
    """Sums over each class of exp((s - s_1) / T), float64 [n, classes], of neighbors [n, k].

    s_1 is the largest similarity: without it, which changes no order, small T would overflow.
    """
    s = similarities.astype(np.float64)
    weights = np.exp((s - s[:, :1]) / temperature)
    cells = np.arange(len(s))[:, None] * num_classes + labels
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(s) * num_classes)
    return votes.reshape(len(s), num_classes)


def normalize(features):
    """features [n, d], each of length 1."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)
