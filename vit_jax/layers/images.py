"""What a model asks of its images."""

import jax.numpy as jnp

from vit_jax.errors import UserError


def check_images(images, channels, patch=1):
    """Raise UserError unless images are normalized floats [b, h, w, channels] that divide into
    patches."""
    shape = list(images.shape)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images are {images.dtype}; pass normalized floats, such as "
            "vit_jax.augment.normalize(images, mean, std), or use inference.load(...).run(images)"
        )
    if len(shape) == 3:
        raise UserError(
            f"images have shape {shape} without a batch axis; pass images[None], which is "
            "[batch, height, width, channels]"
        )
    if len(shape) != 4:
        raise UserError(f"images have shape {shape}; pass [batch, height, width, channels]")
    _, h, w, c = shape
    if c != channels:
        hint = ""
        if shape[1] == channels:
            hint = "; they look like channels first: transpose them by (0, 2, 3, 1)"
        raise UserError(f"images have shape {shape}, but the model takes {channels} channels{hint}")
    if h % patch or w % patch:
        raise UserError(
            f"images of {h}x{w} pixels do not divide into patches of {patch}x{patch} pixels"
        )
