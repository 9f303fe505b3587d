"""The keys of `objectives/dino.py`; the defaults are the reference's (arXiv:2104.14294)."""

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.schema import Key, duration, probability


def defaults():
    return {
        "out_dim": Key(65536, "prototypes: outputs of the projection head", least=1),
        "hidden_dim": Key(2048, "hidden units of the head's MLP", least=1),
        "bottleneck_dim": Key(256, "outputs of the head's MLP", least=1),
        "norm_last_layer": Key(True, "fix the prototypes' norms at 1; False: they are learned"),
        "student_temp": Key(0.1, "temperature of the student", least=1e-6),
        "teacher_temp": Key(0.04, "temperature of the teacher after the warmup", least=1e-6),
        "warmup_teacher_temp": Key(0.04, "temperature of the teacher at step 0", least=1e-6),
        "teacher_temp_warmup": duration("0", "duration of the linear rise, in whole epochs"),
        "momentum": probability(0.996, "of the teacher; rises to 1 along a half cosine"),
        "center_momentum": probability(0.9, "of the center of the teacher's outputs"),
    }


def check(config):
    """Raise UserError for a model with a classifier, a ResNet, or a single view of an image."""
    if config.augment.crop != "multi":
        raise UserError(
            "config.objective.name = 'dino' needs config.augment.crop = 'multi'; see "
            "configs/dino.py"
        )
    if config.model.num_classes != 0:
        raise UserError("config.objective.name = 'dino' needs config.model.num_classes = 0")
    if variants.is_cnn(config.model.variant):
        raise UserError("config.objective.name = 'dino' needs a Vision Transformer, not a ResNet")
