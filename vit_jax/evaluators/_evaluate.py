"""All evaluators of a run on one split."""

import functools

from jax.experimental import multihost_utils

from vit_jax import forward
from vit_jax.errors import UserError
from vit_jax.schema import member


def make(names, model, config, split, mesh):
    """-> evaluate(params) -> the metrics of all these members. The features of a split are computed
    once, however many members read them. Raises UserError, also when called."""
    found = {name: member("evaluators", name) for name in names}
    evaluations = [m.make(model, config, split, mesh) for m in found.values() if hasattr(m, "make")]
    readouts = [
        functools.partial(m.read_out, **config.get(name, {}))
        for name, m in found.items()
        if hasattr(m, "read_out")
    ]
    if readouts:
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
    extract_split = forward.features(model, config, ("train", split), mesh)

    def evaluate(params):
        bank, queries = extract_split(params, "train"), extract_split(params, split)
        scores = {"images": len(queries["label"])}
        for read_out in readouts:
            scores |= read_out(bank, queries)
        # All processes compute the same; the last bit must be the same too, as training acts on it.
        return {k: x.item() for k, x in multihost_utils.broadcast_one_to_all(scores).items()}

    return evaluate
