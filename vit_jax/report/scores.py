"""What a model says of a split, image by image, and what it gets wrong."""

from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vit_jax import augment, forward
from vit_jax.devices import sharding
from vit_jax.evaluators import knn


def of_split(model, params, config, split, most):
    """-> {"labels" [n], "scores" float32 [n, k], "of": images in the split, "knn": the number
    of nearest neighbors whose votes the scores are, or 0}, of the first `most` images.

    Without a classifier the first `most` training images vote. Raises UserError.
    """
    found, total, classes = _outputs(model, params, config, split, most)
    scores = found.get("logits")
    if scores is None:
        bank = _outputs(model, params, config, "train", most)[0]
        features = [knn.normalize(x["pooled"]) for x in (bank, found)]
        k = max(config.knn.k)
        similarities, at = knn.nearest(*features, min(k, len(features[0])))
        votes = knn.count_votes(similarities, bank["label"][at], config.knn.temperature, classes)
        shares = votes / votes.sum(1, keepdims=True)
        return {"labels": found["label"], "scores": shares, "of": total, "knn": k}
    scores = np.asarray(jax.nn.softmax(scores))
    return {"labels": found["label"], "scores": scores, "of": total, "knn": 0}


def _outputs(model, params, config, split, most):
    mesh = sharding.make_mesh(ConfigDict(dict(data=1, fsdp=1, tensor=1)), jax.devices()[:1])
    source, read = forward.reader(config, split, mesh)

    @jax.jit
    def compute(params, rows):
        images = augment.normalize(rows["image"], config.data.mean, config.data.std)
        out = model.apply(params, images)
        name = "logits" if "logits" in out else "pooled"
        return {name: out[name].astype(jnp.float32), "label": rows["label"], "mask": rows["mask"]}

    size = config.eval_batch_size or config.batch_size
    batches = read()
    parts = [jax.device_get(compute(params, rows)) for rows in islice(batches, -(-most // size))]
    found = {
        name: np.concatenate([part[name][part["mask"]] for part in parts])[:most]
        for name in parts[0]
        if name != "mask"
    }
    return found, len(source), source.num_classes


def confusion(labels, said, classes):
    """Counts [true, said] of labels [n] and predictions [n]."""
    return np.bincount(labels * classes + said, minlength=classes**2).reshape(classes, classes)


def mistakes(labels, scores, count):
    """Rows of the wrong answers, the most confident first; at most so many."""
    said = scores.argmax(1)
    wrong = np.nonzero(said != labels)[0]
    return wrong[np.argsort(-scores[wrong, said[wrong]], kind="stable")][:count]


def confused(matrix, count):
    """[(true, said, images), ...]: the pairs of classes that are taken for each other most often,
    one way; none that never are."""
    off = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    pairs = [(*divmod(int(i), len(matrix)), int(off.flat[i])) for i in order]
    return [pair for pair in pairs if pair[2]]
