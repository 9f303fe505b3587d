"""Pooling of tokens to one vector per image, and DINO's projection head.

The classifier is a `mlp.Linear`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.layers import kernels
from vit_jax.layers.attention import attend
from vit_jax.layers.mlp import INITS, Linear, Mlp
from vit_jax.layers.norms import LayerNorm


def pool_tokens(tokens, how, prefix):
    """b n d -> b d by "cls" (token 0) or "gap" (mean of the patches, without `prefix` tokens)."""
    return tokens[:, 0] if how == "cls" else tokens[:, prefix:].mean(axis=1)


class AttentionPool(nnx.Module):
    """Multi-head attention pooling (MAP): a learned query reads all tokens, then an MLP.

    Set Transformer's PMA (arXiv:1810.00825) as in arXiv:2106.04560; the names are timm's.
    """

    def __init__(self, config, *, rngs):
        width, init = config.width, INITS[config.init]
        make = dict(init=init, dtype=config.dtype, rngs=rngs)
        self.latent = nnx.Param(init(rngs.params(), (1, 1, width), jnp.float32))
        self.q = Linear(width, width, **make)
        self.kv = Linear(width, 2, width, **make)
        self.proj = Linear(width, width, **make)
        self.norm = LayerNorm(width, dtype=config.dtype)
        self.mlp = Mlp(config, rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(self, tokens):
        """b n d -> b d."""
        b, n, d = tokens.shape
        q = self.q(self.latent[...]).reshape(1, 1, self.num_heads, -1).repeat(b, axis=0)
        kv = self.kv(tokens).reshape(b, n, 2, self.num_heads, -1)
        out, _ = attend(q, kv[:, :, 0], kv[:, :, 1], kernel="matmul")
        x = self.proj(out.reshape(b, d))
        return x + self.mlp(self.norm(x))


class DinoHead(nnx.Module):
    """Features to prototypes: an MLP of three layers, then weight-normed on the unit sphere.

    arXiv:2104.14294, appendix C. norm_last_layer: prototypes of norm 1, else the norms are learned.
    """

    def __init__(self, width, *, hidden_dim, bottleneck_dim, out_dim, norm_last_layer, dtype, rngs):
        init = INITS["deit"]
        self.fc1 = Linear(width, hidden_dim, init=init, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden_dim, hidden_dim, init=init, dtype=dtype, rngs=rngs)
        self.fc3 = Linear(hidden_dim, bottleneck_dim, init=init, dtype=dtype, rngs=rngs)
        self.last_layer = Prototypes(
            bottleneck_dim, out_dim, learn_norm=not norm_last_layer, dtype=dtype, rngs=rngs
        )

    def __call__(self, x):
        """... d -> ... k, float32."""
        x = self.fc2(kernels.gelu(self.fc1(x)))
        x = self.fc3(kernels.gelu(x)).astype(jnp.float32)
        # As torch's `normalize`: a vector shorter than 1e-12 stays as it is.
        return self.last_layer(
            x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
        )


class Prototypes(nnx.Module):
    """x v / |v| * g, with g = 1 or learned: weight normalization (arXiv:1602.07868, equation 2).

    The norms scale the output's columns instead of the kernel, the largest array of the model: a
    training step of the head is 25 times as fast on CPU.
    """

    def __init__(self, width, count, *, learn_norm, dtype, rngs):
        bound = width**-0.5  # torch's Linear; the reference does not initialize this one layer
        shape = (width, count)
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
        )
        self.scale = nnx.Param(jnp.ones(count)) if learn_norm else None
        self.dtype = dtype

    def __call__(self, x):
        kernel = self.kernel[...]
        factor = jax.lax.rsqrt((kernel * kernel).sum(0))
        if self.scale is not None:
            factor = factor * self.scale[...]
        lead = x.shape[:-1]
        y = kernels.dense(x.astype(self.dtype).reshape(-1, x.shape[-1]), kernel.astype(self.dtype))
        return (y.astype(jnp.float32) * factor).reshape(*lead, -1)
