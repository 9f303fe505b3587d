"""Linear layers, their initializers, and the MLP of an encoder block."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vit_jax.layers import kernels
from vit_jax.layers.norms import LayerNorm


def xavier(key, shape, dtype=jnp.float32):
    """Initialize with Xavier uniform values; the parts of [d, parts, d] are separate kernels."""
    bound = (6 / (shape[0] + shape[-1])) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


# Kernel initializers: "deit" as in DeiT and timm, "big_vision" as in big_vision and MAE. A standard
# deviation of 0.02 suits widths of Ti and above; narrower models train much faster with Xavier.
INITS = {"deit": nnx.initializers.normal(0.02), "big_vision": xavier, "xavier": xavier}


def quick_gelu(x):
    """Approximation of GELU in CLIP, x sigmoid(1.702 x) (arXiv:1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


def swiglu(x):
    """Gate x [..., 2, h]: silu(x_0) * x_1 (arXiv:2002.05202, equation 6), computed in float32."""
    gate, value = jnp.moveaxis(x.astype(kernels.accumulation_dtype(x.dtype)), -2, 0)
    return (jax.nn.silu(gate) * value).astype(x.dtype)


ACTIVATIONS = {
    "gelu": kernels.gelu,
    "gelu_tanh": partial(nnx.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "swiglu": swiglu,
}


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
        return y if self.bias is None else kernels.add_bias(y, self.full_bias()[start:stop])

    def full_bias(self):
        """Return the bias [*features]."""
        return self.bias[...]

    def product(self, x, start=None, stop=None):
        """Multiply x [..., d] by the kernel, without adding the bias; see `part`."""
        kernel = self.kernel[:, start:stop]
        y = kernels.dense(x.astype(self.dtype), kernel.astype(self.dtype))
        return checkpoint_name(y, "dense")  # for remat policies: they cannot see into a custom_vjp


class Mlp(nnx.Module):
    """MLP of an encoder block: linear, activation, dropout, optional LayerNorm, linear.

    With SwiGLU, the first layer has 2 x `mlp_dim` outputs, the gate and the values.

    Args:
      config: a `ViTConfig`.
      kind: "mlp" or "swiglu", as `config.mlp`.
      norm: whether to normalize the hidden units.
      rngs: random number generators for initialization.
    """

    def __init__(self, config, *, kind="mlp", norm=False, rngs):
        make = dict(init=INITS[config.init], dtype=config.dtype, rngs=rngs)
        parts = (2,) if kind == "swiglu" else ()
        self.fc1 = Linear(config.width, *parts, config.mlp_dim, **make)
        layer_norm = LayerNorm(config.mlp_dim, eps=config.norm_eps, dtype=config.dtype)
        self.norm = layer_norm if norm else None
        self.fc2 = Linear(config.mlp_dim, config.width, **make)
        self.act = "swiglu" if kind == "swiglu" else config.act

    def __call__(self, x, drop=lambda x: x):
        """Apply the MLP to x [..., d]; `drop` is applied to the hidden units."""
        x = drop(ACTIVATIONS[self.act](self.fc1(x)))
        return self.fc2(x if self.norm is None else self.norm(x))
