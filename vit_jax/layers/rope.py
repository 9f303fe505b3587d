"""Two-dimensional rotary position embedding (RoPE, arXiv:2104.09864).

Queries and keys are rotated in pairs of elements by angles that depend on the row and column of a
patch, so that their products depend on the difference of positions. [CLS] and register tokens have
the coordinates 0, whose rotation is the identity.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.layers import kernels


def coordinates(config, grid):
    """Return the coordinates of the tokens of a view.

    Coordinates are indices of rows and columns, which `config.rope_grid` scales to the grid of the
    pretraining as in EVA-02 (arXiv:2303.11331); or, for DINOv3, the centers of patches mapped to
    [-1, 1] along each side.

    Args:
      config: a `ViTConfig` with `rope`.
      grid: rows and columns of patches (h, w).

    Returns:
      float64 [prefix + h * w, 2], in the order of `config.rope_order`, of tokens in the order of
      the model; 0 for the tokens before the patches.
    """

    def axis(count):
        if config.rope == "dinov3":
            return 2 * (np.arange(count) + 0.5) / count - 1
        return np.arange(count) * ((config.rope_grid or count) / count)

    y, x = np.meshgrid(*map(axis, grid), indexing="ij")
    order = (y, x) if config.rope_order == "yx" else (x, y)
    patches = np.stack(order, axis=-1).reshape(-1, 2)
    return np.concatenate([np.zeros((config.prefix, 2)), patches])


class Rope(nnx.Module):
    """Rotation of queries and keys [b, n, heads, e] by angles c @ f, with coordinates c [n, 2].

    Axial frequencies f apply one half of the angles to each coordinate; they decrease from 1 (2 pi
    for DINOv3) as powers of the temperature. The learned frequencies of RoPE-ViT (arXiv:2403.13298,
    section 3.3) mix both coordinates, and differ between heads and blocks. DINOv3 rotates the
    elements i and i + e / 2, the others 2 i and 2 i + 1.
    """

    def __init__(self, config, *, rngs):
        self.size = config.head_size
        self.temperature = config.rope_temperature
        self.cycles = config.rope == "dinov3"  # whether coordinates are in periods, not radians
        self.halves = config.rope == "dinov3"
        mixed = config.rope == "mixed"
        self.freqs = nnx.Param(self._mixed(config.num_heads, rngs)) if mixed else None
        self.dtype = kernels.accumulation_dtype(config.dtype)

    def __call__(self, coordinates):
        """Return cosines and sines [..., n, heads or 1, e / 2] for coordinates [..., n, 2]."""
        f = self._axial() if self.freqs is None else self.freqs[...]
        x = jnp.asarray(coordinates, self.dtype)[..., None, None]
        angles = x[..., 0, :, :] * f[0].astype(self.dtype) + x[..., 1, :, :] * f[1].astype(
            self.dtype
        )
        return jnp.cos(angles), jnp.sin(angles)

    def rotate(self, x, cos, sin):
        """Rotate the pairs of elements of x [b, n, heads, e]; computed in float32."""
        half = self.size // 2
        pairs, axis = ((2, half), -2) if self.halves else ((half, 2), -1)
        a, b = jnp.moveaxis(x.astype(cos.dtype).reshape(*x.shape[:-1], *pairs), axis, 0)
        rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=axis)
        return rotated.reshape(x.shape).astype(x.dtype)

    def _axial(self):
        """Return the frequencies [2, 1, e / 2]."""
        f = self._powers() * (2 * np.pi if self.cycles else 1)
        zero = np.zeros_like(f)
        return np.stack([np.concatenate([f, zero]), np.concatenate([zero, f])])[:, None]

    def _mixed(self, num_heads, rngs):
        """Return initial frequencies [2, heads, e / 2]: axial ones, rotated by a random angle."""
        angle = jax.random.uniform(rngs.params(), (num_heads, 1), maxval=2 * jnp.pi)
        f = jnp.asarray(self._powers(), jnp.float32)

        def project(wave):
            return jnp.concatenate([f * wave(angle), f * wave(angle + jnp.pi / 2)], axis=-1)

        return jnp.stack([project(jnp.cos), project(jnp.sin)])

    def _powers(self):
        """Return powers of the temperature, from 1 down to temperature ** (4 / e - 1) [e / 4]."""
        count = self.size // 4
        return self.temperature ** -(np.arange(count) / count)
