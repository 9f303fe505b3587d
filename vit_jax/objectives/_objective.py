"""The interface of an objective, and wrappers for any objective."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax import schema
from vit_jax.optim import stop_gradients


class Objective(NamedTuple):
    """An objective as pure functions, and its metadata.

    `extra` is state that is not trained by gradient descent, such as a teacher, a moving average or
    running statistics. `aux` is {"metrics": scalars, "carry": means over the batch for `update` and
    `metrics`}; with gradient accumulation, the mean over the micro-batches.

    Attributes:
      init: rng -> params, extra.
      loss: params, extra, batch, rng, step -> loss, aux.
      update: extra, params after the optimizer step, aux, step -> extra.
      weights: params, extra -> the weights for evaluation, prediction and export.
      views: batch, rng -> {name: images [b, v, h, w, c]}, the augmented and normalized input of the
        model.
      flops: () -> FLOPs of a training step per image.
      raw: params, extra -> the trained weights without averaging, for --raw.
      metrics: aux -> {name: scalar to log}.
      alarm: metrics of a step, {name: float} -> a warning, or None.
      health: metrics to monitor during training, {name: label in the figure}.
      batch_norm: whether the loss of an image depends on statistics of the batch.
      drawing: name of the function in `figures.diagrams` that draws the objective from the config
        of the model and that of the run; "": none.
    """

    init: Callable
    loss: Callable
    update: Callable
    weights: Callable
    views: Callable
    flops: Callable
    raw: Callable = lambda params, _: params
    metrics: Callable = lambda aux: aux["metrics"]
    alarm: Callable = lambda _: None
    health: dict = {}
    batch_norm: bool = False
    drawing: str = ""


def make(model, config, steps_per_epoch):
    """Create the objective `config.objective.name`.

    Args:
      model: a `models.Model`.
      config: the config of the run.
      steps_per_epoch: optimizer steps per pass over the training split; may be fractional.

    Returns:
      An `Objective`.
    """
    module = schema.member("objectives", config.objective.name)
    objective = module.make(model, config, steps_per_epoch)
    trainable = config.optim.trainable
    if not trainable:
        return objective
    return objective._replace(
        loss=lambda params, *rest: objective.loss(stop_gradients(params, trainable), *rest)
    )


def with_ema(objective, decay):
    """Track an exponential moving average (EMA) of the weights, and evaluate with it.

    After every optimizer step, ema = decay * ema + (1 - decay) * weights. The average is
    initialized with the initial weights and includes running statistics, as timm's ModelEma.

    Args:
      objective: the `Objective` to wrap.
      decay: decay of the average.

    Returns:
      An `Objective`.
    """

    def init(rng):
        params, extra = objective.init(rng)
        # Copied, because the leaves of a donated state must not share buffers.
        ema = jax.tree.map(jnp.copy, objective.raw(params, extra))
        return params, {"ema": ema, "inner": extra}

    def loss(params, extra, *args):
        return objective.loss(params, extra["inner"], *args)

    def update(extra, params, aux, step):
        inner = objective.update(extra["inner"], params, aux, step)
        weights = objective.raw(params, inner)
        ema = jax.tree.map(lambda e, w: e * decay + w * (1 - decay), extra["ema"], weights)
        return {"ema": ema, "inner": inner}

    return objective._replace(
        init=init,
        loss=loss,
        update=update,
        weights=lambda _, extra: extra["ema"],
        raw=lambda params, extra: objective.raw(params, extra["inner"]),
    )
