"""Predictions of a model on a dataset split, and its errors."""

import jax
import numpy as np

from vit_jax.evaluators import knn


def evaluate_split(model, split, max_images):
    """Predict the classes of the first images of a split.

    A model without a classification head is evaluated with k-NN on the first training images.

    Args:
      model: `inference.LoadedModel` of a run.
      split: key of config.data.
      max_images: number of images to evaluate, and of training images for k-NN.

    Returns:
      Labels [n], probabilities (for k-NN, shares of the votes) [n, k], and the number of neighbors
      (0 with a classification head).

    Raises:
      UserError: if the dataset is missing.
    """
    outputs = _outputs(model, split, max_images)
    if "logits" in outputs:
        return outputs["label"], np.asarray(jax.nn.softmax(outputs["logits"])), 0
    bank = _outputs(model, "train", max_images)
    config = model.config.knn
    features = [knn.normalize(x["pooled"]) for x in (bank, outputs)]
    k = max(config.k)
    similarities, indices = knn.nearest(*features, min(k, len(features[0])))
    labels = bank["label"][indices]
    votes = knn.count_votes(similarities, labels, config.temperature, len(model.class_names))
    return outputs["label"], votes / votes.sum(1, keepdims=True), k


def _outputs(model, split, max_images):
    name = "pooled" if model.module.head is None else "logits"
    return model.features(split, (name,), max_images=max_images)


def confusion(labels, predicted, classes):
    """Count images by [true, predicted] class, from labels [n] and predictions [n]."""
    counts = np.bincount(labels * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def confident_errors(labels, probabilities, max_count):
    """Return the indices of up to max_count wrong predictions, most confident first."""
    wrong = np.nonzero(probabilities.argmax(1) != labels)[0]
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:max_count]


def confused_pairs(matrix, max_count):
    """Return the most frequent confusions as [(true, predicted, images), ...]."""
    errors = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    order = np.argsort(-errors, axis=None, kind="stable")[:max_count]
    pairs = [(*divmod(int(i), len(matrix)), int(errors.flat[i])) for i in order]
    return [pair for pair in pairs if pair[2]]
