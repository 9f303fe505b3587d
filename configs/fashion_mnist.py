"""Fashion-MNIST, 70,000 grey 28x28 images of clothes in 10 classes (arXiv:1708.07747), on a CPU.

python -m vit_jax.train --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

Two CPU cores: 29 minutes. Test accuracy 88.9 %; experiments/fashion_mnist says what was tried.
"""

from configs import common


def get_config():
    c = common.defaults()
    common.for_fashion_mnist(c)
    c.model.variant, c.model.pool = "mini/4", "gap"
    c.model.depth, c.model.num_heads, c.model.init = 4, 3, "big_vision"
    c.augment.crop = "none"
    c.objective.label_smoothing, c.objective.ema = 0.1, 0.999
    c.optim.lr, c.optim.warmup, c.optim.clip = 2e-3, "1ep", 1.0
    c.total_steps, c.eval_every, c.checkpoint_every = "16ep", "2ep", "2ep"
    return c
