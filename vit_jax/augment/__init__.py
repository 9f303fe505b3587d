"""Views of an image: `host` crops, resizes and distorts, `device` changes colors and normalizes.

Functions of `host` take one uint8 image [h, w, c] and run in threads and worker processes, in NumPy
and Pillow: `resize`, `shear` and `randaugment` are parts of it. Functions of `device` take a batch
[b, h, w, c] and one typed key per image [b] and run inside the training step, so that an image's
view depends neither on its batch nor on its device.
"""
# ruff: noqa: F401

from vit_jax.augment.device import erase, erase_box, gaussian_blur, normalize, photometric, solarize
from vit_jax.augment.host import eval_view, transforms
from vit_jax.augment.randaugment import OPERATIONS, apply_op
