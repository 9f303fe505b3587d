"""MAE's supervised training from scratch on ImageNet-1k (arXiv:2111.06377): ViT-B, L and H.

python -m vit_jax.train --config=configs/mae_scratch.py:L --workdir=runs/mae_l --config.data.dir=DIR

SIZE    parameters    epochs    hours, estimated    published top-1 (without EMA)    ours
B       86 M          300       4.4                 82.3 % (82.1 %)                  not run
L       304 M         200       14                  82.6 % (81.5 %)                  not run
H       632 M         200       37                  83.1 % (80.9 %)                  not run

The estimate is of computing alone on 32 TPU v5e chips at 40 % of their 197 TFLOP/s: three forward
passes an image, four for L and H, whose blocks are computed again in the backward pass. H needs
--config.mesh.fsdp=8 there: its parameters, two moments and average are 10 GB. L fits 16 chips as it
is, and 8 with --config.accum_steps=4 (experiments/compile_check).

Values: Table 11 in appendix A.2 of the paper, which says to disable all other regularisation, so
that there is no random erasing and no repeated augmentation. The published numbers are of the
weights' moving average. The paper does not say, and here is chosen: the rate starts and ends at 0,
the cosine begins after the warm-up (lr_sched.py of facebookresearch/mae, efb2a80); biases, norms,
[CLS] and positions do not decay; the patches' mean before the last norm, with a [CLS] beside them
(its models_vit.py); Xavier's initialisation (appendix A.1); learned positions; no clipping;
bfloat16. Choices are made on 1 % of the training images.
"""

from configs import common

SIZES = {"B": ("B/16", "300ep", 0.1), "L": ("L/16", "200ep", 0.2), "H": ("H/14", "200ep", 0.2)}
PUBLISHED = {"B": 82.3, "L": 82.6, "H": 83.1}  # top-1 accuracy, %


def get_config(size="L"):
    if size not in SIZES:
        raise ValueError(f"there is no size '{size}'; say one of {', '.join(SIZES)}")
    c = common.defaults()
    common.for_imagenet(c)
    common.for_mixing(c)
    m, p = c.model, c.optim
    m.variant, c.total_steps, m.drop_path = SIZES[size]
    m.pool, m.class_token, m.init = "gap", True, "big_vision"
    m.remat = "none" if size == "B" else "full"
    c.objective.ema = 0.9999
    c.batch_size = 4096
    p.lr, p.lr_batch, p.b1, p.b2, p.weight_decay = 1e-4, 256, 0.9, 0.95, 0.3
    p.warmup, p.warmup_prefix = "20ep", True
    c.eval_every = c.checkpoint_every = "5ep"
    return c
