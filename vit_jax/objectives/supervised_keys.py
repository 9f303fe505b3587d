"""Config keys of `objectives/supervised.py`."""

from vit_jax.errors import UserError
from vit_jax.schema import Key, choice, probability


def defaults():
    """Return the keys of the group `objective`."""
    return {
        "label_smoothing": probability(
            0.0, "fraction of each target distributed uniformly over all classes"
        ),
        "loss": choice(
            ("softmax", "binary"),
            "softmax cross-entropy; or binary cross-entropy, averaged over the classes, where both "
            "classes of a mixed image have a target of 1 (DeiT III)",
        ),
        "ema": Key(
            0.0,
            "decay of the weight EMA, which is used for evaluation; 0: no EMA",
            minimum=0,
            less_than=1,
        ),
        "distill.teacher": Key(
            "",
            "weights of the teacher: a workdir, a weight file or hf-hub:ORGANIZATION/NAME; "
            '"": no distillation',
        ),
        "distill.teacher_model": Key(
            "", "name of the teacher's architecture, if its weights do not determine it"
        ),
        "distill.kind": choice(
            ("hard", "soft"), "targets from the teacher: its prediction, or its distribution"
        ),
        "distill.alpha": probability(
            0.5,
            "weight of the loss with the teacher; that of the loss with the labels is 1 - alpha",
        ),
        "distill.tau": Key(1.0, "soft: temperature of teacher and student", greater_than=0),
    }


def teacher(config):
    """Return the spec and the model name of the teacher's weights; None without distillation."""
    spec, name = config.objective.distill.teacher, config.objective.distill.teacher_model
    return (spec, name or None) if spec else None


def check(config):
    """Raise UserError for values that cannot be combined."""
    if config.augment.crop == "multi":
        raise UserError(
            "config.objective.name = 'supervised' needs one view per image, but "
            "config.augment.crop = 'multi' gives several; see configs/dino.py for multi-crop "
            "training"
        )
    if config.model.num_classes == 0:
        raise UserError("config.objective.name = 'supervised' needs config.model.num_classes > 0")
    o = config.objective
    if o.loss == "binary" and o.label_smoothing:
        raise UserError(
            "config.objective.loss = 'binary' needs config.objective.label_smoothing = 0; with "
            "smoothing, every class would have a target of 1"
        )
    if o.loss == "binary" and config.data.balance == "loss":
        raise UserError(
            "config.data.balance = 'loss' needs config.objective.loss = 'softmax'; or set it to "
            "'sample'"
        )
    a = config.augment
    micro_batch = config.batch_size // config.accum_steps
    if (a.mixup or a.cutmix) and config.accum_steps > 1 and micro_batch % 2:
        raise UserError(
            f"config.batch_size / config.accum_steps = {micro_batch} must be even, because mixup "
            "and CutMix mix pairs of images of a micro-batch"
        )
