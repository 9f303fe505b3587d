"""Fashion-MNIST, 70,000 grey 28x28 images of clothes in 10 classes (arXiv:1708.07747), on a CPU.

python -m vit_jax.train --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

Two CPU cores: 29 minutes. Test accuracy 88.9 %; experiments/fashion_mnist says what was tried.
"""

from configs import common


def get_config():
    c = common.defaults()
    c.data.name, c.data.dataset = "tfds", "fashion_mnist"
    c.data.train, c.data.val, c.data.test = "train[:55000]", "train[55000:]", "test"
    c.data.mean, c.data.std = (0.286,), (0.353,)
    c.data.cache, c.data.threads = True, 1  # 43 MB; one thread keeps up
    c.augment.crop, c.augment.flip = "none", 0.5
    c.augment.eval_crop = 1.0
    c.model.variant, c.model.image, c.model.channels, c.model.pool = "mini/4", 28, 1, "gap"
    c.model.depth, c.model.num_heads, c.model.init = 4, 3, "big_vision"
    c.objective.label_smoothing, c.objective.ema = 0.1, 0.999
    c.batch_size, c.total_steps, c.optim.warmup = 64, "16ep", "1ep"
    c.optim.lr = 2e-3
    c.optim.clip = 1.0
    c.eval_every = c.checkpoint_every = "2ep"
    c.log_every = "100"
    c.eval_batch_size = 500
    return c
