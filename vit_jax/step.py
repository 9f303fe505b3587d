"""One training step: loss, gradients, optimizer update, and the objective's update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
    """The state of training: one pytree of dicts and arrays."""

    step: jax.Array  # optimizer steps done
    params: Any
    extra: Any
    opt_state: Any


def init_state(objective, tx, rng):
    params, extra = objective.init(rng)
    return TrainState(jnp.zeros((), jnp.int32), params, extra, tx.init(params))


def make_train_step(objective, tx, accum_steps=1):
    """-> train_step(state, batch, rng) -> (state, metrics), to be jitted with the state donated.

    The rng is an argument and not part of the state: it is neither saved nor compiled in. Every
    step folds in its number and every image its row in the batch, so that a resumed run draws the
    same numbers as an uninterrupted one.
    """
    gradient = jax.value_and_grad(objective.loss, has_aux=True)

    def train_step(state, batch, rng):
        rng = jax.random.fold_in(rng, state.step)
        size = jax.tree.leaves(batch)[0].shape[0]
        batch = {**batch, "row": jnp.arange(size)}

        def compute(batch):
            return gradient(state.params, state.extra, batch, rng, state.step)

        if accum_steps == 1:
            (loss, aux), grads = compute(batch)
        else:
            (loss, aux), grads = _mean_over(compute, split_batch(batch, accum_steps))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = objective.update(state.extra, params, aux, state.step)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **aux["metrics"]}
        return TrainState(state.step + 1, params, extra, opt_state), metrics

    return train_step


def split_batch(batch, parts):
    """Leaves [b, ...] -> [parts, b / parts, ...]; part i has rows i, i + parts, ...: each part is
    spread over the devices as the batch is, and nothing moves."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _mean_over(function, parts):
    """The mean of function(part) over the leading axis, one part in memory at a time."""
    count = jax.tree.leaves(parts)[0].shape[0]
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / count, total)
