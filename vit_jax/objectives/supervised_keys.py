"""The keys of `objectives/supervised.py`."""

from vit_jax.errors import UserError
from vit_jax.schema import Key, probability


def defaults():
    return {
        "label_smoothing": probability(0.0, "share of the target spread over all classes"),
        "ema": Key(
            0.0,
            "decay of the moving average of the weights, which is then evaluated; 0: no average",
            least=0,
            below=1,
        ),
    }


def check(config):
    """Raise UserError for a config that has no labels to learn, or several views of an image."""
    if config.augment.crop == "multi":
        raise UserError(
            "config.augment.crop = 'multi' gives several views of an image, and "
            "config.objective.name = 'supervised' takes one; see configs/dino.py"
        )
    if config.model.num_classes == 0:
        raise UserError("config.objective.name = 'supervised' needs config.model.num_classes > 0")
