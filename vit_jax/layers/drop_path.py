"""Dropout and drop path (stochastic depth), with one random key per image."""

import jax
import jax.numpy as jnp
import numpy as np


class Dropout:
    """Dropout and drop path of one block.

    The masks of an image depend only on its key, not on the rest of the batch, its sharding, or
    whether the blocks are scanned. Methods take a `site`, an integer that gives each use within a
    block a different mask.

    Args:
      keys: one key per image [b]; unused if both rates are 0.0.
      shapes: (b, v, n) of each group of views with the same number of tokens n.
      dropout_rate: dropout rate.
      drop_path_rate: drop path rate.
    """

    def __init__(self, keys=None, shapes=(), dropout_rate=0.0, drop_path_rate=0.0):
        self.keys = keys
        self.shapes = shapes
        self.dropout_rate = dropout_rate
        self.drop_path_rate = drop_path_rate

    def drop(self, x, site):
        """Apply dropout to x [t, d]."""
        if not self.dropout_rate:
            return x
        mask = self._mask(site, 1 - self.dropout_rate, (x.size // len(self.keys),))
        return x * mask.astype(x.dtype).reshape(x.shape)

    def drop_path(self, x, site):
        """Apply drop path to the residual branch x [t, d], per view (arXiv:1603.09382)."""
        # The rate is a traced array unless drop path is off.
        if isinstance(self.drop_path_rate, float) and not self.drop_path_rate:
            return x
        lengths = [n for _, v, n in self.shapes for _ in range(v)]
        mask = self._mask(site, 1 - self.drop_path_rate, (len(lengths),))  # b v
        tokens = jnp.repeat(mask, np.array(lengths), axis=1, total_repeat_length=sum(lengths))
        return x * tokens.astype(x.dtype).reshape(-1, 1)

    def _mask(self, site, keep_rate, shape):
        """Return masks [b, *shape] of 0 and 1 / keep_rate."""

        def draw(key):
            return jax.random.uniform(jax.random.fold_in(key, site), shape) < keep_rate

        return jax.vmap(draw)(self.keys) / keep_rate
