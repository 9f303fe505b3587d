"""Data augmentation: geometric transforms and RandAugment on the host, color on the device.

Functions in `host` take one uint8 image [h, w, c] and run in threads and worker processes, with
NumPy and Pillow; `resize`, `shear` and `randaugment` implement parts of it. Functions in `device`
take a batch of images [b, h, w, c] with one typed PRNG key per image [b] and run inside the
training step. With one key per image, a view depends neither on the batch nor on the device.
"""
# ruff: noqa: F401

from vit_jax.augment.device import erase, erase_box, gaussian_blur, normalize, photometric, solarize
from vit_jax.augment.host import eval_view, transforms
from vit_jax.augment.randaugment import OPERATIONS, apply_op
