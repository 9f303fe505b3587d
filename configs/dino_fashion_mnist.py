"""DINO on Fashion-MNIST, 28x28 gray images of clothes: self-supervised, k-NN evaluation, on a CPU.

python -m vit_jax.train --config=configs/dino_fashion_mnist.py --workdir=runs/dino_fashion_mnist

Training takes 52 minutes on two CPU cores. Test accuracy of k-NN (k = 20): 86.0%, compared with
73.2% for the untrained model and 85.6% for raw pixels. The learning curve and the limitations are
in experiments/dino/fashion_mnist.
"""

from configs import dino, fashion_mnist
from vit_jax.config import defaults


def get_config():
    c = defaults()
    dino.self_distillation(c)

    fashion_mnist.fashion_mnist_data(c)

    c.augment.scale = (0.4, 1.0)
    c.augment.local_views = 4
    c.augment.local_size = 14
    c.augment.local_scale = (0.1, 0.4)
    c.augment.flip = 0.5
    c.augment.jitter = (0.6, 0.6, 0.0, 0.0)
    c.augment.jitter_prob = 0.8

    c.model.variant = "mini/7"
    c.model.depth = 4
    c.model.num_heads = 3
    c.model.init = "xavier"

    c.objective.out_dim = 1024
    c.objective.hidden_dim = 256
    c.objective.bottleneck_dim = 64
    c.objective.teacher_temp = 0.03
    c.objective.warmup_teacher_temp = 0.03
    c.objective.momentum = 0.98

    c.optim.lr = 1e-3
    c.optim.warmup = "300"
    c.optim.freeze_for = "100"

    c.batch_size = 64
    c.total_steps = "20ep"
    c.log_every = "100"
    c.eval_every = "2ep"
    c.checkpoint_every = "2ep"
    return c
