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

from vit_jax.cli import UserError

LARGEST = 60_000  # training images; with more, a CPU takes too long to the optimum
# DINO's eval_linear: images a step, the learning rate for 256 of them, deviation of the first
# weights; no weight decay.
EPOCHS, BATCH, LR, MOMENTUM, STD = 100, 1024, 0.001, 0.9, 0.01


def read_out(bank, queries):
    """-> {"linear_acc1"}, the share of the queries that is classed right.

    bank, queries: {"pooled" [n, d], "label" [n]}. Raises UserError where there is but one class.
    """
    train, labels, features = bank["pooled"], bank["label"], queries["pooled"]
    if len(np.unique(labels)) < 2:
        raise UserError("linear_probe: all training images are of one class; it needs two or more")
    if not (np.isfinite(train).all() and np.isfinite(features).all()):
        return {"linear_acc1": 0.0}  # a model that gives NaN is never right
    scale = standardiser(train)
    learn = logistic_regression if len(train) <= LARGEST else sgd
    predicted = learn(scale(train), labels, scale(features))
    return {"linear_acc1": float(np.mean(predicted == queries["label"]))}


def standardiser(train):
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


def sgd(train, labels, features):
    """-> predicted labels, as logistic_regression. A step takes BATCH images, in a new order every
    epoch; what is left over at its end waits for another one."""
    size = min(BATCH, len(train))
    steps = len(train) // size
    peak = LR * size / 256

    def rate(step):  # a step down half a cosine after every epoch
        return peak * (1 + jnp.cos(jnp.pi * (step // steps) / EPOCHS)) / 2

    tx = optax.sgd(rate, momentum=MOMENTUM)

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

    first, *keys = jax.random.split(jax.random.key(0), 1 + EPOCHS)
    kernel = STD * jax.random.normal(first, (train.shape[1], labels.max() + 1))
    params = {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}
    state = (params, tx.init(params))
    train, labels = jax.device_put(train), jax.device_put(labels)
    for key in keys:
        state = epoch(state, key, train, labels)
    params = jax.device_get(state[0])
    return (features @ params["kernel"] + params["bias"]).argmax(1)
