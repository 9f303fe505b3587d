"""Config -> optax: schedule, weight decay, layer-wise learning rates, clipping.

What a reference does for each tensor is done for each block, although the blocks' tensors are
stacked: leaves below `blocks` hold one tensor a layer along axis 0. What a leaf is follows from
its path, since a stacked bias has as many axes as a kernel elsewhere.
"""

import jax
import numpy as np
import optax
from jax import numpy as jnp

from vit_jax.config import steps
from vit_jax.errors import UserError
from vit_jax.schedules import by_epoch, cosine_schedule

# Names that do not decay, beside biases and vectors (norm scales, LayerScale gammas). timm:
# `no_weight_decay` of its ViTs. deit: DeiT's of 2020 forgot dist_token, which therefore decays.
# dino: `get_params_groups` of facebookresearch/dino has no names.
UNDECAYED = {
    "timm": {"pos_embed", "cls_token", "dist_token", "reg_token"},
    "deit": {"pos_embed", "cls_token", "reg_token"},
    "dino": set(),
}

EMBEDDINGS = {"cls_token", "pos_embed", "patch_embed"}  # layer 0 of layer-wise decay


def make(config, steps_per_epoch):
    """-> optax.GradientTransformation, schedule(step) -> learning rate.

    config: the whole config. steps_per_epoch: optimizer steps a pass over the training split
    takes; may be fractional. The update of step t, counted from 0, uses schedule(t). A run that is
    shortened to less than its warm-up ends on the way up.

    AdamW is torch's: decay is decoupled, p -= lr * decay * p. SGD by `decay_by="lr"` is torch's
    too: decay is coupled, it joins the gradient before the momentum. `decay_by="schedule"` is
    big_vision's for both: p -= schedule / peak * decay * p, whatever the peak is.
    Raises UserError.
    """
    c = config.optim
    total = steps(config.total_steps, steps_per_epoch)
    peak = c.lr * config.batch_size / c.lr_batch if c.lr_batch else c.lr
    if not peak and c.decay_by == "schedule":
        raise UserError("config.optim.lr = 0 leaves config.optim.decay_by = 'schedule' undefined")
    schedule = cosine_schedule(
        peak,
        total,
        warmup=steps(c.warmup, steps_per_epoch),
        warmup_start=c.warmup_start,
        end=c.end,
        warmup_prefix=c.warmup_prefix,
        warmup_reaches=c.warmup_reaches,
    )
    if c.schedule_by == "epoch":
        schedule = by_epoch(schedule, steps_per_epoch)
    unit = 1 / peak if c.decay_by == "schedule" else 1
    weight_decay = c.weight_decay * unit
    if c.weight_decay_end is not None:
        weight_decay = cosine_schedule(weight_decay, total, end=c.weight_decay_end * unit)
    freeze_for = steps(c.freeze_for, steps_per_epoch)
    moments = optax.trace(c.momentum)
    if c.name == "adamw":
        moments = optax.scale_by_adam(c.b1, c.b2, c.eps)
    rule = [freeze_moments(moments, c.freeze, freeze_for)]
    coupled = c.name == "sgd" and c.decay_by == "lr"
    rule.insert(0 if coupled else 1, add_decay(weight_decay, c.decay_rule))
    if c.clip:
        clip = {"global": optax.clip_by_global_norm, "tensor": clip_by_tensor_norm}[c.clip_by]
        rule.insert(0, clip(c.clip))
    if c.layer_decay != 1:
        rule.append(scale_by_layer(c.layer_decay))
    rule += [optax.scale_by_learning_rate(schedule), freeze(c.freeze, freeze_for)]
    if c.only:
        rule.append(optax.masked(optax.set_to_zero(), _mask("only", c.only, inside=False)))
    return optax.chain(*rule), schedule


def stop_gradients(params, only):
    """Stop gradients to all parameters but those below the path `only`, so that their part of the
    backward pass is not computed."""
    held = _mask("only", only, inside=False)(params)
    return jax.tree.map(lambda h, p: jax.lax.stop_gradient(p) if h else p, held, params)


def decay_mask(params, rule):
    """Which parameters decay. -> the same tree, of bool

    rule: "timm", "deit" (timm 0.3.2), "dino": see UNDECAYED; "kernel" (big_vision): what is
    called kernel; "all". Raises UserError for another one.
    """
    if rule not in (*UNDECAYED, "kernel", "all"):
        raise UserError(
            f"'{rule}' is not a decay rule; pass one of {', '.join(UNDECAYED)}, kernel, all"
        )

    def decays(path, leaf):
        names = _names(path)
        if rule in ("kernel", "all"):
            return rule == "all" or names[-1] == "kernel"
        vector = np.ndim(leaf) - _stacked(path) <= 1
        return not (vector or names[-1] == "bias" or names[-1] in UNDECAYED[rule])

    return jax.tree_util.tree_map_with_path(decays, params)


