"""DINO on Imagenette, ten classes of ImageNet: self-supervised ViTs for a CPU and for one GPU.

python -m vit_jax.train --config=configs/dino_imagenette.py --workdir=runs/dino_imagenette

SIZE    model                   image    parameters    epochs    hardware    test k-NN (20)
mini    mini/16, 4 blocks       64       523 k         30        CPU         45.3%
Ti      Ti/16                   128      5.5 M         200       one GPU     not run

Training mini takes half an hour on two cores. For comparison, raw pixels reach 35.5% and an
untrained mini 30.7%. These accuracies are for images that were reduced to 128 pixels and encoded as
JPEG. The learning curve, attention maps and limitations are in experiments/dino/imagenette.

mini is the recipe of configs/dino_cifar10.py with images, patches and crops of twice the size. Ti
has the augmentations of configs/dino_own_images.py, and the values that it chooses for as many
images of 128 pixels.

TFDS writes Imagenette to ~/tensorflow_datasets with
`tfds build imagenette/160px-v2 --file_format=array_record`, which needs TensorFlow.
"""

from configs import dino_cifar10, dino_own_images
from vit_jax.config import defaults

SIZES = ("mini", "Ti")


def get_config(size="mini"):
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; pass one of {', '.join(SIZES)}")
    c = mini() if size == "mini" else tiny()
    c.data.name = "tfds"
    c.data.dataset = "imagenette/160px-v2"
    c.data.train = "train[:95%]"
    c.data.val = "train[95%:]"
    c.data.test = "validation"
    c.data.cache = True  # about 1 GB
    c.data.mean = defaults().data.mean
    c.data.std = defaults().data.std

    c.augment.eval_crop = 1.0
    return c


def mini():
    """Return the recipe for a CPU, without its data."""
    c = dino_cifar10.get_config("mini")

    c.augment.local_size = 32

    c.model.variant = "mini/16"
    c.model.image = 64

    c.log_every = "50"
    c.total_steps = "30ep"
    c.eval_every = "5ep"
    c.checkpoint_every = "5ep"
    return c


def tiny():
    """Return the recipe for a GPU, without its data."""
    c = dino_own_images.get_config()

    c.augment.local_size = 48

    c.model.variant = "Ti/16"
    c.model.image = 128
    c.model.dtype = "bfloat16"

    c.objective.out_dim = 1024
    # EMA scaling rule from batch size 512 (arXiv:2307.13813, definition 1.2).
    c.objective.momentum = 0.996**0.5
    c.objective.center_momentum = 0.9**0.5

    c.optim.lr = 5e-4
    c.optim.warmup = "20ep"

    c.batch_size = 256
    c.total_steps = "200ep"
    c.eval_every = "10ep"
    c.checkpoint_every = "10ep"
    return c
