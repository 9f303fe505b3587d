"""DeiT on ImageNet-1k without distillation (arXiv:2012.12877): ViT-Ti, S and B with 16x16 patches.

python -m vit_jax.train --config=configs/deit.py:S --workdir=runs/deit_s --config.data.dir=DIR

SIZE    parameters    hardware there      hours, estimated    published top-1    ours
Ti      5.7 M         4 GPUs              1.3                 72.2 %             not run
S       22 M          4 GPUs              4.7                 79.9 %             not run
B       86 M          2 x 8 GPUs          18                  81.8 %             not run

The estimate is of computing alone: three forward passes an image on 8 TPU v5e chips, at 40 % of
their 197 TFLOP/s. Reading 224-pixel JPEGs as fast takes many more cores than such a machine has.
B does not fit into their 16 GB but with --config.accum_steps=2 (see experiments/compile_check).

Values: main.py of facebookresearch/deit (7e160fe) with timm 0.3.2, and Table 9 of the paper, which
agree. What is not in the paper: the schedule moves once an epoch, an epoch late; RandAugment
applies each of its two operations with probability 0.5. The published numbers are of the weights
themselves, not of the average that the script keeps beside them. It trains in float16, this in
bfloat16. Choices are made on 1 % of the training images, which the script trains on too.
"""

from configs import common

SIZES = ("Ti", "S", "B")
PUBLISHED = {"Ti": 72.2, "S": 79.9, "B": 81.8}  # top-1 accuracy, %


def get_config(size="S"):
    if size not in SIZES:
        raise ValueError(f"there is no size '{size}'; say one of {', '.join(SIZES)}")
    c = common.defaults()
    common.for_imagenet(c)
    common.for_mixing(c)
    m, a, p = c.model, c.augment, c.optim
    m.variant, m.pool, m.drop_path = f"{size}/16", "cls", 0.1
    a.repeats, a.erase = 3, 0.25
    c.batch_size, c.total_steps = 1024, "300ep"
    p.lr, p.lr_batch, p.warmup, p.warmup_start, p.end = 5e-4, 512, "5ep", 1e-6, 1e-5
    p.schedule_by, p.weight_decay, p.decay_rule = "epoch", 0.05, "deit"
    c.eval_every = c.checkpoint_every = "5ep"
    return c
