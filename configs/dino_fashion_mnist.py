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
    c.data.name, c.data.dataset = "tfds", "fashion_mnist"
    c.data.train, c.data.val, c.data.test = "train[:55000]", "train[55000:]", "test"
    c.data.mean, c.data.std = (0.286,), (0.353,)
    c.data.cache, c.data.threads = True, 2
    m = c.model
    m.variant, m.image, m.channels = "mini/7", 28, 1
    m.depth, m.num_heads, m.init = 4, 3, "big_vision"
    a.scale, a.eval_crop = (0.4, 1.0), 1.0
    a.local_views, a.local_size, a.local_scale = 4, 14, (0.1, 0.4)
    a.flip, a.jitter, a.jitter_prob = 0.5, (0.6, 0.6, 0.0, 0.0), 0.8
    o.out_dim, o.hidden_dim, o.bottleneck_dim = 1024, 256, 64
    o.momentum, o.teacher_temp, o.warmup_teacher_temp = 0.98, 0.03, 0.03
    c.batch_size, c.total_steps = 64, "20ep"
    p.lr, p.warmup, p.freeze_for = 1e-3, "300", "100"
    c.eval_every = c.checkpoint_every = "2ep"
    c.log_every, c.eval_batch_size = "100", 500
    return c
