"""FAMILY: training objectives.

A member NAME.py defines `make(model, config, steps_per_epoch) -> Objective`. Its config keys and
checks are in NAME_keys.py. Importing this package imports no JAX.
"""

from vit_jax.schema import lazy

__getattr__ = lazy("vit_jax.objectives._objective", "Objective", "make", "with_ema")
