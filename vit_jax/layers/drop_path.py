"""Dropout and drop path (stochastic depth), drawn from one key per image."""

import jax
import jax.numpy as jnp
import numpy as np


class Noise:
    """Dropout and drop path of one block.

    An image's noise depends on its own key alone, not on the rest of the batch, its sharding, or
    whether the blocks are scanned. `site` tells apart the places in a block.

    Args:
      keys: one per image [b]; unused where both rates are 0.0.
      shapes: (b, v, n) of each group of tokens.
      dropout: rate of dropout.
      rate: rate of drop path.
    """

    def __init__(self, keys=None, shapes=(), dropout=0.0, rate=0.0):
        self.keys = keys
        self.shapes = shapes
        self.dropout = dropout
        self.rate = rate

    def drop(self, x, site):
        """Dropout of x [t, d]."""
        if not self.dropout:
            return x
        mask = self._mask(site, 1 - self.dropout, (x.size // len(self.keys),))
        return x * mask.astype(x.dtype).reshape(x.shape)

    def drop_path(self, x, site):
        """Drop the branch x [t, d] of whole views (stochastic depth, arXiv:1603.09382)."""
        if isinstance(self.rate, float) and not self.rate:
            return x
        lengths = [n for _, v, n in self.shapes for _ in range(v)]
        mask = self._mask(site, 1 - self.rate, (len(lengths),))  # b v
        tokens = jnp.repeat(mask, np.array(lengths), axis=1, total_repeat_length=sum(lengths))
        return x * tokens.astype(x.dtype).reshape(-1, 1)

    def _mask(self, site, keep, shape):
        def draw(key):
            return jax.random.uniform(jax.random.fold_in(key, site), shape) < keep

        return jax.vmap(draw)(self.keys) / keep
