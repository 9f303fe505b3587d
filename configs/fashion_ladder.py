"""Accuracy against model size on a CPU: ViTs and ResNets on Fashion-MNIST with a single recipe.

python -m experiments.size_vs_accuracy --config=configs/fashion_ladder.py --config.data.dir=DIR
python -m vit_jax.train --config=configs/fashion_ladder.py:nano --workdir=W --config.data.dir=DIR

SIZE        parameters    layers    width    minutes on one core    test accuracy, two seeds
pico        16 k          2         24       2                      84.2%
mu          41 k          3         32       2                      85.4%
nano        117 k         4         48       4                      86.4%
micro       305 k         6         64       8                      86.5%
mini        679 k         6         96       15                     86.4%
resnet8     78 k          8         16-64    5                      89.8%
resnet14    175 k         14        16-64    9                      91.2%

The first command trains all sizes with two seeds in two hours. The recipe is made for that budget,
not for the highest accuracy: after four epochs the larger ViTs are undertrained. The results are in
experiments/size_vs_accuracy.
"""

from configs import fashion_mnist
from vit_jax.config import defaults

# size: (variant, depth); None: the default depth of the variant
SIZES = {
    "pico": ("pico/4", None),
    "mu": ("mu/4", 3),
    "nano": ("nano/4", 4),
    "micro": ("micro/4", None),
    "mini": ("mini/4", None),
    "resnet8": ("resnet8", None),
    "resnet14": ("resnet14", None),
}


def get_config(size="nano"):
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; pass one of {', '.join(SIZES)}")
    variant, depth = SIZES[size]
    c = defaults()

    fashion_mnist.fashion_mnist_data(c)

    c.augment.crop = "none"
    c.augment.flip = 0.5

    c.model.variant = variant
    c.model.depth = depth
    if "/" in variant:  # a ViT
        c.model.pool = "gap"
        c.model.init = "xavier"

    c.objective.label_smoothing = 0.1
    c.objective.ema = 0.995

    c.optim.lr = 2e-3
    c.optim.warmup = "400"
    c.optim.clip = 1.0

    c.batch_size = 64
    c.total_steps = "4ep"
    c.log_every = "100"
    c.eval_every = "1ep"
    c.checkpoint_every = "1ep"
    return c
