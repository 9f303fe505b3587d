"""Tokens to one vector an image: the class token, the mean of the patches, or attention pooling."""

import jax.numpy as jnp
from flax import nnx

from vit_jax.encoder import LayerNorm, Linear, Mlp, attend


def pool_tokens(tokens, how, prefix):
    """b n d -> b d by "cls" (token 0) or "gap" (mean of the patches, without `prefix` tokens)."""
    return tokens[:, 0] if how == "cls" else tokens[:, prefix:].mean(axis=1)


class AttentionPool(nnx.Module):
    """Multi-head attention pooling (MAP): a learned query reads all tokens, then an MLP.

    Set Transformer's PMA (arXiv:1810.00825) as in arXiv:2106.04560; the names are timm's.
    """

    def __init__(self, width, num_heads, mlp_dim, *, act, init, dtype, rngs):
        self.latent = nnx.Param(init(rngs.params(), (1, 1, width), jnp.float32))
        self.q = Linear(width, width, init=init, dtype=dtype, rngs=rngs)
        self.kv = Linear(width, 2, width, init=init, dtype=dtype, rngs=rngs)
        self.proj = Linear(width, width, init=init, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, dtype=dtype)
        self.mlp = Mlp(width, mlp_dim, act=act, init=init, dtype=dtype, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, tokens):
        """b n d -> b d."""
        b, n, d = tokens.shape
        q = self.q(self.latent[...]).reshape(1, 1, self.num_heads, -1).repeat(b, axis=0)
        kv = self.kv(tokens).reshape(b, n, 2, self.num_heads, -1)
        out, _ = attend(q, kv[:, :, 0], kv[:, :, 1], kernel="matmul")
        x = self.proj(out.reshape(b, d))
        return x + self.mlp(self.norm(x))
