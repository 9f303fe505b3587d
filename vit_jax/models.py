"""Modules as pure functions over nested dicts of arrays, and the model of a run."""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from vit_jax import variants
from vit_jax.resnet import ResNet
from vit_jax.vit import ViT


class Model(NamedTuple):
    """A module as pure functions.

    Weights are the trainable parameters and the running statistics of batch norms, in one nested
    dict.
    """

    init: Callable  # key -> params
    stats: Callable  # -> the initial running statistics; {} without batch norms
    bind: Callable  # weights -> the module with them, to be called
    module: nnx.Module  # with shapes in place of weights

    def apply(self, weights, images, **options):
        return self.bind(weights)(images, **options)


def pure(make):
    """make(rngs) -> nnx.Module, as a Model. Allocates nothing."""
    module = nnx.eval_shape(lambda: make(nnx.Rngs(params=0)))
    graph = nnx.split(module)[0]

    def init(rng):
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=rng)), nnx.Param))

    def stats():
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=0)), nnx.BatchStat))

    return Model(init, stats, lambda weights: nnx.merge(graph, weights), module)


def build(config):
    """The Model of a `ViTConfig` or a `ResNetConfig`."""
    cls = ResNet if isinstance(config, variants.ResNetConfig) else ViT
    return pure(lambda rngs: cls(config, rngs=rngs))


def merge_trees(a, b):
    """Two nested dicts as one; where both have a leaf, it is that of b."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return b
    return a | {key: merge_trees(a[key], b[key]) if key in a else b[key] for key in b}


def split(module):
    """A module with its weights -> (Model, weights)."""
    graph, state = nnx.split(module)
    model = Model(None, None, lambda weights: nnx.merge(graph, weights), module)
    return model, nnx.to_pure_dict(state)
