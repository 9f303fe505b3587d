"""Linear readout: a classifier of frozen features, learned on those of the training split.

Small sets: scikit-learn's logistic regression, solved to its end. Large ones: SGD on the device
with DINO's settings (arXiv:2104.14294, section 3.2). Other than there, an image has one feature,
the pooled one of its evaluation view: there are no random crops. What is reported is the last
epoch, not the best one on the split that is scored.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.errors import UserError

INIT_STD = 0.01  # of the classifier's weights, as in DINO's eval_linear


def read_out(bank, queries, *, max_exact, **options):
    """Train a linear classifier on frozen features.

    Args:
      bank, queries: {"pooled" [n, d], "label" [n]} of the training split and the one to score.
      max_exact: training images up to which logistic regression is solved exactly.
      **options: those of `sgd`, used for more images.

    Returns:
      {"linear_acc1"}, the fraction of the queries that is classified correctly.

    Raises:
      UserError: if all training images are of one class.
    """
    train, labels, features = bank["pooled"], bank["label"], queries["pooled"]
    if len(np.unique(labels)) < 2:
        raise UserError("linear_probe: all training images are of one class; it needs two or more")
    if not (np.isfinite(train).all() and np.isfinite(features).all()):
        return {"linear_acc1": 0.0}  # a model that gives NaN is never right
    scale = standardizer(train)
    arrays = (scale(train), labels, scale(features))
    exact = len(train) <= max_exact
    predicted = logistic_regression(*arrays) if exact else sgd(*arrays, **options)
    return {"linear_acc1": float(np.mean(predicted == queries["label"]))}


def standardizer(train):
    """train [n, d] -> scale(features), by which each of the d has mean 0 and deviation 1 there.

    MAE's probe does likewise (arXiv:2111.06377, appendix A.1): the classifiers to be had are the
    same, but then one penalty and one learning rate suit features of any scale.
    """
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    # What varies no more than float32 rounds is noise; it is not blown up.
    std = np.maximum(std, 1e-5 * np.sqrt(np.mean(mean**2 + std**2)) + 1e-30)
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    return lambda features: (features - mean) / std


def logistic_regression(train, labels, features):
    """-> predicted labels of features [m, d], from train [n, d] and labels [n].

    The least of cross-entropy, summed over images, plus |weights|^2 / 2: scikit-learn's C = 1.
    """
    from sklearn.linear_model import LogisticRegression

    # In float64: the line search of L-BFGS stalls on float32's rounding.
    fitted = LogisticRegression(max_iter=1000).fit(train.astype(np.float64), labels)
    return fitted.predict(features.astype(np.float64))


def sgd(train, labels, features, *, epochs, batch_size, lr, momentum):
    """Predict labels, as `logistic_regression`, with a classifier trained by SGD.

    lr is the peak learning rate for 256 images per step; it follows a half cosine, updated once per
    epoch. Every epoch has a new order and leaves out the images that do not fill a batch.
    """
    size = min(batch_size, len(train))
    steps = len(train) // size
    peak = lr * size / 256

    def rate(step):
        return peak * (1 + jnp.cos(jnp.pi * (step // steps) / epochs)) / 2

    tx = optax.sgd(rate, momentum=momentum)

    @jax.jit
    def epoch(state, key, train, labels):
        def loss(params, rows):
            logits = train[rows] @ params["kernel"] + params["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        def step(state, rows):
            params, moments = state
            updates, moments = tx.update(jax.grad(loss)(params, rows), moments)
            return (optax.apply_updates(params, updates), moments), None

        order = jax.random.permutation(key, len(train))[: steps * size]
        return jax.lax.scan(step, state, order.reshape(steps, size))[0]

    first, *keys = jax.random.split(jax.random.key(0), 1 + epochs)
    kernel = INIT_STD * jax.random.normal(first, (train.shape[1], labels.max() + 1))
    params = {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}
    state = (params, tx.init(params))
    train, labels = jax.device_put(train), jax.device_put(labels)
    for key in keys:
        state = epoch(state, key, train, labels)
    params = jax.device_get(state[0])
    return (features @ params["kernel"] + params["bias"]).argmax(1)
