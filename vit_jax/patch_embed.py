"""Images to tokens: patches, and where they are.

An image of h x w pixels becomes n = (h / p) (w / p) tokens, one a patch of p x p pixels, row by
row (arXiv:2010.11929, equation 1).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class PatchEmbed(nnx.Module):
    """b h w c -> b n d, as a convolution with stride p or as unfold + linear.

    Both read the same kernel [p, p, c, d] and are the same function. Initialised as torch's
    Conv2d, which DeiT keeps: uniform within 1 / sqrt(p * p * c).
    """

    def __init__(self, patch, channels, width, *, how, dtype, rngs):
        bound = (patch * patch * channels) ** -0.5
        shape = (patch, patch, channels, width)
        key = rngs.params()
        self.kernel = nnx.Param(jax.random.uniform(key, shape, jnp.float32, -bound, bound))
        key = rngs.params()
        self.bias = nnx.Param(jax.random.uniform(key, (width,), jnp.float32, -bound, bound))
        self.how, self.dtype = how, dtype

    def __call__(self, images):
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        p, _, c, d = kernel.shape
        b, h, w, _ = images.shape
        if h % p or w % p:
            raise ValueError(f"{h}x{w} pixels do not divide into patches of {p}x{p}")
        images = images.astype(self.dtype)
        if self.how == "conv":
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                images, kernel, (p, p), "VALID", dimension_numbers=layout
            )
            return x.reshape(b, -1, d) + bias
        return unfold(images, p) @ kernel.reshape(p * p * c, d) + bias


def unfold(images, p):
    """b h w c -> b n (p*p*c): each row is one patch, its pixels row by row."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)
    return x.reshape(b, (h // p) * (w // p), p * p * c)


def sincos2d(grid, width):
    """Fixed positions [1, h*w, d]: sines and cosines of x, then of y.

    Section 2 of "Better plain ViT baselines" (arXiv:2205.01580), which takes them from MoCo v3.
    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions need a width divisible by 4, not {width}")
    h, w = grid
    y, x = np.mgrid[:h, :w]
    omega = 1.0 / 10_000 ** (np.arange(width // 4) / max(width // 4 - 1, 1))
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return jnp.asarray(table[None], jnp.float32)


def resize_positions(table, old_grid, new_grid, prefix):
    """Learned positions [1, prefix + h*w, d] for another grid, the prefix rows untouched.

    Bicubic (a = -0.5) with antialiasing, as timm's `resample_abs_pos_embed`.
    """
    if tuple(old_grid) == tuple(new_grid):
        return table
    d = table.shape[-1]
    rows = table[:, prefix:].reshape(1, *old_grid, d)
    rows = jax.image.resize(rows, (1, *new_grid, d), "cubic", antialias=True)
    return jnp.concatenate([table[:, :prefix], rows.reshape(1, -1, d)], axis=1)
