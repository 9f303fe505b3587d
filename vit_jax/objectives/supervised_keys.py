"""Config keys of `objectives/supervised.py`."""

from vit_jax.errors import UserError
from vit_jax.schema import Key, probability


def defaults():
    """Return the keys of the group `objective`."""
    return {
        "label_smoothing": probability(
            0.0, "fraction of each target distributed uniformly over all classes"
        ),
        "ema": Key(
            0.0,
            "decay of the weight EMA, which is used for evaluation; 0: no EMA",
            minimum=0,
            less_than=1,
        ),
    }


def check(config):
    """Raise UserError if the model has no classifier, or if there are several views per image."""
    if config.augment.crop == "multi":
        raise UserError(
            "config.objective.name = 'supervised' needs one view per image, but "
            "config.augment.crop = 'multi' gives several; see configs/dino.py for multi-crop "
            "training"
        )
    if config.model.num_classes == 0:
        raise UserError("config.objective.name = 'supervised' needs config.model.num_classes > 0")
