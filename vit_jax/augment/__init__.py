"""Views of an image: `host` crops, resizes and distorts, `device` changes colors and normalizes.

Functions of `host` take one uint8 image [h, w, c] and run in threads and worker processes, in NumPy
and Pillow: `resize`, `shear` and `randaugment` are parts of it. Functions of `device` take a batch
[b, h, w, c] and one typed key per image [b] and run inside the training step, so that an image's
view depends neither on its batch nor on its device.
"""

from vit_jax.augment.device import (
    adjust,
    blur,
    erase,
    erase_box,
    flip,
    gaussian_blur,
    gray,
    jitter,
    normalize,
    photometric,
    solarize,
)
from vit_jax.augment.host import (
    affine,
    eval_view,
    multi_crop,
    pad_crop,
    random_resized_crop,
    to_channels,
    train_view,
    views,
)
from vit_jax.augment.randaugment import OPERATIONS, apply_op

__all__ = [
    "OPERATIONS",
    "adjust",
    "affine",
    "apply_op",
    "blur",
    "erase",
    "erase_box",
    "eval_view",
    "flip",
    "gaussian_blur",
    "gray",
    "jitter",
    "multi_crop",
    "normalize",
    "pad_crop",
    "photometric",
    "random_resized_crop",
    "solarize",
    "to_channels",
    "train_view",
    "views",
]
