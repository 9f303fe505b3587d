"""Flax NNX modules as pure functions over nested dicts of arrays."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx

from vit_jax import variants
from vit_jax.layers import attention, kernels
from vit_jax.resnet import ResNet
from vit_jax.vit import ViT


class Model(NamedTuple):
    """A module as pure functions.

    `weights` is one nested dict of the trainable parameters and the BatchNorm running statistics.
    """

    init: Callable  # key -> params
    stats: Callable  # () -> initial running statistics; {} without BatchNorm
    bind: Callable  # weights -> callable module with these weights
    module: nnx.Module  # abstract: shapes in place of weights

    def apply(self, weights, images, **options):
        """Call the module with these weights; **options are those of its `__call__`."""
        return self.bind(weights)(images, **options)


def pure(make):
    """Convert make(rngs) -> nnx.Module to a `Model`, without allocating its weights."""
    module = nnx.eval_shape(lambda: make(nnx.Rngs(params=0)))
    graph = nnx.split(module)[0]

    def init(rng):
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=rng)), nnx.Param))

    def stats():
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=0)), nnx.BatchStat))

    return Model(init, stats, lambda weights: nnx.merge(graph, weights), module)


def build(config):
    """Return the `Model` of a `ViTConfig` or a `ResNetConfig`."""
    cls = ResNet if isinstance(config, variants.ResNetConfig) else ViT
    return pure(lambda rngs: cls(config, rngs=rngs))


def prove_attention(config, platform):
    """Replace attn="auto" by a kernel that agrees with "matmul" on the attached devices.

    Args:
      config: a `ViTConfig` or `ResNetConfig`.
      platform: that of the devices, which are not attached in ahead-of-time compilation.

    Returns:
      The config, and a line of text about the kernel; None: there was nothing to prove, as on CPU.
    """
    if getattr(config, "attn", None) != "auto" or platform != jax.default_backend():
        return config, None
    kernel, text = attention.prove(kernels.resolve_auto(platform, config)["attn"], config)
    return dataclasses.replace(config, attn=kernel), text


def merge_trees(a, b):
    """Merge two nested dicts. Leaves of b take precedence."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return b
    return a | {key: merge_trees(a[key], b[key]) if key in a else b[key] for key in b}


def split(module):
    """Split a module with weights into (Model, weights). The Model cannot initialize weights."""
    graph, state = nnx.split(module)
    model = Model(None, None, lambda weights: nnx.merge(graph, weights), module)
    return model, nnx.to_pure_dict(state)
