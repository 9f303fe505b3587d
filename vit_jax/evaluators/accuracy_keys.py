"""The checks of `evaluators/accuracy.py`, which has no keys."""

from vit_jax.errors import UserError


def defaults():
    return {}


def check(config):
    """Raise UserError for a model without a classifier."""
    if config.model.num_classes == 0:
        raise UserError(
            "config.evaluators = ('accuracy',) needs a classifier, but config.model.num_classes is "
            "0; set it to ('knn',) or ('knn', 'linear_probe')"
        )
