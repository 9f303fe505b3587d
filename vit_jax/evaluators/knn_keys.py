"""The keys of `evaluators/knn.py`, in the group `knn`; the defaults are DINO's."""

import re

from vit_jax.errors import UserError
from vit_jax.schema import Key


def defaults():
    return {
        "k": Key(
            (10, 20), "numbers of nearest neighbors that vote: metrics knn10 and knn20", least=1
        ),
        "temperature": Key(0.07, "T in the weight exp(cosine / T) of a vote", above=0),
    }


def check(config):
    """Raise UserError if the best checkpoint is chosen by a k that is not evaluated."""
    found = re.fullmatch(r"eval/val/knn(\d+)", config.best_metric)
    if found and int(found[1]) not in config.knn.k:
        raise UserError(
            f"config.best_metric = {config.best_metric!r} is not evaluated: config.knn.k = "
            f"{config.knn.k}"
        )
