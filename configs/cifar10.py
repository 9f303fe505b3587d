"""Accuracy against model size on CIFAR-10: ViTs and ResNets from 17 k to 3.7 M parameters.

python -m experiments.size_vs_accuracy --config=configs/cifar10.py --sizes=pico,mu,nano,micro
python -m vit_jax.train --config=configs/cifar10.py:nano --workdir=runs/cifar10_nano

SIZE          parameters    layers    width    epochs    hours on one core    published top-1
pico          17 k          2         24       12        0.2                  -
mu            42 k          3         32       12        0.3                  -
resnet8       78 k          8         16-64    12        0.5                  -
nano          119 k         4         48       12        0.6                  -
micro         308 k         6         64       12        1.0                  -
mini          683 k         6         96       12        1.6                  -
midi          1.2 M         6         128      12        2.5                  -
resnet20      272 k         20        16-64    167       11                   91.25%
resnet32      467 k         32        16-64    167       19                   92.49%
vit_lite_6    3.2 M         6         256      200       54                   90.94%
vit_lite_7    3.7 M         7         256      200       63                   91.38%

The first command trains four sizes with two seeds. Finished runs are skipped; the results are in
experiments/size_vs_accuracy. The hours of pico, mu, nano and micro were measured on one core of a
busy machine. The others are estimated from the FLOPs and from a throughput of nano and micro of
1,030 and 400 images/s on a faster core; those with 12 epochs are doubled.

pico to midi and resnet8 share a recipe for a CPU: 12 epochs with random crops and flips. The others
follow publications:
* resnet20 and resnet32: section 4.2 of arXiv:1512.03385, 64,000 steps of SGD. Differences: a cosine
  schedule in place of two steps, projection shortcuts with BatchNorm, normalization per channel
  rather than per pixel, and a scale of 0 for the last BatchNorm of each block.
* vit_lite_6 and vit_lite_7: ViT-Lite-6/4 and 7/4 of arXiv:2104.05704, examples/main.py of
  SHI-Labs/Compact-Transformers (3e02036). Differences: RandAugment in place of AutoAugment's policy
  for CIFAR-10; blocks of pre-norm without the second normalization of the residual stream; no
  dropout of attention weights; position and patch embeddings initialized as in DeiT, not with a
  standard deviation of 0.2 and He initialization; the warmup is linear, and the learning rate is
  updated every step. main.py evaluates on the test split after every epoch and prints the best and
  the last accuracy; which of them is published is not stated.
* For both, 1,000 training images are held out to select the checkpoint; for the recipe for a CPU,
  5,000.

TFDS writes CIFAR-10 to ~/tensorflow_datasets with
`tfds build cifar10 --file_format=array_record`, which needs TensorFlow.
"""

from vit_jax.config import defaults

# size: (variant, depth) of the recipe for a CPU; depth None: the default of the variant
LADDER = {
    "pico": ("pico/4", None),
    "mu": ("mu/4", 3),
    "resnet8": ("resnet8", None),
    "nano": ("nano/4", 4),
    "micro": ("micro/4", None),
    "mini": ("mini/4", None),
    "midi": ("midi/4", None),
}
SIZES = (*LADDER, "resnet20", "resnet32", "vit_lite_6", "vit_lite_7")
# top-1 accuracy in %
PUBLISHED = {"resnet20": 91.25, "resnet32": 92.49, "vit_lite_6": 90.94, "vit_lite_7": 91.38}


def get_config(size="nano"):
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; pass one of {', '.join(SIZES)}")
    c = defaults()
    cifar10_data(c)

    c.augment.crop = "pad"
    c.augment.pad = 4
    c.augment.flip = 0.5

    c.model.image = 32

    c.batch_size = 128
    c.eval_batch_size = 500
    c.log_every = "100"

    if size in LADDER:
        ladder(c, *LADDER[size])
    elif size.startswith("resnet"):
        resnet(c, size)
    else:
        vit_lite(c, depth=int(size[-1]))
    return c


def cifar10_data(c):
    """Set the keys of the data, with 5,000 of the training images for validation."""
    c.data.name = "tfds"
    c.data.dataset = "cifar10"
    c.data.train = "train[:45000]"
    c.data.val = "train[45000:]"
    c.data.test = "test"
    c.data.cache = True  # 184 MB
    c.data.mean = (0.4914, 0.4822, 0.4465)
    c.data.std = (0.2470, 0.2435, 0.2616)

    c.augment.eval_crop = 1.0


def published_split(c):
    """Hold out only 1,000 training images, in recipes that follow a publication."""
    c.data.train = "train[:49000]"
    c.data.val = "train[49000:]"


def ladder(c, variant, depth):
    """Set the keys of the recipe for a CPU."""
    c.model.variant = variant
    c.model.depth = depth
    if "/" in variant:  # a ViT
        c.model.pool = "gap"
        c.model.init = "xavier"

    c.objective.label_smoothing = 0.1
    c.objective.ema = 0.999

    c.optim.lr = 2e-3
    c.optim.warmup = "1ep"
    c.optim.clip = 1.0

    c.batch_size = 64
    c.total_steps = "12ep"
    c.eval_every = "4ep"
    c.checkpoint_every = "2ep"


def resnet(c, variant):
    """Set the keys of a ResNet of arXiv:1512.03385."""
    published_split(c)

    c.model.variant = variant

    c.optim.name = "sgd"
    c.optim.lr = 0.1
    c.optim.momentum = 0.9
    c.optim.weight_decay = 1e-4
    c.optim.decay_rule = "all"
    c.optim.warmup = "0"

    c.total_steps = "64k"
    c.eval_every = "10ep"
    c.checkpoint_every = "2ep"


def vit_lite(c, depth):
    """Set the keys of a ViT-Lite of arXiv:2104.05704 with patches of 4 x 4 pixels."""
    published_split(c)

    c.augment.randaugment = "rand-m9-mstd0.5-inc1"

    c.model.variant = "midi/4"
    c.model.depth = depth
    c.model.width = 256
    c.model.num_heads = 4
    c.model.mlp_dim = 512
    c.model.pool = "cls"
    c.model.qkv_bias = False
    c.model.norm_eps = 1e-5
    c.model.drop_path = 0.1

    c.objective.label_smoothing = 0.1

    c.optim.lr = 5e-4
    c.optim.weight_decay = 0.03
    c.optim.decay_rule = "all"
    c.optim.warmup = "5ep"
    c.optim.warmup_prefix = True

    c.total_steps = "200ep"
    c.eval_every = "10ep"
    c.checkpoint_every = "2ep"
