"""DINO on CIFAR-10: self-supervised ViTs with patches of 4 x 4 pixels and k-NN evaluation.

python -m vit_jax.train --config=configs/dino_cifar10.py --workdir=runs/dino_cifar10

SIZE     parameters    epochs    hardware                    test k-NN (20)
micro    305 k         16        2 CPU cores, about 2 h      not run
Ti       5.4 M         200       one GPU                     not run

For comparison, raw pixels reach 45.3% and an untrained micro 31.7%, on images that were re-encoded
as JPEG, measured by
`python -m experiments.dino.baselines --config=configs/dino_cifar10.py --output=FILE`.

The augmentations are those of configs/dino.py without blur, which would remove what is left of an
object at 32 pixels, with four local crops of 16 pixels. The head has fewer prototypes, for ten
classes, and its momentum is chosen for the batch size.

TFDS writes CIFAR-10 to ~/tensorflow_datasets with
`tfds build cifar10 --file_format=array_record`, which needs TensorFlow.
"""

from configs import cifar10, dino
from vit_jax.config import defaults

SIZES = ("micro", "Ti")


def get_config(size="micro"):
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; pass one of {', '.join(SIZES)}")
    c = defaults()
    dino.self_distillation(c)
    cifar10.cifar10_data(c)

    c.augment.scale = (0.4, 1.0)
    c.augment.local_views = 4
    c.augment.local_size = 16
    c.augment.local_scale = (0.05, 0.4)
    c.augment.flip = 0.5
    c.augment.jitter = (0.4, 0.4, 0.2, 0.1)
    c.augment.jitter_prob = 0.8
    c.augment.gray = 0.2
    c.augment.solarize = (0.0, 0.2, 0.0)

    c.model.variant = f"{size}/4"
    c.model.image = 32
    c.model.init = "xavier"

    c.objective.out_dim = 1024
    c.objective.hidden_dim = 256
    c.objective.bottleneck_dim = 64
    c.objective.momentum = 0.99

    c.optim.lr = 1e-3
    c.optim.warmup = "1ep"
    c.optim.freeze_for = "100"

    c.batch_size = 64
    c.total_steps = "16ep"
    c.log_every = "100"
    c.eval_every = "2ep"
    c.checkpoint_every = "1ep"

    if size == "Ti":
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
    return c
