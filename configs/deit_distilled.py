"""DeiT-Ti, DeiT-S and DeiT-B with distillation on ImageNet-1k (arXiv:2012.12877, section 4).

python -m vit_jax.train --config=configs/deit_distilled.py:S --workdir=runs/deit_s_distilled \\
    --config.data.dir=DIR \\
    --config.objective.distill.teacher=hf-hub:timm/deit_base_patch16_224.fb_in1k

SIZE    parameters    original hardware    hours (estimated)    published top-1    ours
Ti      5.9 M         4 GPUs               7.2                  74.5%              not run
S       22 M          4 GPUs               11                   81.2%              not run
B       87 M          2 x 8 GPUs           24                   83.4%              not run

Hours are estimated as in configs/deit.py, on 8 TPU v5e chips, with a forward pass of DeiT-B as the
teacher.

config.objective.distill.teacher is the workdir of a run, a weight file or hf-hub:ORGANIZATION/NAME,
trained on the classes of the data in the same order. The teacher is frozen and in evaluation mode.
It gets the augmented and mixed images of the student, with its own normalization, and resized to
its image size if that differs. Its weights are sharded like those of the student, and are not part
of the checkpoints; resuming needs the same weights. The class token learns from the labels, the
distillation token from the class that the teacher predicts; evaluation averages the logits of both.
A student without model.dist_token learns both with its only classifier.

config.objective.distill.kind=soft distills the distribution of the teacher; the paper compares hard
distillation with it at alpha = 0.1 and tau = 3.

Source: as in configs/deit.py; losses.py and README_deit.md of facebookresearch/deit. Differences,
besides those of configs/deit.py:
* The published teacher is a RegNetY-16GF with 82.9% top-1, which this library does not have. The
  paper finds a CNN to be a better teacher than a transformer of the same accuracy (section 5.2).
"""

from configs import deit
from vit_jax.errors import UserError

SIZES = deit.SIZES
PUBLISHED = {"Ti": 74.5, "S": 81.2, "B": 83.4}  # top-1 accuracy in %


def get_config(size="S"):
    c = deit.get_config(size)

    c.model.dist_token = True

    c.objective.distill.kind = "hard"
    c.objective.distill.alpha = 0.5
    return c


def adapt(config, given, arg):  # noqa: ARG001  the signature of all recipes
    """Raise UserError if no teacher is set."""
    if not config.objective.distill.teacher:
        raise UserError(
            "pass --config.objective.distill.teacher=WEIGHTS, the workdir of a run, a weight file "
            "or hf-hub:ORGANIZATION/NAME. To train without a teacher, use configs/deit.py"
        )
