"""DeiT-Ti, DeiT-S and DeiT-B on ImageNet-1k, without distillation (arXiv:2012.12877).

python -m vit_jax.train --config=configs/deit.py:S --workdir=runs/deit_s --config.data.dir=DIR

SIZE    parameters    original hardware    hours (estimated)    published top-1    ours
Ti      5.7 M         4 GPUs               1.3                  72.2%              not run
S       22 M          4 GPUs               4.7                  79.9%              not run
B       86 M          2 x 8 GPUs           18                   81.8%              not run

Hours are estimated compute time on 8 TPU v5e chips at 40% of their peak of 197 TFLOP/s, with three
forward passes per image and training step. Data loading is not included: to decode JPEGs at that
rate takes many more CPU cores than such a host has. B does not fit in the 16 GB of a
chip without --config.accum_steps=2 or --config.model.remat=full (see experiments/compile_check).

Source: main.py of facebookresearch/deit (7e160fe) with timm 0.3.2, and Table 9 of the paper, which
agree. Two details of the code are not in the paper: the learning rate is updated once per epoch,
one epoch late, and each of the two RandAugment operations is applied with probability 0.5. The
published accuracy is that of the weights, not of the EMA that main.py also keeps. Differences from
the source:
* Training uses bfloat16; main.py uses float16.
* 1% of the training images are held out for validation; main.py trains on all of them.
"""

from vit_jax.config import defaults

SIZES = ("Ti", "S", "B")
PUBLISHED = {"Ti": 72.2, "S": 79.9, "B": 81.8}  # top-1 accuracy in %


def get_config(size="S"):
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; pass one of {', '.join(SIZES)}")
    c = defaults()

    c.data.name = "tfds"
    c.data.dataset = "imagenet2012"

    c.augment.crop = "resized"
    c.augment.scale = (0.08, 1.0)
    c.augment.repeats = 3
    c.augment.randaugment = "rand-m9-mstd0.5-inc1"
    c.augment.flip = 0.5
    c.augment.erase = 0.25
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.augment.mix_prob = 1.0
    c.augment.mix_switch = 0.5
    c.augment.eval_crop = 0.875

    c.model.variant = f"{size}/16"
    c.model.image = 224
    c.model.pool = "cls"
    c.model.drop_path = 0.1
    c.model.dtype = "bfloat16"

    c.objective.label_smoothing = 0.1

    c.optim.lr = 5e-4
    c.optim.lr_batch = 512
    c.optim.weight_decay = 0.05
    c.optim.decay_rule = "deit"
    c.optim.warmup = "5ep"
    c.optim.warmup_start = 1e-6
    c.optim.end = 1e-5
    c.optim.schedule_by = "epoch"

    c.batch_size = 1024
    c.total_steps = "300ep"
    c.eval_every = "5ep"
    c.checkpoint_every = "5ep"
    return c
