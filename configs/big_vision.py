"""Better plain ViT baselines on ImageNet-1k (arXiv:2205.01580): ViT-S/16 in 90 to 300 epochs.

python -m vit_jax.train --config=configs/big_vision.py:s16_90 --workdir=W --config.data.dir=DIR

RUN        hours, estimated    published top-1, with an MLP or a linear head    ours
s16_90     1.4                 76.5 / 76.7 %                                    not run
s16_150    2.3                 78.5 / 78.6 %                                    not run
s16_300    4.7                 80.0 / 79.8 %                                    not run

The estimate is of computing alone, as in configs/deit.py: on 8 TPU v5e chips. The paper has 90
epochs in under seven hours on a TPU v3-8.

Values: configs/vit_s16_i1k.py of google-research/big_vision (0127fb6), and Table 1 of the paper,
with the linear head. mixup's partner is the image's mirror in the batch, where it is the neighbour
there; the shares are the same in distribution. Crops are bicubic where they are bilinear without
antialiasing there, and so is the evaluation, where they average areas.
"""

from configs import common

RUNS = {"s16_90": "90ep", "s16_150": "150ep", "s16_300": "300ep"}
PUBLISHED = {"s16_90": 76.7, "s16_150": 78.6, "s16_300": 79.8}  # top-1 accuracy, linear head, %


def get_config(run="s16_90"):
    if run not in RUNS:
        raise ValueError(f"there is no run '{run}'; say one of {', '.join(RUNS)}")
    c = common.defaults()
    common.for_imagenet(c)
    c.data.mean = c.data.std = (0.5, 0.5, 0.5)
    m, a, p = c.model, c.augment, c.optim
    m.variant, m.pool, m.fc_norm, m.pos_embed = "S/16", "gap", False, "sincos2d"
    m.act, m.init = "gelu_tanh", "big_vision"
    a.scale, a.randaugment, a.mixup = (0.05, 1.0), "big_vision-n2-m10", 0.2
    c.batch_size, c.total_steps = 1024, RUNS[run]
    p.lr, p.warmup, p.warmup_prefix, p.clip = 1e-3, "10k", True, 1.0
    p.weight_decay, p.decay_by, p.decay_rule = 1e-4, "schedule", "kernel"
    c.eval_every = c.checkpoint_every = "5ep"
    return c
