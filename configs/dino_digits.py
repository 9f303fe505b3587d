"""DINO on scikit-learn's real 8x8 digits: no labels, k-NN afterwards, two CPU cores.

python -m vit_jax.train --config=configs/dino_digits.py --workdir=runs/dino_digits

Two CPU cores: 1 minute. Test k-NN (20) 87.8 %, untrained 66.1 %, raw pixels 96.7 %: these digits
are all in the same place, which pixels use and crops hide. experiments/quickstart/results.
"""

from configs import common


def get_config():
    c = common.defaults()
    common.for_dino(c)
    o, a, p = c.objective, c.augment, c.optim
    c.data.name, c.data.train, c.data.val, c.data.test = "digits", "train", "val", "test"
    c.data.mean, c.data.std, c.data.cache, c.data.threads = (0.305,), (0.376,), True, 1
    # Drawn twice as large: crops of 8x8 pixels would differ in nothing but their interpolation.
    c.model.variant, c.model.image, c.model.channels = "nano/4", 16, 1
    c.model.init = "big_vision"
    a.scale, a.eval_crop = (0.7, 1.0), 1.0
    a.flip = 0.0  # a mirrored digit is no digit
    a.local_views = 0  # a small part of a digit says little of the whole
    o.out_dim, o.hidden_dim, o.bottleneck_dim = 512, 128, 32
    o.teacher_temp = o.warmup_teacher_temp = 0.025  # at 0.04 k-NN was 2 points lower
    c.batch_size, c.total_steps = 64, "100ep"
    p.lr, p.warmup = 1e-3, "5ep"
    c.eval_every = c.checkpoint_every = "10ep"
    c.log_every = "20"
    return c
