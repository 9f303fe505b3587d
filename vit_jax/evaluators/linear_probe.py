"""Linear probe: train a linear classifier on frozen features of the training split.

Small datasets use scikit-learn's logistic regression, run to convergence. Large ones use SGD on the
device with DINO's settings (arXiv:2104.14294, section 3.2). Unlike DINO, each image has a single
pooled feature, that of its evaluation view without random crops, and the reported accuracy is that
of the last epoch, not of the best epoch on the evaluated split.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.errors import UserError

INIT_STD = 0.01  # standard deviation of the initial weights, as in DINO's eval_linear


def read_out(bank, queries, *, max_exact, **options):
    """Train a linear classifier on frozen features and compute its accuracy.

    Args:
      bank: {"pooled" [m, d], "label" [m]} of the training split.
      queries: {"pooled" [n, d], "label" [n]} of the split to evaluate.
      max_exact: maximum number of training images for logistic regression; SGD is used above it.
      **options: options of `sgd`.

    Returns:
      {"linear_acc1": accuracy}, the fraction of correctly classified queries.

    Raises:
      UserError: if all training images have the same class.
    """
    train, labels, features = bank["pooled"], bank["label"], queries["pooled"]
    if len(np.unique(labels)) < 2:
        raise UserError("linear_probe requires training images of two or more classes")
    if not (np.isfinite(train).all() and np.isfinite(features).all()):
        return {"linear_acc1": 0.0}  # NaN counts as wrong, as in the other evaluators
    scale = standardizer(train)
    arrays = (scale(train), labels, scale(features))
    exact = len(train) <= max_exact
    predicted = logistic_regression(*arrays) if exact else sgd(*arrays, **options)
    return {"linear_acc1": float(np.mean(predicted == queries["label"]))}


def standardizer(train):
    """Return `scale(features)`, which standardizes each dimension by its mean and std in `train`.

    MAE's linear probe does the same (arXiv:2111.06377, appendix A.1). The set of possible
    classifiers does not change, but the same penalty and learning rate suit features of any scale.

    Args:
      train: training features [n, d].
    """
    mean = train.mean(0, dtype=np.float64)
    std = train.std(0, dtype=np.float64)
    # A floor at the rounding error of float32, so that rounding noise is not amplified.
    std = np.maximum(std, 1e-5 * np.sqrt(np.mean(mean**2 + std**2)) + 1e-30)
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    return lambda features: (features - mean) / std


def logistic_regression(train, labels, features):
    """Fit logistic regression and predict labels.

    Minimizes the cross-entropy summed over images plus |weights|^2 / 2, scikit-learn's C = 1.

    Args:
      train: training features [m, d].
      labels: training labels, int [m].
      features: features to classify [n, d].

    Returns:
      Predicted labels, int [n].
    """
    from sklearn.linear_model import LogisticRegression

    # float64, because rounding errors in float32 stall the line search of L-BFGS.
    fitted = LogisticRegression(max_iter=1000).fit(train.astype(np.float64), labels)
    return fitted.predict(features.astype(np.float64))


def sgd(train, labels, features, *, epochs, batch_size, lr, momentum):
    """Train a linear classifier by SGD and predict labels.

    Each epoch shuffles the images and drops those that do not fill a batch. The learning rate
    follows a half cosine, updated once per epoch.

    Args:
      train: training features [m, d].
      labels: training labels, int [m].
      features: features to classify [n, d].
      epochs: number of epochs.
      batch_size: images per step; at most m are used.
      lr: peak learning rate for a batch of 256, scaled linearly with the batch size.
      momentum: momentum of SGD.

    Returns:
      Predicted labels, int [n].
    """
    size = min(batch_size, len(train))
    settings = _SGD(epochs, len(train) // size, size, lr * size / 256, momentum)
    state, keys = _init_sgd(settings, train.shape[1], int(labels.max()) + 1)
    train = jax.device_put(train)
    labels = jax.device_put(labels)
    for key in keys:
        state = _train_epoch(settings, state, key, train, labels)
    params = jax.device_get(state[0])
    return (features @ params["kernel"] + params["bias"]).argmax(1)


class _SGD(NamedTuple):
    """Settings of `sgd`. Programs are compiled once for each."""

    epochs: int
    steps: int  # per epoch
    batch_size: int
    peak: float  # learning rate
    momentum: float

    def optimizer(self):
        def schedule(step):
            return self.peak * (1 + jnp.cos(jnp.pi * (step // self.steps) / self.epochs)) / 2

        return optax.sgd(schedule, momentum=self.momentum)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _init_sgd(settings, width, num_classes):
    """Return the initial (params, moments), and a key for each epoch."""
    init_key, *keys = jax.random.split(jax.random.key(0), 1 + settings.epochs)
    kernel = INIT_STD * jax.random.normal(init_key, (width, num_classes))
    params = {"kernel": kernel, "bias": jnp.zeros(num_classes)}
    return (params, settings.optimizer().init(params)), keys


@functools.partial(jax.jit, static_argnums=0)
def _train_epoch(settings, state, key, train, labels):
    tx = settings.optimizer()

    def loss(params, rows):
        logits = train[rows] @ params["kernel"] + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(state, rows):
        params, moments = state
        updates, moments = tx.update(jax.grad(loss)(params, rows), moments)
        return (optax.apply_updates(params, updates), moments), None

    count = settings.steps * settings.batch_size
    order = jax.random.permutation(key, len(train))[:count]
    return jax.lax.scan(step, state, order.reshape(settings.steps, settings.batch_size))[0]
