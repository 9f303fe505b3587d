"""FAMILY: parameters -> numbers. A member has `make(model, config, split, mesh) -> evaluate`.

evaluate(params) -> {"acc1": 0.98, ...}; split is a key of config.data: train, val or test.
"""

from importlib import import_module


def make(name, model, config, split, mesh):
    return import_module(f"vit_jax.evaluators.{name}").make(model, config, split, mesh)