def layer_scales(params, decay):
    """Factors of the learning rate (BEiT, arXiv:2106.08254; `lr_decay.py` of MAE).

    decay ** (depth + 1 - layer), where the embeddings of a model are layer 0, its block i is layer
    i + 1, and everything else is layer depth + 1: what comes after the blocks, and what is not part
    of the model, such as a projection head, or a decoder with blocks of its own.

    Args:
      params: nested dict. A model is where `patch_embed` and `blocks` are side by side.
      decay: factor from a layer to the previous one.

    Returns:
      The same tree, of float or, for leaves of stacked blocks, array [l, 1, ...].

    Raises:
      UserError: if there is no model with blocks.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    embedded = {_above(path, "patch_embed") for path, _ in leaves}
    depths = {_above(path, "blocks"): leaf.shape[0] for path, leaf in leaves if _stacked(path)}
    depths = {root: depth for root, depth in depths.items() if root in embedded}
    if not depths:
        raise UserError("config.optim.layer_decay needs a model with blocks; set it to 1")

    def scale(path, leaf):
        names = tuple(_names(path))
        for root, depth in depths.items():
            if names[: len(root)] != root:
                continue
            part = names[len(root)]
            if part == "blocks":
                return decay ** np.arange(depth, 0.0, -1).reshape(-1, *[1] * (leaf.ndim - 1))
            if part in EMBEDDINGS:
                return decay ** (depth + 1.0)
        return 1.0

    return jax.tree_util.tree_map_with_path(scale, params)


def add_decay(weight, rule):
    """optax: updates + weight * params, where `decay_mask(params, rule)`.

    weight: a number, or a function of the step.
    """

    def add(updates, params, weight):
        mask = decay_mask(params, rule)
        return jax.tree.map(lambda u, p, m: u + weight * p if m else u, updates, params, mask)

    if not callable(weight):
        return optax.stateless(lambda updates, params: add(updates, params, weight))

    def update(updates, state, params):
        updates = add(updates, params, weight(state.count))
        return updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(
        lambda _: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
    )


def freeze_moments(inner, what, steps):
    """optax: `inner`, whose moments and step count stand still in the first `steps` steps for the
    parameters below the path `what`, such as "head/last_layer"."""
    if not steps:
        return inner

    frozen = optax.masked(inner, _mask("freeze", what))
    return optax.chain(
        optax.masked(inner, _mask("freeze", what, inside=False)),
        optax.conditionally_transform(frozen, lambda step: step >= steps),
    )


def freeze(what, steps):
    """optax: no update in the first `steps` steps for the parameters below the path `what`."""
    if not steps:
        return optax.identity()
    zero = optax.masked(optax.set_to_zero(), _mask("freeze", what))
    return optax.conditionally_transform(zero, lambda step: step < steps)


def _mask(key, what, inside=True):
    """A function of params -> a tree of bool: whether each is below the path `what`, or, unless
    `inside`, whether it is not. It raises UserError if no parameter is: config.optim.KEY is wrong.
    """

    def mask(params):
        below = jax.tree_util.tree_map_with_path(
            lambda path, _: f"{'/'.join(_names(path))}/".startswith(f"{what}/"), params
        )
        if not any(jax.tree.leaves(below)):
            raise UserError(f"config.optim.{key} = '{what}' is the path of no parameter")
        return jax.tree.map(lambda x: x == inside, below)

    return mask


def scale_by_layer(decay):
    """optax: updates * `layer_scales(params, decay)`."""

    def update(updates, _):
        scales = layer_scales(updates, decay)
        return jax.tree.map(lambda u, s: u * jnp.asarray(s, u.dtype), updates, scales)

    return optax.stateless(update)


def clip_by_tensor_norm(most):
    """optax: each tensor by itself, and each block's, to a norm of at most `most`.

    `clip_gradients` of facebookresearch/dino, utils.py: times most / (norm + 1e-6) if below 1.
    """

    def clip(path, u):
        axes = tuple(range(_stacked(path), u.ndim))
        norm = jnp.sqrt(jnp.sum(jnp.square(u), axes, keepdims=True))
        return u * jnp.minimum(most / (norm + 1e-6), 1)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(clip, updates))


def _names(path):
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def _stacked(path):
    """Whether axis 0 of the leaf counts layers: below `blocks`, unless these are a list."""
    names = _names(path)
    return "blocks" in names[:-1] and not names[names.index("blocks") + 1].isdigit()


def _above(path, name):
    """The names above `name` in a path; None where it is not in it."""
    names = _names(path)
    return tuple(names[: names.index(name)]) if name in names else None
