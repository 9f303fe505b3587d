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
      group: index of the group that x belongs to; None: x has the tokens of all groups.
    """

    def __init__(self, keys=None, shapes=(), dropout_rate=0.0, drop_path_rate=0.0, group=None):
        self.keys = keys
        self.shapes = shapes
        self.dropout_rate = dropout_rate
        self.drop_path_rate = drop_path_rate
        self.group = group

    def drop(self, x, site):
        """Apply dropout to x, [t, d] or [b * v, n, d] of the group."""
        if not self.dropout_rate:
            return x
        lengths = np.array([v * n for _, v, n in self.shapes]) * x.shape[-1]
        mask = self._mask(site, 1 - self.dropout_rate, (int(lengths.sum()),)).astype(x.dtype)
        if self.group is None:
            return x * mask.reshape(x.shape)
        _, _, n = self.shapes[self.group]
        mask = self._of_group(mask, lengths).reshape(len(x), n, -1)
        return x * jnp.pad(mask, [(0, 0), (0, x.shape[1] - n), (0, 0)])  # x may be padded

    def drop_path(self, x, site):
        """Apply drop path to the residual branch x, per view (arXiv:1603.09382).

        Args:
          x: [t, d], or [b * v, n, d] of the group.
          site: see the class.
        """
        # The rate is a traced array unless drop path is off.
        if isinstance(self.drop_path_rate, float) and not self.drop_path_rate:
            return x
        lengths = [n for _, v, n in self.shapes for _ in range(v)]
        mask = self._mask(site, 1 - self.drop_path_rate, (len(lengths),))  # b v
        if self.group is not None:
            mask = self._of_group(mask, [v for _, v, _ in self.shapes])
            return x * mask.astype(x.dtype).reshape(-1, 1, 1)
        tokens = jnp.repeat(mask, np.array(lengths), axis=1, total_repeat_length=sum(lengths))
        return x * tokens.astype(x.dtype).reshape(-1, 1)

    def _of_group(self, mask, lengths):
        """Return the columns of a mask [b, sum of the lengths of all groups] of the group."""
        start = int(sum(lengths[: self.group]))
        return mask[:, start : start + int(lengths[self.group])]

    def _mask(self, site, keep_rate, shape):
        """Return masks [b, *shape] of 0 and 1 / keep_rate."""

        def draw(key):
            return jax.random.uniform(jax.random.fold_in(key, site), shape) < keep_rate

        return jax.vmap(draw)(self.keys) / keep_rate
