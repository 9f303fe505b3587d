"""DINO on Fashion-MNIST, 28x28 grey images of clothes, without labels; k-NN on the way; a CPU.

python -m vit_jax.train --config=configs/dino_fashion_mnist.py --workdir=runs/dino_fashion_mnist

Two CPU cores: 52 minutes. Test k-NN (20) 86.0 %, untrained 73.2 %, raw pixels 85.6 %;
experiments/dino_fashion_mnist has the curve, and what falls short.
"""

from configs import common


def get_config():
    c = common.defaults()
    common.for_dino(c)
    o, a, p = c.objective, c.augment, c.optim
    common.for_fashion_mnist(c)
    c.data.threads = 2
    m = c.model
    m.variant = "mini/7"
    m.depth, m.num_heads, m.init = 4, 3, "big_vision"
    a.scale = (0.4, 1.0)
    a.local_views, a.local_size, a.local_scale = 4, 14, (0.1, 0.4)
    a.jitter, a.jitter_prob = (0.6, 0.6, 0.0, 0.0), 0.8
    o.out_dim, o.hidden_dim, o.bottleneck_dim = 1024, 256, 64
    o.momentum, o.teacher_temp, o.warmup_teacher_temp = 0.98, 0.03, 0.03
    c.total_steps = "20ep"
    p.lr, p.warmup, p.freeze_for = 1e-3, "300", "100"
    c.eval_every = c.checkpoint_every = "2ep"
    return c
