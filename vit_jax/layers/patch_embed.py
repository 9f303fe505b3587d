"""Patch embedding and position embedding (arXiv:2010.11929, equation 1).

An image of h x w pixels becomes n = (h / p) (w / q) tokens, one per patch of p x q pixels, in
row-major order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from vit_jax.layers import kernels
from vit_jax.schema import pair


class PatchEmbed(nnx.Module):
    """Patch embedding, [b, h, w, c] to [b, n, d].

    It is computed as a convolution with stride (p, q) (`how="conv"`) or as unfold followed by a
    linear layer (`how="linear"`). Both are the same function with the same kernel [p, q, c, d].
    "auto" is the faster one on the platform.

    The initialization is the default of the convolution in the reference: with `init="big_vision"`
    that of Flax's Conv, LeCun normal for the kernel and a bias of 0; otherwise that of PyTorch's
    Conv2d, uniform in +-1 / sqrt(p * q * c) for kernel and bias.

    Args:
      patch: size of a patch in pixels: the side of a square, or (height p, width q).
    """

    def __init__(self, patch, channels, width, *, how, bias=True, init, dtype, rngs):
        p, q = pair(patch)
        bound = (p * q * channels) ** -0.5

        def uniform(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        shape = (p, q, channels, width)
        kernel_init = bias_init = uniform
        if init == "big_vision":
            kernel_init, bias_init = nnx.initializers.lecun_normal(), nnx.initializers.zeros
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape))
        self.bias = nnx.Param(bias_init(rngs.params(), (width,))) if bias else None
        self.how = how
        self.dtype = dtype

    def __call__(self, images):
        kernel = self.kernel[...].astype(self.dtype)
        p, q, c, d = kernel.shape
        b = images.shape[0]
        images = images.astype(self.dtype)
        if kernels.patch_embedding(self.how) == "conv":
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                images, kernel, (p, q), "VALID", dimension_numbers=layout
            )
            x = x.reshape(b, -1, d)
        else:
            x = unfold(images, p, q) @ kernel.reshape(p * q * c, d)
            # Otherwise, XLA on GPU lays out the tokens of all blocks with the batch in the last
            # axis, and transposes them in every layer.
            x = with_layout_constraint(x, Layout(major_to_minor=(0, 1, 2)))
        return x if self.bias is None else kernels.add_bias(x, self.bias[...])


def unfold(images, p, q):
    """Rearrange images [b, h, w, c] into patches [b, n, p * q * c], both in row-major order."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // p, p, w // q, q, c).swapaxes(2, 3)
    return x.reshape(b, (h // p) * (w // q), p * q * c)


def adapt_kernel(kernel, patch, channels):
    """Adapt the kernel of a trained patch embedding to other patches and channels.

    Channels as in timm's `adapt_input_conv`: they are summed for one channel, which is the same
    function of a gray image; otherwise they are repeated, and scaled so that the sum stays equal.
    Patches as in FlexiViT (arXiv:2212.08013, section 3.4): the embedding of a larger patch is that
    of the original one before it was resized; see also timm's `resample_patch_embed`.

    Args:
      kernel: [p, q, c, d].
      patch: size of the new patches in pixels: the side of squares, or (height, width).
      channels: new number of channels.

    Returns:
      [height, width, channels, d], in float32; the same array if nothing differs.
    """
    *old, count, _ = kernel.shape
    new = pair(patch)
    if (*new, channels) == (*old, count):
        return kernel
    if channels == 1:
        kernel = kernel.sum(axis=2, keepdims=True)
    elif channels != count:
        repeated = np.tile(kernel, (1, 1, -(-channels // count), 1))
        kernel = repeated[:, :, :channels] * (count / channels)
    if new != tuple(old):
        rows, columns = (
            np.linalg.pinv(cubic_matrix(p, size, "timm").T)  # [size, p]
            for p, size in zip(old, new, strict=True)
        )
        kernel = np.einsum("Yy,Xx,yxcd->YXcd", rows, columns, np.asarray(kernel, np.float64))
    return np.asarray(kernel, np.float32)


def sincos2d(grid, width):
    """Return fixed 2-D sin-cos position embeddings: sin x, cos x, sin y, cos y.

    The order of the quarters and the frequencies 10000^(-i / (d / 4 - 1)) are those of big_vision's
    "Better plain ViT baselines" (arXiv:2205.01580, section 2), after MoCo v3. MAE has the same
    order of the quarters, but the frequencies 10000^(-i / (d / 4)).

    Args:
      grid: rows and columns of patches (h, w).
      width: token width d, divisible by 4.

    Returns:
      Position embeddings [1, h * w, d], float32.
    """
    h, w = grid
    y, x = np.mgrid[:h, :w]
    omega = 1.0 / 10_000 ** (np.arange(width // 4) / max(width // 4 - 1, 1))
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return jnp.asarray(table[None], jnp.float32)


# How reference implementations resize position embeddings: parameter a of the cubic kernel, whether
# to antialias, and an offset added to the new grid size when the scale factor is computed.
RESIZE = {
    "timm": (-0.5, True, 0.0),  # `resample_abs_pos_embed`; DINOv2 with registers
    "dino": (-0.75, False, 0.1),  # `interpolate_pos_encoding`; DINOv2 without registers
    "deit": (-0.75, False, 0.0),  # DeiT's `main.py --finetune`; MAE's `interpolate_pos_embed`
}


def resize_positions(table, old_grid, new_grid, prefix, rule="timm"):
    """Resize learned position embeddings to another grid by bicubic interpolation.

    The interpolation along each side is a constant matrix, applied at the highest precision.

    Args:
      table: learned position embeddings [1, prefix + h * w, d].
      old_grid: rows and columns of `table` (h, w).
      new_grid: rows and columns to resize to.
      prefix: number of leading rows to keep unchanged, such as that of [CLS].
      rule: a key of `RESIZE`; use the one that the weights were trained with.

    Returns:
      Position embeddings [1, prefix + new rows * new columns, d].
    """
    if tuple(old_grid) == tuple(new_grid):
        return table
    d = table.shape[-1]
    rows, columns = (
        jnp.asarray(cubic_matrix(old, new, rule), table.dtype)
        for old, new in zip(old_grid, new_grid, strict=True)
    )
    grid = table[0, prefix:].reshape(*old_grid, d)
    grid = jnp.einsum("Hh,Ww,hwd->HWd", rows, columns, grid, precision="highest")
    return jnp.concatenate([table[:, :prefix], grid.reshape(1, -1, d)], axis=1)


@functools.cache
def cubic_matrix(old, new, rule):
    """Return the matrix [new, old] of cubic interpolation along one side, float64.

    Each row sums to 1. Row i is centered at (i + 1/2) old / (new + offset) - 1/2 (half-pixel
    centers). Beyond the edge, "dino" and "deit" repeat the edge value and "timm" has zero weight.
    """
    a, antialias, offset = RESIZE[rule]
    center = (np.arange(new)[:, None] + 0.5) * old / (new + offset) - 0.5
    if antialias:
        weights = cubic((np.arange(old) - center) / max(old / new, 1), a)
        return weights / weights.sum(1, keepdims=True)
    taps = np.floor(center).astype(int) + np.arange(-1, 3)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), cubic(taps - center, a))
    return matrix


def cubic(x, a):
    """Evaluate the cubic convolution kernel: 1 at 0, 0 at other integers and for |x| > 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
