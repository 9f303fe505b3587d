"""The contract of an objective, and what any objective may be wrapped in."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax import schema
from vit_jax.optim import stop_gradients


class Objective(NamedTuple):
    """An objective as pure functions, in the order in which training calls them, and its metadata.

    extra is state that is not trained by gradients: a teacher, a moving average, statistics.
    aux is {"metrics": scalars to log, "carry": means over the batch that `update` needs}.
    """

    init: Callable  # rng -> params, extra
    loss: Callable  # params, extra, batch, rng, step -> loss, aux
    update: Callable  # extra, params (after the optimizer), aux, step -> extra
    weights: Callable  # params, extra -> the params that evaluators, predict and features use
    views: Callable  # batch, rng -> {name: normalized [b, v, h, w, c]}, what the model is given
    flops: Callable  # () -> FLOPs of a training step per image
    raw: Callable = lambda params, _: params  # the trained parameters, for --raw
    alarm: Callable = lambda _: None  # a step's metrics, floats -> a warning or None
    health: dict = {}  # metrics that show whether training is healthy -> their labels in a figure
    drawing: str = ""  # function of figures.diagrams(model's config, config) that draws it


def make(model, config, steps_per_epoch):
    """The objective config.objective.name. steps_per_epoch, which may be fractional, converts
    durations in epochs to steps."""
    module = schema.member("objectives", config.objective.name)
    objective, only = module.make(model, config, steps_per_epoch), config.optim.only
    if not only:
        return objective
    return objective._replace(
        loss=lambda params, *rest: objective.loss(stop_gradients(params, only), *rest)
    )


def with_ema(objective, decay):
    """Keep the exponential moving average of the weights and use it wherever weights are used.

    average <- decay * average + (1 - decay) * weights after every optimizer step, from the initial
    weights on, running statistics among them (as timm's ModelEma).
    """

    def init(rng):
        params, extra = objective.init(rng)
        # Copies: the state is donated, so no two of its leaves may share a buffer.
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
