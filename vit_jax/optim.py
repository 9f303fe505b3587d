"""Optimizers: gradient clipping, weight decay, layer-wise learning rates and freezing, with optax.

Leaves below `blocks` are stacked, with one tensor per layer along axis 0. Operations that reference
implementations apply per tensor are applied per layer, see `per_block`. Leaves are identified by
path, because a stacked bias has as many axes as an unstacked kernel.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax import numpy as jnp

from vit_jax.config import steps
from vit_jax.devices.sharding import is_stacked
from vit_jax.errors import UserError
from vit_jax.schedules import by_epoch, cosine_schedule

# Parameters without weight decay, in addition to biases and vectors (norm scales, LayerScale
# gammas). timm: `no_weight_decay` of its ViTs. deit: that of DeiT (2020), which omits dist_token.
# dino: `get_params_groups` of facebookresearch/dino excludes no names.
UNDECAYED = {
    "timm": {"pos_embed", "cls_token", "dist_token", "reg_token", "freqs"},
    "deit": {"pos_embed", "cls_token", "reg_token", "freqs"},
    "dino": set(),
}

# Layer 0 of layer-wise learning rate decay.
EMBEDDINGS = {"cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed", "norm_pre"}


# The first and last layers, which Muon leaves to AdamW (README of KellerJordan/Muon).
OUTER_LAYERS = {"patch_embed", "stem", "head", "head_dist"}

MASKED = optax.MaskedNode()


class Optimizer(NamedTuple):
    """An optimizer, as transformations of the gradients.

    Attributes:
      scale: config.optim -> optax.GradientTransformation from the gradients to the update.
      coupled: whether weight decay is added to the gradients rather than to the update.
      rescale: config.optim -> optax.GradientTransformation of the update with weight decay; None:
        it is not changed.
    """

    scale: Callable
    coupled: bool = False
    rescale: Callable | None = None


def adam(c):
    """Adam (arXiv:1412.6980)."""
    return optax.scale_by_adam(c.b1, c.b2, c.eps)


def sgd(c):
    """SGD with momentum, as in PyTorch."""
    return optax.trace(c.momentum)


def lion(c):
    """Lion (arXiv:2302.06675)."""
    return optax.scale_by_lion(c.b1, c.b2)


def muon(c):
    """Muon for the matrices of `muon_dimensions`, and AdamW with Nesterov momentum for the rest."""
    descent = optax.contrib.muon(
        1.0,
        beta=c.momentum,
        eps=c.eps,
        adam_b1=c.b1,
        adam_b2=c.b2,
        muon_weight_dimension_numbers=muon_dimensions,
    )
    return optax.chain(descent, optax.scale(-1))  # updates are subtracted, as those of the others


def scale_by_trust_ratio(c):
    """LAMB's layer-wise scale, norm(p) / norm(update) (arXiv:1904.00962, algorithm 2).

    As in FusedLAMB of NVIDIA's apex, it applies only to tensors with weight decay.
    """
    if not (c.weight_decay or c.weight_decay_end):
        return optax.identity()
    mask = functools.partial(decay_mask, rule=c.decay_rule)
    return optax.masked(per_block(optax.scale_by_trust_ratio()), mask)


OPTIMIZERS = {
    "adamw": Optimizer(adam),
    "sgd": Optimizer(sgd, coupled=True),
    "lamb": Optimizer(adam, rescale=scale_by_trust_ratio),
    "lion": Optimizer(lion),
    "muon": Optimizer(muon),
}


def make(config, steps_per_epoch):
    """Create the optimizer and the learning rate schedule of a run.

    With `decay_by="lr"`, weight decay is as in PyTorch: SGD is coupled, adding decay * p to the
    gradient before the momentum, and all others are decoupled, p -= lr * decay * p, in LAMB before
    the update is scaled. With `decay_by="schedule"`, weight decay is as in big_vision, independent
    of the peak learning rate: p -= lr / peak * decay * p.

    Args:
      config: the config of the run.
      steps_per_epoch: optimizer steps per epoch of the training split; may be fractional.

    Returns:
      An optax.GradientTransformation; and schedule(step), the learning rate. The update at step t,
      counted from 0, uses schedule(t). If `config.total_steps` is shorter than the warmup, training
      ends before the peak is reached.

    Raises:
      UserError: if the keys cannot be combined.
    """
    c = config.optim
    total = steps(config.total_steps, steps_per_epoch)
    peak = c.lr * config.batch_size / c.lr_batch if c.lr_batch else c.lr
    if not peak and c.decay_by == "schedule":
        raise UserError("config.optim.decay_by = 'schedule' needs config.optim.lr > 0")
    if c.name == "lamb" and c.decay_by == "schedule":
        raise UserError("config.optim.name = 'lamb' needs config.optim.decay_by = 'lr'")
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
    decay_scale = 1 / peak if c.decay_by == "schedule" else 1
    weight_decay = c.weight_decay * decay_scale
    if c.weight_decay_end is not None:
        weight_decay = cosine_schedule(weight_decay, total, end=c.weight_decay_end * decay_scale)
    freeze_for = steps(c.freeze_for, steps_per_epoch)
    optimizer = OPTIMIZERS[c.name]
    transforms = [freeze_moments(optimizer.scale(c), c.freeze, freeze_for)]
    coupled = optimizer.coupled and c.decay_by == "lr"
    transforms.insert(0 if coupled else 1, add_decay(weight_decay, c.decay_rule))
    if optimizer.rescale:
        transforms.append(optimizer.rescale(c))
    if c.clip:
        clip = {"global": optax.clip_by_global_norm, "tensor": clip_by_tensor_norm}[c.clip_by]
        transforms.insert(0, clip(c.clip))
    if c.layer_decay != 1:
        transforms.append(scale_by_layer(c.layer_decay))
    transforms += [optax.scale_by_learning_rate(schedule), freeze(c.freeze, freeze_for)]
    if c.trainable:
        transforms.append(
            optax.masked(optax.set_to_zero(), _mask("trainable", c.trainable, inside=False))
        )
    return optax.chain(*transforms), schedule


def stop_gradients(params, trainable):
    """Stop the gradients of all parameters that are not below the path `trainable`.

    Their part of the backward pass is then not computed.
    """
    frozen = _mask("trainable", trainable, inside=False)(params)
    return jax.tree.map(lambda f, p: jax.lax.stop_gradient(p) if f else p, frozen, params)


def decay_mask(params, rule):
    """Return which parameters have weight decay.

    Args:
      params: nested dict of arrays.
      rule: "timm", "deit" (timm 0.3.2) or "dino", see `UNDECAYED`; "kernel", only leaves named
        kernel, as in big_vision; or "all".

    Returns:
      A tree of bool with the structure of `params`.

    Raises:
      UserError: for an unknown rule.
    """
    if rule not in (*UNDECAYED, "kernel", "all"):
        raise UserError(
            f"unknown decay rule '{rule}'; pass one of {', '.join(UNDECAYED)}, kernel, all"
        )

    def decays(path, leaf):
        names = _names(path)
        if rule in ("kernel", "all"):
            return rule == "all" or names[-1] == "kernel"
        vector = np.ndim(leaf) - is_stacked(path) <= 1
        return not (vector or names[-1] == "bias" or names[-1] in UNDECAYED[rule])

    return jax.tree_util.tree_map_with_path(decays, params)


def layer_scales(params, decay):
    """Return the factors of layer-wise learning rate decay.

    As in BEiT (arXiv:2106.08254) and `lr_decay.py` of MAE, the factor is
    decay ** (depth + 1 - layer). The embeddings of a model are layer 0, its block i is layer i + 1,
    and all other parameters are layer depth + 1: those after the blocks, and those outside the
    model, such as a projection head or a decoder, even if it has blocks.

    Args:
      params: nested dict of arrays. A subtree with both `patch_embed` and `blocks` is a model.
      decay: ratio of the factors of a layer and the next one.

    Returns:
      A tree with the structure of `params` of floats or, for leaves of stacked blocks, arrays
      [l, 1, ...].

    Raises:
      UserError: if there is no model with blocks.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    embedded = {_above(path, "patch_embed") for path, _ in leaves}
    depths = {_above(path, "blocks"): leaf.shape[0] for path, leaf in leaves if is_stacked(path)}
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
    """Add weight * params to the updates where `decay_mask(params, rule)` is True.

    Args:
      weight: weight decay, a number or a function of the step.
      rule: see `decay_mask`.

    Returns:
      An optax.GradientTransformation.
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


def freeze_moments(inner, frozen_path, steps):
    """Apply `inner` without updating the moments and step count of frozen parameters.

    Args:
      inner: an optax.GradientTransformation.
      frozen_path: path of the frozen parameters, such as "head/last_layer".
      steps: number of steps for which they are frozen.

    Returns:
      An optax.GradientTransformation.
    """
    if not steps:
        return inner

    frozen = optax.masked(inner, _mask("freeze", frozen_path))
    return optax.chain(
        optax.masked(inner, _mask("freeze", frozen_path, inside=False)),
        optax.conditionally_transform(frozen, lambda step: step >= steps),
    )


def freeze(frozen_path, steps):
    """Zero the updates of the parameters below `frozen_path` in the first `steps` steps."""
    if not steps:
        return optax.identity()
    zero = optax.masked(optax.set_to_zero(), _mask("freeze", frozen_path))
    return optax.conditionally_transform(zero, lambda step: step < steps)


def _mask(key, parent, inside=True):
    """Return a function that maps params to a tree of bool, for `optax.masked`.

    Args:
      key: key of config.optim that holds `parent`, for the error message.
      parent: path in params, such as "head/last_layer".
      inside: whether to select the parameters below `parent`, or all others.

    Returns:
      The function. It raises UserError if no parameter is below `parent`.
    """

    def mask(params):
        below = jax.tree_util.tree_map_with_path(
            lambda path, _: f"{'/'.join(_names(path))}/".startswith(f"{parent}/"), params
        )
        if not any(jax.tree.leaves(below)):
            raise UserError(f"config.optim.{key} = '{parent}' matches no parameter")
        return jax.tree.map(lambda x: x == inside, below)

    return mask


def scale_by_layer(decay):
    """Scale the updates by `layer_scales(params, decay)`."""

    def update(updates, _):
        scales = layer_scales(updates, decay)
        return jax.tree.map(lambda u, s: u * jnp.asarray(s, u.dtype), updates, scales)

    return optax.stateless(update)


def clip_by_tensor_norm(max_norm):
    """Clip the norm of each tensor separately, and of each layer of stacked blocks.

    As in `clip_gradients` in utils.py of facebookresearch/dino, a tensor is multiplied by
    max_norm / (norm + 1e-6) if that is below 1.
    """

    def clip(u):
        norm = jnp.sqrt(jnp.sum(jnp.square(u)))
        return u * jnp.minimum(max_norm / (norm + 1e-6), 1)

    return per_block(optax.stateless(lambda updates, _: jax.tree.map(clip, updates)))


def per_block(inner):
    """Apply a transformation to each block separately, as if the blocks were not stacked.

    Args:
      inner: an optax.GradientTransformation. It is mapped over axis 0 of the leaves of each stack
        of blocks, and applied once to all other leaves.

    Returns:
      An optax.GradientTransformation. Its state is a tuple of the states of the other leaves and of
      each stack; the latter have a leading layer axis.
    """

    def init(params):
        return tuple(
            jax.vmap(inner.init)(part) if stacked else inner.init(part)
            for stacked, part in _stacks(params)
        )

    def update(updates, state, params=None):
        parts = _stacks(updates)
        params = [None] * len(parts) if params is None else [part for _, part in _stacks(params)]
        results = [
            (jax.vmap(inner.update) if stacked else inner.update)(part, *rest)
            for (stacked, part), *rest in zip(parts, state, params, strict=True)
        ]
        new, state = zip(*results, strict=True)
        return jax.tree.map(_first_unmasked, *new, is_leaf=_is_masked), state

    return optax.GradientTransformation(init, update)


def _stacks(tree):
    """Split a tree into the leaves that are not in stacked blocks, and each stack of blocks.

    Returns:
      A list of (whether it is a stack, a tree of the same structure with optax.MaskedNode in place
      of the leaves of the other parts).
    """

    def stack_of(path, _):
        return "/".join((*_above(path, "blocks"), "blocks")) if is_stacked(path) else ""

    stacks = jax.tree_util.tree_map_with_path(stack_of, tree)
    return [
        (bool(name), jax.tree.map(lambda x, s, n=name: x if s == n else MASKED, tree, stacks))
        for name in sorted(set(jax.tree.leaves(stacks)))
    ]


def _is_masked(x):
    return isinstance(x, optax.MaskedNode)


def _first_unmasked(*leaves):
    return next((x for x in leaves if not _is_masked(x)), MASKED)


def muon_dimensions(params):
    """Return which axes of the parameters are matrices for Muon.

    These are all kernels but those of `OUTER_LAYERS`. A kernel of a linear layer, [l, d, parts, k],
    is one matrix [d, k] per block and part: queries, keys and values are separate matrices, as are
    the two parts of SwiGLU. A kernel of a convolution, [h, w, c, k], is a matrix [h * w * c, k].

    Args:
      params: nested dict of arrays.

    Returns:
      A tree of optax.contrib.MuonDimensionNumbers or, for all other parameters, None.
    """

    def dimensions(path, leaf):
        names = _names(path)
        if names[-1] != "kernel" or OUTER_LAYERS & set(names):
            return None
        inputs = int(is_stacked(path))
        output = leaf.ndim - 1
        convolution = leaf.ndim - inputs == 4
        return optax.contrib.MuonDimensionNumbers(
            tuple(range(output)) if convolution else inputs, output
        )

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _names(path):
    """Return the names of a tree path as a list."""
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def _above(path, name):
    """Return the names above `name` in a tree path; None if the path does not contain it."""
    names = _names(path)
    return tuple(names[: names.index(name)]) if name in names else None
