"""Config keys of `objectives/dino.py`, with the reference's defaults (arXiv:2104.14294)."""

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.schema import Key, duration, probability


def defaults():
    """Return the keys of the group `objective`."""
    return {
        "out_dim": Key(65536, "outputs of the projection head (number of prototypes)", minimum=1),
        "head_layers": Key(3, "linear layers of the head's MLP", minimum=1),
        "head_bn": Key(False, "batch norm after the hidden layers of the head's MLP"),
        "hidden_dim": Key(2048, "hidden units of the head's MLP", minimum=1),
        "bottleneck_dim": Key(256, "outputs of the head's MLP", minimum=1),
        "norm_last_layer": Key(True, "fix the norm of each prototype at 1; False: learned norms"),
        "student_temp": Key(0.1, "temperature of the student", minimum=1e-6),
        "teacher_temp": Key(0.04, "temperature of the teacher after the warmup", minimum=1e-6),
        "warmup_teacher_temp": Key(0.04, "temperature of the teacher at step 0", minimum=1e-6),
        "teacher_temp_warmup": duration(
            "0", "linear warmup of the teacher temperature, rounded to whole epochs"
        ),
        "momentum": probability(
            0.996, "EMA decay of the teacher at step 0; increases to 1 on a cosine schedule"
        ),
        "center_momentum": probability(0.9, "EMA decay of the center of the teacher's outputs"),
    }


def check(config):
    """Raise UserError for a single view per image, a model with a classifier, or a ResNet."""
    if config.augment.crop != "multi":
        raise UserError(
            "config.objective.name = 'dino' needs config.augment.crop = 'multi'; see "
            "configs/dino.py"
        )
    if config.data.balance == "loss":
        raise UserError(
            "config.data.balance = 'loss' weights the supervised loss; for DINO, use 'sample'"
        )
    if config.model.num_classes != 0:
        raise UserError("config.objective.name = 'dino' needs config.model.num_classes = 0")
    if variants.is_cnn(config.model.variant):
        raise UserError("config.objective.name = 'dino' needs a Vision Transformer, not a ResNet")
