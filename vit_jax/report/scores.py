"""What a model predicts on a split, image by image, and what it gets wrong."""

import jax
import numpy as np

from vit_jax.evaluators import knn


def of_split(model, split, max_images):
    """Labels [n] and predicted shares [n, k] of the first images of a split.

    Without a classifier the nearest of the first training images vote.

    Args:
      model: `inference.LoadedModel` of a run.
      split: a key of config.data.
      max_images: how many of its images are predicted.

    Returns:
      labels, shares, and the number of neighbors that vote, or 0.

    Raises:
      UserError: if the data are missing.
    """
    found = _outputs(model, split, max_images)
    if "logits" in found:
        return found["label"], np.asarray(jax.nn.softmax(found["logits"])), 0
    bank, config = _outputs(model, "train", max_images), model.config.knn
    features = [knn.normalize(x["pooled"]) for x in (bank, found)]
    k = max(config.k)
    similarities, at = knn.nearest(*features, min(k, len(features[0])))
    labels = bank["label"][at]
    votes = knn.count_votes(similarities, labels, config.temperature, len(model.class_names))
    return found["label"], votes / votes.sum(1, keepdims=True), k


def _outputs(model, split, max_images):
    name = "pooled" if model.module.head is None else "logits"
    return model.features(split, (name,), max_images=max_images)


def confusion(labels, predicted, classes):
    """Counts [true, predicted] of labels [n] and predictions [n]."""
    counts = np.bincount(labels * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def mistakes(labels, shares, count):
    """Rows of the wrong predictions, the most confident first; at most so many."""
    wrong = np.nonzero(shares.argmax(1) != labels)[0]
    return wrong[np.argsort(-shares[wrong].max(1), kind="stable")][:count]


def confused(matrix, count):
    """[(true, predicted, images), ...]: the pairs of classes that are confused most often."""
    off = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    pairs = [(*divmod(int(i), len(matrix)), int(off.flat[i])) for i in order]
    return [pair for pair in pairs if pair[2]]
