"""LayerNorm."""

import jax.numpy as jnp
from flax import nnx

from vit_jax.layers import kernels


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, accumulated in float32. eps is 1e-6 up to DINOv2."""

    def __init__(self, width, *, eps=1e-6, dtype):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x):
        x = x.astype(kernels.wide(self.dtype))
        return kernels.normalize(x, self.scale[...], self.bias[...], self.eps).astype(self.dtype)
