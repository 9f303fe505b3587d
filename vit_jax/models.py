"""Modules as pure functions over nested dicts of arrays, and the model that a config asks for."""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from vit_jax import variants
from vit_jax.resnet import ResNet
from vit_jax.vit import ViT, arguments


class Model(NamedTuple):
    """A module as pure functions.

    Weights are what a model computes with: the parameters, which are trained, and where it has
    batch norms their running statistics, at other paths of the same nested dict.
    """

    init: Callable  # key -> params
    stats: Callable  # -> the statistics before training; {} where there are none
    bind: Callable  # weights -> the module with them, to be called
    module: nnx.Module  # with shapes in the place of weights

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


def union(a, b):
    """Two nested dicts as one; where both have a leaf, it is that of b."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return b
    return a | {key: union(a[key], b[key]) if key in a else b[key] for key in b}


def build(classes, *, variant, num_classes=None, **options):
    """The model of a config: build(1000, **config.model). What is None is as the variant says.

    classes: of the data; num_classes, if it is not None, overrides it, 0 for no classifier.
    """
    num_classes = classes if num_classes is None else num_classes
    sizes = variants.of_config(variant, **options)
    if variants.is_cnn(variant):
        sizes.pop("image")  # any size will do
        return pure(lambda rngs: ResNet(num_classes=num_classes, **sizes, rngs=rngs))
    sizes = arguments(sizes)
    return pure(lambda rngs: ViT(num_classes=num_classes, **sizes, rngs=rngs))


def split(module):
    """A module with its weights -> (Model, weights)."""
    graph, state = nnx.split(module)
    model = Model(None, None, lambda weights: nnx.merge(graph, weights), module)
    return model, nnx.to_pure_dict(state)


def functional(module):
    """A module with its weights as (apply, weights); apply(weights, images, **options)."""
    model, weights = split(module)
    return model.apply, weights
