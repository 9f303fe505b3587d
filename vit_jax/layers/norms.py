"""Normalization layers."""

import jax.numpy as jnp
from flax import nnx

from vit_jax.layers import kernels


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, computed in float32 (float64 for float64).

    The default eps is that of ViT, DeiT, DINO and DINOv2.
    """

    def __init__(self, width, *, eps=1e-6, dtype):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x):
        return kernels.normalize(x.astype(self.dtype), self.scale[...], self.bias[...], self.eps)
