"""A small ViT on scikit-learn's digits: 1,797 images of 8x8 pixels in 10 classes, on a CPU.

python -m vit_jax.train --config=configs/digits.py --workdir=runs/digits

Training takes 45 to 52 s on two CPU cores. Test accuracy: 98.1%, the mean of five seeds (97.5 to
98.3%); see experiments/quickstart/results. The hyperparameters were selected by cross-validation
on all images outside the test split. Within a run, the best checkpoint is selected on the 180
images of the validation split.
"""

from vit_jax.config import defaults


def get_config():
    c = defaults()

    c.data.name = "digits"
    c.data.train = "train"
    c.data.val = "val"
    c.data.test = "test"
    c.data.cache = True
    c.data.mean = (0.305,)
    c.data.std = (0.376,)

    c.augment.crop = "none"
    # Weak augmentation: a digit is eight pixels wide, and interpolation blurs it.
    c.augment.rotate = 5.0
    c.augment.shift = 0.05
    c.augment.zoom = 0.05
    c.augment.flip = 0.0
    c.augment.eval_crop = 1.0

    c.model.variant = "nano/2"
    c.model.image = 8
    c.model.channels = 1
    c.model.pool = "gap"
    c.model.init = "xavier"

    c.objective.ema = 0.98

    c.optim.lr = 5e-3
    c.optim.weight_decay = 0.5
    c.optim.warmup = "4ep"

    c.batch_size = 64
    c.total_steps = "60ep"
    c.log_every = "10"
    c.eval_every = "20ep"
    c.checkpoint_every = "20ep"
    return c
