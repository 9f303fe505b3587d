"""Scores of a classifier on the datasets of `suites.py`: accuracy, calibration, mistakes, mCE."""

import math
import os

import numpy as np

from vit_jax import evaluators, forward, progress, scoring
from vit_jax.evaluators import suites

MAX_LISTED = 10  # most confused pairs of classes


def run(suite, root, model, params, config, mesh, outputs, *, crop=None, title=None):
    """Evaluate a classifier on a suite.

    Args:
      suite: the `Suite`.
      root: the directory that holds `suite.folder`.
      model: a `models.Model`.
      params: its parameters, on the devices of the mesh.
      config: the config that specifies preprocessing, loading and the batch size; not modified.
      mesh: the mesh to shard batches over.
      outputs: the WordNet ID of each of the classifier's outputs.
      crop: crop ratio instead of those of the suite and of the config.
      title: name of the command, to show progress on stderr; None: no progress.

    Returns:
      The scores of `score`; those of `score_label_lists` and "skipped", the number of images
      without a label; or those of `score_corruptions` and "images". And "crop", the crop ratio.

    Raises:
      UserError: if a directory or file name does not follow the rule of the labels, or an image
        cannot be decoded.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.augment.eval_crop = crop or suite.crop or config.augment.eval_crop
    columns = [outputs.index(wordnet_id) for wordnet_id in suite.classes]

    def compute(source, text=suite.title):
        text = title and f"{title}: {text}"
        logits, labels = compute_logits(source, model, params, config, mesh, title=text)
        return restrict(logits, columns), labels

    channels = config.model.channels
    if suite.reference:
        scores = _run_corruptions(suite, root, channels, compute)
    elif suite.label_file:
        source, label_lists, skipped = suites.read_listed(suite, root, channels)
        logits, positions = compute(source)
        scores = score_label_lists(logits, [label_lists[i] for i in positions])
        scores["skipped"] = skipped
    else:
        scores = score(*compute(suites.read(suite, suite.directory(root), channels)))
    return scores | {"crop": config.augment.eval_crop}


def _run_corruptions(suite, root, channels, compute):
    """Return the scores of a suite with a directory for each corruption and severity."""
    images = 0
    errors = {}
    for name in suite.reference:
        errors[name] = []
        for path in suites.severity_directories(suite, root, name):
            source = suites.read(suite, path, channels)
            logits, labels = compute(source, f"{suite.title}, {name} {os.path.basename(path)}")
            errors[name].append(1 - float(_credit(logits, labels, 1).mean()))
            images += len(source)
    return {"images": images} | score_corruptions(errors, suite.reference)


def compute_logits(source, model, params, config, mesh, *, title=None):
    """Compute the logits of every image of a source.

    Args:
      source: a `data.Slice`.
      title: what is shown as progress on stderr; None: no progress.

    For the other arguments, see `run`.

    Returns:
      logits: float32 [n, k].
      labels: int32 [n].
    """
    size = evaluators.check_batch_size(config, mesh)
    _, stream = evaluators.stream_features(model, config, source, mesh, _logits)
    batches = stream(params)
    if title:
        batches = progress.track(batches, title, math.ceil(len(source) / size))
    arrays = forward.collect(batches, len(source))
    return arrays["logits"], arrays["label"]


def _logits(module, images):
    return {"logits": module(images, tokens=False)["logits"].astype("float32")}


def restrict(logits, columns):
    """Select the logits of the classes of a suite, in its order, before arg-max and softmax."""
    return logits if list(columns) == list(range(logits.shape[1])) else logits[:, columns]


def score(logits, labels):
    """Compute accuracy, calibration, the accuracy of each class and the most confused classes.

    Args:
      logits: NumPy array [n, k].
      labels: int [n].

    Returns:
      A dict with
        "images": n.
        "top1", "top5": accuracy as a fraction; no "top5" with five classes or fewer.
        "loss": mean cross-entropy.
        "ece": expected calibration error with 15 bins, a fraction.
        "temperature": see `scoring.fit_temperature`.
        "loss_scaled", "ece_scaled": loss and ECE of logits / temperature, fitted to the same
          images; absent unless the temperature is positive and finite.
        "bins": see `scoring.calibration_bins`.
        "class_top1": accuracy of each class [k], NaN for classes without images.
        "confused": (label, predicted class, count) of the most frequent mistakes.
    """
    credit = _credit(logits, labels, 1)
    scores = {"images": len(labels), "top1": float(credit.mean())}
    if logits.shape[1] > 5:
        scores["top5"] = float(_credit(logits, labels, 5).mean())
    temperature = scoring.fit_temperature(logits, labels)
    scores |= {
        "loss": scoring.mean_cross_entropy(logits, labels),
        "ece": scoring.expected_calibration_error(logits, labels),
        "temperature": temperature,
    }
    if 0 < temperature < math.inf:
        scaled = logits / np.float32(temperature)
        scores["loss_scaled"] = scoring.mean_cross_entropy(scaled, labels)
        scores["ece_scaled"] = scoring.expected_calibration_error(scaled, labels)
    return scores | {
        "bins": scoring.calibration_bins(logits, labels),
        "class_top1": scoring.class_accuracy(labels, credit, logits.shape[1]),
        "confused": scoring.confused_pairs(logits, labels, MAX_LISTED),
    }


def score_label_lists(logits, label_lists):
    """Compute the accuracy if any label in the list of an image counts as correct.

    Args:
      logits: NumPy array [n, k].
      label_lists: the correct labels of each image, none of them empty.

    Returns:
      {"images": n, "top1": ..., "top5": ...}, fractions.
    """
    targets = np.zeros(logits.shape, bool)
    for row, labels in zip(targets, label_lists, strict=True):
        row[labels] = True
    credit = {f"top{k}": scoring.label_set_credit(logits, targets, k) for k in (1, 5)}
    return {"images": len(logits)} | {name: float(x.mean()) for name, x in credit.items()}


def score_corruptions(errors, reference):
    """Compute the scores of ImageNet-C from the error of each corruption and severity.

    Args:
      errors: {corruption: error of each severity}, fractions.
      reference: {corruption: error of the reference model}.

    Returns:
      A dict with
        "top1": mean accuracy over corruptions and severities.
        "mce": see `scoring.mean_corruption_error`.
        "corruptions": {corruption: {"error": mean over severities, "ce": "error" / that of the
          reference model}}.
    """
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    return {
        "top1": 1 - float(np.mean(list(means.values()))),
        "mce": scoring.mean_corruption_error(errors, reference),
        "corruptions": {
            name: {"error": error, "ce": error / reference[name]} for name, error in means.items()
        },
    }


def _credit(logits, labels, k):
    """Return the top-k credit of each row, float64 [n], for one label per row."""
    targets = labels[:, None] == np.arange(logits.shape[1])
    return scoring.label_set_credit(logits, targets, k)
