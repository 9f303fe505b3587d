"""ViT-S/16 on ImageNet-1k, for 90 to 300 epochs (big_vision, arXiv:2205.01580).

python -m vit_jax.train --config=configs/big_vision.py:s16_90 --workdir=W --config.data.dir=DIR

RUN        hours (estimated)    published top-1, MLP / linear head    ours
s16_90     1.4                  76.5 / 76.7%                          not run
s16_150    2.3                  78.5 / 78.6%                          not run
s16_300    4.7                  80.0 / 79.8%                          not run

Hours are estimated compute time on 8 TPU v5e chips, without data loading, as in configs/deit.py.
The paper reports 90 epochs in less than seven hours on a TPU v3-8.

Source: configs/vit_s16_i1k.py of google-research/big_vision (0127fb6), and Table 1 of the paper for
the published accuracy. This recipe has the linear head. Differences from the source:
* mixup pairs image i of a batch of b images with image b - 1 - i; big_vision pairs neighbors. The
  distribution of the mixing weights is the same.
* Random crops are resized with bicubic interpolation; big_vision uses bilinear interpolation
  without antialiasing.
* Evaluation images are resized with bicubic interpolation; big_vision uses area averaging.
"""

from vit_jax.config import defaults

RUNS = {"s16_90": "90ep", "s16_150": "150ep", "s16_300": "300ep"}
PUBLISHED = {"s16_90": 76.7, "s16_150": 78.6, "s16_300": 79.8}  # top-1 accuracy in %, linear head


def get_config(run="s16_90"):
    if run not in RUNS:
        raise ValueError(f"unknown run {run!r}; pass one of {', '.join(RUNS)}")
    c = defaults()

    c.data.name = "tfds"
    c.data.dataset = "imagenet2012"
    c.data.mean = (0.5, 0.5, 0.5)
    c.data.std = (0.5, 0.5, 0.5)

    c.augment.crop = "resized"
    c.augment.scale = (0.05, 1.0)
    c.augment.randaugment = "big_vision-n2-m10"
    c.augment.flip = 0.5
    c.augment.mixup = 0.2
    c.augment.eval_crop = 0.875

    c.model.variant = "S/16"
    c.model.image = 224
    c.model.pool = "gap"
    c.model.fc_norm = False
    c.model.pos_embed = "sincos2d"
    c.model.act = "gelu_tanh"
    c.model.init = "big_vision"
    c.model.dtype = "bfloat16"

    c.optim.lr = 1e-3
    c.optim.weight_decay = 1e-4
    c.optim.decay_rule = "kernel"
    c.optim.decay_by = "schedule"
    c.optim.warmup = "10k"
    c.optim.warmup_prefix = True
    c.optim.clip = 1.0

    c.batch_size = 1024
    c.total_steps = RUNS[run]
    c.eval_every = "5ep"
    c.checkpoint_every = "5ep"
    return c
