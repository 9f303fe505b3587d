"""The training step: loss, gradients, optimizer update, and the update of the objective."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax.devices import sharding


class TrainState(NamedTuple):
    """The training state, a pytree of dicts and arrays."""

    step: jax.Array  # number of completed optimizer steps, int32
    params: Any
    extra: Any  # state of the objective that is not trained by gradients, such as an EMA
    opt_state: Any
    bad: "BadSteps"  # training steps that were skipped


class BadSteps(NamedTuple):
    """Counts of the training steps whose loss, gradients or updates were not finite, int32."""

    total: jax.Array  # of the whole run
    in_a_row: jax.Array  # at the end of the latest steps; 0 after a good step
    first: jax.Array  # number of the first step of the latest row, counted from 1; 0: none


def init_state(objective, tx, rng):
    """Return the TrainState of step 0 for an `Objective` and an optax transformation."""
    params, extra = objective.init(rng)
    zeros = (jnp.zeros((), jnp.int32) for _ in range(4))  # a donated state has no shared buffers
    return TrainState(next(zeros), params, extra, tx.init(params), BadSteps(*zeros))


def make_train_step(objective, tx, accum_steps=1):
    """Create the training step, to be jitted with the state donated.

    The key `rng` is an argument, so that it is neither saved nor compiled into the program. The
    step index is folded into it, and the objective folds in the row of each image in the batch, so
    that a resumed run draws the same random numbers as an uninterrupted one.

    With gradient accumulation, a step equals one with the whole batch up to rounding, except for
    batch norm (ResNets, `objective.head_bn`), which uses the statistics of each micro-batch, as in
    PyTorch.

    A step whose loss, gradients or updates are not finite advances `step` and `bad`, and changes
    nothing else. A finite state therefore remains finite. The decision is made on the device.

    Args:
      objective: `objectives.Objective`.
      tx: optax.GradientTransformation.
      accum_steps: number of micro-batches per step (gradient accumulation).

    Returns:
      train_step(state, batch, rng) -> (state, metrics). `batch` is a dict of arrays [b, ...];
      `metrics` is a dict of scalars: "loss", "grad_norm", "update_norm" and those of the objective.
    """
    value_and_grad = jax.value_and_grad(objective.loss, has_aux=True)

    def train_step(state, batch, rng):
        rng = jax.random.fold_in(rng, state.step)
        size = jax.tree.leaves(batch)[0].shape[0]
        batch = {**batch, "row": jnp.arange(size)}

        def compute(batch):
            return value_and_grad(state.params, state.extra, batch, rng, state.step)

        if accum_steps == 1:
            (loss, aux), grads = compute(batch)
        else:
            (loss, aux), grads = _mean_over(compute, split_batch(batch, accum_steps))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = objective.update(state.extra, params, aux, state.step)
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        # `extra` may depend on the carried means even where the loss does not.
        ok = jnp.isfinite(jnp.stack([loss, *norms.values(), *_sums(aux["carry"])])).all()
        number = state.step + 1
        new = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (params, extra, opt_state),
            (state.params, state.extra, state.opt_state),
        )
        metrics = {"loss": loss, **norms, **objective.metrics(aux)}
        return TrainState(number, *new, _count(state.bad, ok, number)), metrics

    return train_step


def _count(bad, ok, number):
    """Return the `BadSteps` after step `number`."""
    begins = ~ok & (bad.in_a_row == 0)
    return BadSteps(
        total=bad.total + ~ok,
        in_a_row=jnp.where(ok, 0, bad.in_a_row + 1),
        first=jnp.where(begins, number, bad.first),
    )


def _sums(tree):
    """Return the sums of the floating-point leaves of a tree; not finite if a leaf is not."""
    leaves = (x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating))
    return [x.sum(dtype=jnp.float32) for x in leaves]


def split_batch(batch, parts):
    """Split every leaf [b, ...] into [parts, b / parts, ...].

    If b / parts is even, rows r and b - 1 - r, which mixup and CutMix mix, are at positions j and
    b / parts - 1 - j of the same part. Every part is sharded over the devices as the batch is,
    without communication.
    """

    def split(x):
        x = x.reshape(-1, parts, *x.shape[1:])  # part i has rows i, i + parts, ...
        half = jnp.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) >= (len(x) + 1) // 2
        return jnp.where(half, x[:, ::-1], x).swapaxes(0, 1)

    return jax.tree.map(split, batch)


class _Layers(NamedTuple):
    """The layers of a stacked array, as separate arrays [1, ...]."""

    arrays: tuple


def _split_layers(path, x):
    """Split an array of stacked blocks [l, ...] into `_Layers`; return others unchanged."""
    return _Layers(tuple(jax.lax.split(x, [1] * len(x)))) if sharding.is_stacked(path) else x


def _join_layers(x):
    """Undo `_split_layers`."""
    return jnp.concatenate(x.arrays) if isinstance(x, _Layers) else x


def _mean_over(function, parts):
    """Return the mean of function(part) over the leading axis, computing one part at a time.

    On several devices, stacked blocks are summed layer by layer. XLA then recognizes that the
    all-reduced gradients are only summed, and all-reduces the sum once, after the loop.
    """
    count = jax.tree.leaves(parts)[0].shape[0]

    def compute(part):
        result = function(part)
        if sharding.num_batch_shards() == 1:
            return result
        return jax.tree_util.tree_map_with_path(_split_layers, result)

    shapes = jax.eval_shape(compute, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, compute(part)), None

    total, _ = jax.lax.scan(add, zeros, parts)
    mean = jax.tree.map(lambda x: x / count, total)
    return jax.tree.map(_join_layers, mean, is_leaf=lambda x: isinstance(x, _Layers))
