"""Config keys of `evaluators/knn.py`, in the group `knn`, with DINO's defaults."""

import re

from vit_jax.errors import UserError
from vit_jax.schema import Key


def defaults():
    return {
        "k": Key(
            (10, 20), "numbers of nearest neighbors; the metrics are knn10 and knn20", minimum=1
        ),
        "temperature": Key(0.07, "T in the weight exp(cosine / T) of a vote", greater_than=0),
    }


def check(config):
    """Raise UserError if best_metric uses a k that is not evaluated."""
    match = re.fullmatch(r"eval/val/knn(\d+)", config.best_metric)
    if match and int(match[1]) not in config.knn.k:
        raise UserError(
            f"config.best_metric = {config.best_metric!r} is not evaluated; config.knn.k is "
            f"{config.knn.k}"
        )
