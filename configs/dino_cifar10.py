"""DINO on CIFAR-10: self-supervised ViTs, with k-NN evaluation, for a CPU and for one GPU.

python -m vit_jax.train --config=configs/dino_cifar10.py --workdir=runs/dino_cifar10

SIZE    model                  parameters    epochs    hardware    test k-NN (20)
mini    mini/8, 4 blocks       468 k         32        CPU         58.4%
Ti      Ti/4                   5.4 M         200       one GPU     not run

Training mini takes two hours on two cores. For comparison, raw pixels reach 45.3% and an untrained
mini 32.3%; after 8 epochs, mini reaches 46.8%. These accuracies are for images that were re-encoded
as JPEG. The learning curve, attention maps and limitations are in experiments/dino/cifar10.

The augmentations are those of configs/dino.py without blur, which would remove what is left of an
object at 32 pixels, with four local crops of 16 pixels. The heads have fewer prototypes, for ten
classes.

TFDS writes CIFAR-10 to ~/tensorflow_datasets with
`tfds build cifar10 --file_format=array_record`, which needs TensorFlow.
"""

from configs import cifar10, dino
from vit_jax.config import defaults

SIZES = ("mini", "Ti")


def get_config(size="mini"):
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; pass one of {', '.join(SIZES)}")
    c = defaults()
    dino.self_distillation(c)
    cifar10.cifar10_data(c)

    c.augment.scale = (0.4, 1.0)
    c.augment.local_views = 4
    c.augment.local_size = 16
    c.augment.flip = 0.5
    c.augment.jitter = (0.4, 0.4, 0.2, 0.1)
    c.augment.jitter_prob = 0.8
    c.augment.gray = 0.2
    c.augment.solarize = (0.0, 0.2, 0.0)

    c.model.image = 32
    c.model.init = "xavier"

    c.optim.freeze_for = "100"

    c.log_every = "100"
    if size == "mini":
        mini(c)
    else:
        tiny(c)
    return c


def mini(c):
    """Set the keys of the recipe for a CPU, which is close to configs/dino_fashion_mnist.py."""
    c.augment.local_scale = (0.1, 0.4)

    c.model.variant = "mini/8"
    c.model.depth = 4
    c.model.num_heads = 3
    c.model.pool = "cls_gap"

    c.objective.out_dim = 1024
    c.objective.hidden_dim = 256
    c.objective.bottleneck_dim = 64
    c.objective.teacher_temp = 0.03
    c.objective.warmup_teacher_temp = 0.03
    c.objective.momentum = 0.98

    c.optim.lr = 1e-3
    c.optim.warmup = "300"

    c.batch_size = 64
    c.total_steps = "32ep"
    c.eval_every = "2ep"
    c.checkpoint_every = "1ep"


def tiny(c):
    """Set the keys of the recipe for a GPU."""
    c.augment.local_scale = (0.05, 0.4)

    c.model.variant = "Ti/4"
    c.model.dtype = "bfloat16"
    c.model.drop_path = 0.1

    c.objective.out_dim = 4096
    c.objective.hidden_dim = 2048
    c.objective.bottleneck_dim = 256
    c.objective.momentum = 0.996

    c.optim.lr = 5e-4
    c.optim.lr_batch = 256
    c.optim.warmup = "10ep"
    c.optim.end = 1e-6

    c.batch_size = 512
    c.total_steps = "200ep"
    c.eval_every = "10ep"
    c.checkpoint_every = "5ep"
