"""Evaluators: compute metrics from parameters. Each evaluator is a module of this package.

An evaluator has one of two functions:

* `make(model, config, split, mesh) -> evaluate` computes metrics from the model's outputs, batch by
  batch. `split` is "train", "val" or "test", and `evaluate(params)` returns {"acc1": 0.98, ...}.
* `read_out(bank, queries, **keys) -> metrics` classifies frozen features. `bank` has the features
  of the training split, `queries` those of the split to evaluate, each as {"pooled" [n, d],
  "label" [n]}. `keys` are the config keys of the evaluator.

The module `NAME_keys.py` holds the config keys and checks of the evaluator NAME; the keys are in
the config group NAME. Importing this package does not import JAX.

`suites.py` and `suite_scores.py` are no evaluators: they evaluate classifiers on ImageNet-A,
ImageNet-R and other datasets than that of the config.
"""

from vit_jax.schema import lazy

NON_MEMBERS = ("suite_scores", "suites")

__getattr__ = lazy(
    "vit_jax.evaluators._evaluate",
    *("check_batch_size", "features", "make", "read_split", "stream_features"),
)
