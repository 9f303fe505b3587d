"""Input validation of models."""

import jax.numpy as jnp

from vit_jax.errors import UserError


def check_images(images, channels, patch=(1, 1)):
    """Check that a model accepts these images.

    Args:
      images: an array; expected are floats [b, h, w, channels].
      channels: number of channels that the model expects.
      patch: (height, width) of a patch in pixels, which must divide those of the images.

    Raises:
      UserError: if the dtype or the shape is wrong.
    """
    shape = list(images.shape)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images have dtype {images.dtype}; pass normalized floats, such as "
            "vit_jax.augment.normalize(images, mean, std), or use inference.load(...).run(images)"
        )
    if len(shape) == 3:
        raise UserError(
            f"images have shape {shape}, without a batch axis; pass images[None], of shape "
            "[batch, height, width, channels]"
        )
    if len(shape) != 4:
        raise UserError(f"images have shape {shape}; pass [batch, height, width, channels]")
    _, h, w, c = shape
    if c != channels:
        hint = ""
        if shape[1] == channels:
            hint = "; they seem to be channels-first: transpose them with axes (0, 2, 3, 1)"
        raise UserError(
            f"images have shape {shape}, but the model expects {channels} channels{hint}"
        )
    rows, columns = patch
    if h % rows or w % columns:
        raise UserError(
            f"images of {h}x{w} pixels cannot be split into patches of {rows}x{columns} pixels; "
            f"the height must be divisible by {rows}, the width by {columns}"
        )
