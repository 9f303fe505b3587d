"""Linear layers, their initializers, and the MLP of an encoder block."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vit_jax.layers import kernels


def xavier(key, shape, dtype=jnp.float32):
    """Initialize with Xavier uniform values; q, k and v of [d, 3, d] count as separate kernels."""
    bound = (6 / (shape[0] + shape[-1])) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


# Kernel initializers: "deit" as in DeiT and timm, "big_vision" as in big_vision and MAE. A standard
# deviation of 0.02 suits widths of Ti and above; narrower models train much faster with Xavier.
INITS = {"deit": nnx.initializers.normal(0.02), "big_vision": xavier, "xavier": xavier}
ACTIVATIONS = {"gelu": kernels.gelu, "gelu_tanh": partial(nnx.gelu, approximate=True)}


class Linear(nnx.Module):
    """Linear layer, [..., d] to [..., *features].

    Args:
      width: input features d.
      *features: output features, one or more axes.
      bias: whether to add a bias.
      init: initializer of the kernel.
      dtype: dtype of the product; parameters are float32.
      rngs: random number generators for initialization.
    """

    def __init__(self, width, *features, bias=True, init, dtype, rngs):
        self.kernel = nnx.Param(init(rngs.params(), (width, *features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features)) if bias else None
        self.dtype = dtype

    def __call__(self, x):
        return self.part(x, None, None)

    def part(self, x, start, stop):
        """Compute the outputs [..., start:stop, *features[1:]] of a layer with several axes."""
        y = self.product(x, start, stop)
        return y if self.bias is None else kernels.add_bias(y, self.bias[start:stop])

    def product(self, x, start=None, stop=None):
        """Multiply x [..., d] by the kernel, without adding the bias; see `part`."""
        kernel = self.kernel[:, start:stop]
        y = kernels.dense(x.astype(self.dtype), kernel.astype(self.dtype))
        return checkpoint_name(y, "dense")  # for remat policies: they cannot see into a custom_vjp


class Mlp(nnx.Module):
    """MLP of an encoder block: linear, GELU, dropout, linear."""

    def __init__(self, config, *, rngs):
        make = dict(init=INITS[config.init], dtype=config.dtype, rngs=rngs)
        self.fc1 = Linear(config.width, config.mlp_dim, **make)
        self.fc2 = Linear(config.mlp_dim, config.width, **make)
        self.act = config.act

    def __call__(self, x, drop=lambda x: x):
        """Apply the MLP to x [..., d]; `drop` is applied to the hidden units."""
        return self.fc2(drop(ACTIVATIONS[self.act](self.fc1(x))))
