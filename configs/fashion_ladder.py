"""Model size against accuracy on a CPU: ViTs and ResNets on Fashion-MNIST, one recipe for all.

python -m experiments.size_vs_accuracy --config=configs/fashion_ladder.py --config.data.dir=DIR
python -m vit_jax.train --config=configs/fashion_ladder.py:nano --workdir=W --config.data.dir=DIR

SIZE        parameters    layers    width    minutes on one core    test accuracy, two seeds
pico        16 k          2         24       2                      84.2 %
mu          41 k          3         32       2                      85.4 %
nano        117 k         4         48       4                      86.4 %
micro       305 k         6         64       8                      86.5 %
mini        679 k         6         96       15                     86.4 %
resnet8     78 k          8         16-64    5                      89.8 %
resnet14    175 k         14        16-64    9                      91.2 %

Chosen for being over in two hours with two seeds each, not for the last percent: four epochs, which
leave the larger ViTs short of what they can do. experiments/size_vs_accuracy has the results.
"""

from configs import common

# name: (variant, blocks); None: as the variant says
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
        raise ValueError(f"there is no size '{size}'; say one of {', '.join(SIZES)}")
    c = common.defaults()
    common.for_fashion_mnist(c)
    c.model.variant, c.model.depth = SIZES[size]
    if "/" in c.model.variant:
        c.model.pool, c.model.init = "gap", "big_vision"
    c.augment.crop = "none"
    c.objective.label_smoothing, c.objective.ema = 0.1, 0.995
    c.optim.lr, c.optim.warmup, c.optim.clip = 2e-3, "400", 1.0
    c.total_steps, c.eval_every, c.checkpoint_every = "4ep", "1ep", "1ep"
    return c
