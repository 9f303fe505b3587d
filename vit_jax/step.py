"""The training step: loss, gradients, optimizer update, and the update of the objective."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

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

    A step whose loss or gradients are not finite advances `step` and `bad`, and changes nothing
    else. Values of an update that are not finite are left out (on CPU, the whole update), and the
    step counts as bad. A finite state therefore remains finite. The decision is made on the device.

    Args:
      objective: `objectives.Objective`.
      tx: optax.GradientTransformation.
      accum_steps: number of micro-batches per step (gradient accumulation).

    Returns:
      train_step(state, batch, rng, constants=None) -> (state, metrics). `batch` is a dict of arrays
      [b, ...]; `constants` is a dict of trees that the loss gets in the batch, such as a frozen
      teacher, which are neither trained nor saved; `metrics` is a dict of scalars: "loss",
      "grad_norm", "update_norm" and those of the objective.
    """
    value_and_grad = jax.value_and_grad(objective.loss, has_aux=True)

    def compute(weights, constants, batch, rng, step):
        return value_and_grad(*weights, {**batch, **constants}, rng, step)

    def accumulate(weights, constants, batch, rng, step):
        parts = split_batch(batch, accum_steps)
        return _mean_over(lambda part: compute(weights, constants, part, rng, step), parts)

    def train_step(state, batch, rng, constants=None):
        rng = jax.random.fold_in(rng, state.step)
        size = jax.tree.leaves(batch)[0].shape[0]
        batch = {**batch, "row": jnp.arange(size)}

        function = compute if accum_steps == 1 else accumulate
        if accum_steps > 1 and not objective.batch_norm and _can_pair_rows(size, accum_steps):
            function = _per_device(accumulate)
        weights = (state.params, state.extra)
        (loss, aux), grads = function(weights, constants or {}, batch, rng, state.step)
        grad_norm = optax.tree.norm(grads)
        # `extra` may depend on the carried means even where the loss does not.
        ok = jnp.isfinite(jnp.stack([loss, grad_norm, *_sums(aux["carry"])])).all()
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        (params, extra, opt_state), update_norm = jax.lax.platform_dependent(
            ok,
            state,
            updates,
            opt_state,
            aux,
            cpu=functools.partial(_apply_on_cpu, objective),
            default=functools.partial(_apply, objective),
        )
        ok &= jnp.isfinite(update_norm)
        number = state.step + 1
        metrics = {"loss": loss, "grad_norm": grad_norm, "update_norm": update_norm}
        metrics |= objective.metrics(aux)
        state = TrainState(number, params, extra, opt_state, _count(state.bad, ok, number))
        return state, metrics

    return train_step


def _apply(objective, ok, state, updates, opt_state, aux):
    """Apply the updates if `ok`, except for values that are not finite.

    Args:
      objective: `objectives.Objective`.
      ok: whether loss and gradients are finite.
      state: the `TrainState` before the step.
      updates: from optax.
      opt_state: from optax.
      aux: from the loss.

    Returns:
      The parameters, `extra` and `opt_state` after the step; and the norm of the updates.
    """
    params = jax.tree.map(
        lambda new, old, u: jnp.where(ok & jnp.isfinite(u), new, old),
        optax.apply_updates(state.params, updates),
        state.params,
        updates,
    )
    extra = objective.update(state.extra, params, aux, state.step)
    new = _select(ok, (extra, opt_state), (state.extra, state.opt_state))
    # Without `ok`, XLA would sum this norm together with that of the gradients, and read the
    # parameters and moments twice: 10.0 instead of 6.8 values per parameter on TPU.
    applied = jax.tree.map(lambda u: jnp.where(ok, u, 0), updates)
    return (params, *new), optax.tree.norm(applied)


def _apply_on_cpu(objective, ok, state, updates, opt_state, aux):
    """Apply the updates if `ok` and all of them are finite, with the rounding of recorded runs."""
    params = optax.apply_updates(state.params, updates)
    extra = objective.update(state.extra, params, aux, state.step)
    norm = optax.tree.norm(updates)
    old = state.params, state.extra, state.opt_state
    return _select(ok & jnp.isfinite(norm), (params, extra, opt_state), old), norm


def _select(condition, new, old):
    """Return the tree `new` if the condition is True, otherwise `old`."""
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


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


def _mean_over(function, parts):
    """Return the mean of function(part) over the leading axis, computing one part at a time."""
    count = jax.tree.leaves(parts)[0].shape[0]
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / count, total)


def _can_pair_rows(size, parts):
    """Whether `_per_device` applies to batches of `size` rows that are split into `parts`.

    Parameters must not be sharded, and the rows of a part on a device must be even in number.
    """
    shape = sharding.mesh_shape()
    devices = shape.get("data", 1)
    return 1 < devices == math.prod(shape.values()) and size // (devices * parts) % 2 == 0


def _per_device(function):
    """Apply function(weights, constants, batch, rng, step) to the rows of each device, and average.

    XLA would all-reduce the gradients of every micro-batch, and those of scanned blocks layer by
    layer; here, their sum is all-reduced once.
    """

    def apply(weights, constants, batch, rng, step):
        return jax.lax.pmean(function(weights, constants, _pair_rows(batch), rng, step), "data")

    everywhere, rows = PartitionSpec(), PartitionSpec("data")
    in_specs = (everywhere, everywhere, rows, everywhere, everywhere)
    # With check_vma, the gradient of an array that is equal on all devices is all-reduced.
    return jax.shard_map(apply, in_specs=in_specs, out_specs=everywhere, check_vma=False)


def _pair_rows(batch):
    """Exchange rows between devices, such that rows r and b - 1 - r are on the same device.

    They are at positions j and k - 1 - j of its k rows, so that `split_batch` keeps them together.
    """

    def exchange(x):
        n = jax.lax.axis_size("data")
        half = x.shape[0] // 2
        mirrored = [(i, n - 1 - i) for i in range(n)]
        return jnp.concatenate([x[:half], jax.lax.ppermute(x[half:], "data", mirrored)])

    return jax.tree.map(exchange, batch)
