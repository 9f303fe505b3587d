"""DINO on a directory of images, with or without classes.

python -m vit_jax.train --config=configs/dino_own_images.py --workdir=runs/dino_photos \\
    --config.data.dir=DIR

DIR holds images, CLASS/IMAGE, or train/CLASS/IMAGE, as for configs/own_images.py. With two classes
or more, k-NN accuracy is measured on held-out images and selects the best checkpoint; without
classes, all images are used for training and nothing is evaluated. Keys that are not set on the
command line follow from the images of the training split:

model.image                  as in configs/own_images.py; local crops have 3/7 of its side
model.variant                S/16 at 224 pixels, otherwise Ti
batch_size                   as in configs/own_images.py
total_steps                  3,000, but at least 200 and at most 800 epochs
optim.lr                     5e-4 at batch size 256, proportional to the square root
objective.out_dim            65,536 with a million images or more, at least 1,024
objective.momentum           0.996 at batch size 512: 0.996 ** (batch_size / 512)
objective.center_momentum    0.9 ** (batch_size / 512)

To continue from published weights, pass --config.model_init=FILE with the sizes of its model.
"""

import math

from configs import dino, own_images
from vit_jax.config import defaults


def get_config():
    c = defaults()
    dino.self_distillation(c)

    c.data.name = "folder"

    c.augment.scale = (0.4, 1.0)
    c.augment.local_views = 6
    c.augment.local_scale = (0.05, 0.4)
    c.augment.flip = 0.5
    c.augment.jitter = (0.4, 0.4, 0.2, 0.1)
    c.augment.jitter_prob = 0.8
    c.augment.gray = 0.2
    c.augment.blur = (1.0, 0.1, 0.5)
    c.augment.solarize = (0.0, 0.2, 0.0)

    c.model.drop_path = 0.1

    c.optim.end = 1e-6
    c.optim.freeze_for = "100"
    return c


def adapt(config, given, arg):  # noqa: ARG001  the recipe has no argument
    """Set the keys that follow from the images, except those in `given`."""
    source = own_images.open_train(config, given)
    if source.num_classes < 2:
        split = config.data.train.partition("[")[0]
        values = {"data.train": split, "data.val": split, "data.test": split, "evaluators": ()}
        own_images.set_missing(config, given, values)
        source = own_images.open_train(config, given | set(values))
    side = own_images.image_size(source)
    patch = own_images.PATCHES[side]
    outputs = 2 ** min(max(math.ceil(math.log2(len(source) / 16)), 10), 16)
    own_images.set_missing(
        config,
        given,
        {
            "model.image": side,
            "model.variant": f"{'S' if side == 224 else 'Ti'}/{patch}",
            "augment.local_size": round(side * 3 / 7 / patch) * patch,
            "augment.eval_crop": 0.875 if side == 224 else 1.0,
            "objective.out_dim": outputs,
        },
    )
    own_images.fit_duration(config, given, len(source), lr=5e-4, steps=3000, epochs=(200, 800))
    own_images.set_missing(
        config,
        given,
        {
            "objective.momentum": 0.996 ** (config.batch_size / 512),
            "objective.center_momentum": 0.9 ** (config.batch_size / 512),
        },
    )
