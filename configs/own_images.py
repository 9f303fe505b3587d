"""Train a ViT from scratch on a directory of images in one directory per class.

python -m vit_jax.train --config=configs/own_images.py --workdir=runs/photos \\
    --config.data.dir=DIR

DIR holds CLASS/IMAGE, or train/CLASS/IMAGE with or without val/ and test/. Missing splits are
taken from the training images: 80% for training, 10% to select the best checkpoint and 10% for the
test, stratified by class with a fixed seed. Keys that are not set on the command line follow from
the images of the training split:

model.image           the largest of 32, 64, 96, 128, 160 and 224 that the median image has
model.variant         Ti with 8 x 8 to 14 x 14 patches
batch_size            a power of two, at most 1/8 of the images, from 8 to 256
total_steps           2,000, but at least 100 and at most 300 epochs
optim.lr              1e-3 at batch size 256, proportional to the square root of the batch size
optim.warmup          10% of total_steps
eval_every            10 evaluations, and checkpoints at the same steps
augment.eval_crop     0.875 at 224 pixels, otherwise the whole image

With fewer than about 100,000 images, fine-tuning is far more accurate: see configs/finetune.py.
"""

import contextlib
import math

from vit_jax import data
from vit_jax.config import defaults
from vit_jax.config import steps as duration
from vit_jax.data import folder
from vit_jax.errors import DecodeError, UserError

PATCHES = {32: 4, 64: 8, 96: 8, 128: 16, 160: 16, 224: 16}  # image size: patch size, pixels
MAX_SAMPLE = 32  # images that are decoded to find the median size


def get_config():
    c = defaults()

    c.data.name = "folder"

    c.augment.crop = "resized"
    c.augment.scale = (0.2, 1.0)
    c.augment.randaugment = "rand-m9-mstd0.5-inc1"
    c.augment.flip = 0.5
    c.augment.erase = 0.25
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0

    c.model.variant = "Ti/16"
    c.model.pool = "gap"
    c.model.drop_path = 0.1

    c.objective.label_smoothing = 0.1

    c.optim.weight_decay = 0.05
    c.optim.warmup_prefix = True
    c.optim.end = 1e-6
    c.optim.clip = 1.0
    return c


def adapt(config, given, arg):  # noqa: ARG001  the recipe has no argument
    """Set the keys that follow from the images, except those in `given`."""
    source = open_train(config, given)
    side = image_size(source)
    set_missing(
        config,
        given,
        {
            "model.image": side,
            "model.variant": f"Ti/{PATCHES[side]}",
            "augment.eval_crop": 0.875 if side == 224 else 1.0,
        },
    )
    fit_duration(config, given, len(source), lr=1e-3, steps=2000, epochs=(100, 300))


def open_train(config, given):
    """Choose the splits of an image folder and return the training split, a `data.Slice`.

    Args:
      config: ConfigDict to change.
      given: keys that keep their values.
    """
    if config.data.name == "folder":
        root = data.data_dir(config, "your images, one directory per class")
        splits = folder.choose_splits(root)
        set_missing(config, given, {f"data.{key}": split for key, split in splits.items()})
    return data.make(config, config.data.train)


def image_size(source):
    """Return the largest size of `PATCHES` that the median image has, at least the smallest."""
    count = min(len(source), MAX_SAMPLE)
    sides = []
    for i in range(count):
        with contextlib.suppress(DecodeError):  # reported when it is read for training
            sides.append(min(source[i * len(source) // count]["image"].shape[:2]))
    median = sorted(sides)[len(sides) // 2] if sides else 0
    return max((size for size in PATCHES if size <= median), default=min(PATCHES))


def fit_duration(config, given, images, *, lr, steps, epochs):
    """Set the batch size, the duration, the learning rate and the intervals.

    Args:
      config: ConfigDict to change.
      given: keys that keep their values.
      images: number of training images.
      lr: learning rate at batch size 256; proportional to the square root of the batch size.
      steps: number of training steps, within the limits of `epochs`.
      epochs: minimum and maximum number of epochs.
    """
    if images < 2:
        raise UserError(f"config.data.train = '{config.data.train}' has only {images} image")
    batch_size = 2 ** int(math.log2(max(images // 8, 1)))
    batch_size = max(min(batch_size, 256), min(8, 2 ** int(math.log2(images))))
    set_missing(config, given, {"batch_size": batch_size})
    per_epoch = images / config.batch_size
    total = round(min(max(steps, epochs[0] * per_epoch), epochs[1] * per_epoch))
    set_missing(config, given, {"total_steps": str(max(total, 2))})
    total = duration(config.total_steps, per_epoch)
    interval = str(max(total // 10, math.ceil(per_epoch)))
    set_missing(
        config,
        given,
        {
            "optim.lr": float(f"{lr * math.sqrt(config.batch_size / 256):.3g}"),
            "optim.warmup": str(total // 10),
            "eval_every": interval,
            "checkpoint_every": interval,
            "log_every": str(min(max(total // 50, 1), 50)),
        },
    )


def set_missing(config, given, values):
    """Set {"optim.lr": 1e-3, ...} in a config, except for the keys in `given`."""
    config.update_from_flattened_dict({k: x for k, x in values.items() if k not in given})
