"""Linear layers, their initialization, and the MLP of a block."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vit_jax.layers import kernels


def xavier(key, shape, dtype=jnp.float32):
    """Xavier uniform initialization; in [d, 3, d] the kernels of q, k and v are separate."""
    bound = (6 / (shape[0] + shape[-1])) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


# Kernels of linear layers as in DeiT and timm, and as in big_vision and MAE. 0.02 suits the widths
# of Ti and more: a narrow model learns much faster from Xavier.
INITS = {"deit": nnx.initializers.normal(0.02), "big_vision": xavier}
ACTIVATIONS = {"gelu": kernels.gelu, "gelu_tanh": partial(nnx.gelu, approximate=True)}


class Linear(nnx.Module):
    """... d -> ... *features, with an optional bias. Parameters in float32, product in `dtype`."""

    def __init__(self, width, *features, bias=True, init, dtype, rngs):
        self.kernel = nnx.Param(init(rngs.params(), (width, *features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features)) if bias else None
        self.dtype = dtype

    def __call__(self, x):
        lead = x.shape[:-1]
        kernel = self.kernel[...].astype(self.dtype)
        y = kernels.dense(x.astype(self.dtype).reshape(-1, x.shape[-1]), kernel)
        y = checkpoint_name(y, "dense")  # for remat: a custom_vjp hides its products
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return y.reshape(*lead, *kernel.shape[1:])


class Mlp(nnx.Module):
    """Two linear layers with a GELU between them, and dropout after each."""

    def __init__(self, config, *, rngs):
        make = dict(init=INITS[config.init], dtype=config.dtype, rngs=rngs)
        self.fc1 = Linear(config.width, config.mlp_dim, **make)
        self.fc2 = Linear(config.mlp_dim, config.width, **make)
        self.act = config.act

    def __call__(self, x, drop=lambda x: x):
        return self.fc2(drop(ACTIVATIONS[self.act](self.fc1(x))))
