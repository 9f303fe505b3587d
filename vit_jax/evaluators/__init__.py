"""FAMILY: parameters -> numbers. A member module has one of two functions.

`make(model, config, split, mesh) -> evaluate`, and evaluate(params) -> {"acc1": 0.98, ...}, for
what looks at outputs batch by batch; split is a key of config.data: train, val or test.
`read_out(bank, queries) -> {...}` for what learns classes from frozen features:
those of the training split, and of the split to score, each {"pooled" [n, d], "label" [n]}.
"""

from importlib import import_module

from jax.experimental import multihost_utils

from vit_jax import extract
from vit_jax.cli import UserError


def make(names, model, config, split, mesh):
    """-> evaluate(params) -> the numbers of all these members. Each split is read for its features
    once, however many read them out. Raises UserError, also when called."""
    members = [import_module(f"vit_jax.evaluators.{name}") for name in names]
    evaluations = [m.make(model, config, split, mesh) for m in members if hasattr(m, "make")]
    if readouts := [m.read_out for m in members if hasattr(m, "read_out")]:
        evaluations.append(_read_out(readouts, model, config, split, mesh))

    def evaluate(params):
        scores = {}
        for part in evaluations:
            scores |= part(params)
        return scores

    return evaluate


def _read_out(readouts, model, config, split, mesh):
    if split == "train":
        raise UserError(
            "knn and linear_probe learn from the training split, so that they would see the "
            "answers there; score val or test"
        )
    extract_split = extract.features(model, config, ("train", split), mesh)

    def evaluate(params):
        bank, queries = extract_split(params, "train"), extract_split(params, split)
        scores = {"images": len(queries["label"])}
        for read_out in readouts:
            scores |= read_out(bank, queries)
        # All processes compute the same; the last bit must be the same too, as training acts on it.
        return {k: x.item() for k, x in multihost_utils.broadcast_one_to_all(scores).items()}

    return evaluate
