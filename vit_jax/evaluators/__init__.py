"""FAMILY: parameters to metrics. A member has one of two functions.

`make(model, config, split, mesh) -> evaluate`, with evaluate(params) -> {"acc1": 0.98, ...}, scores
outputs batch by batch; split is a key of config.data: train, val or test.
`read_out(bank, queries, **keys) -> {...}` learns classes from frozen features: those of the
training split, and of the split to score, each {"pooled" [n, d], "label" [n]}; keys: the member's.

The keys and checks of a member stand beside it in `MEMBER_keys.py`, its keys in the group of its
name. Importing this package imports no JAX.
"""

from vit_jax.schema import lazy

__getattr__ = lazy("vit_jax.evaluators._evaluate", "features", "make", "read_split")
