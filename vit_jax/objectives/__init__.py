"""FAMILY: what is minimized. A member has `make(model, config, steps_per_epoch) -> Objective`.

Its keys and checks stand beside it in `MEMBER_keys.py`. Importing this package imports no JAX.
"""

from vit_jax.schema import lazy

__getattr__ = lazy("vit_jax.objectives._objective", "Objective", "make", "with_ema")
