"""Config checks of `evaluators/accuracy.py`, which has no keys."""

from vit_jax.errors import UserError


def defaults():
    return {}


def check(config):
    """Raise UserError if the model has no classifier."""
    if config.model.num_classes == 0:
        raise UserError(
            "config.evaluators = ('accuracy',) requires a classifier, but config.model.num_classes "
            "is 0; use ('knn',) or ('knn', 'linear_probe')"
        )
