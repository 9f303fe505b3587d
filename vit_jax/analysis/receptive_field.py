"""Receptive fields of the layers of a CNN, attention distance and entropy of those of a ViT.

Arrays in, arrays out; all lengths are in pixels of the image that the model is given.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from vit_jax.analysis.attention import mass_mask

BATCH = 16  # images at a time
SHARE = 0.95  # of the gradient inside the effective field


class Field(NamedTuple):
    """Along one side of the image: unit i of a layer depends on pixels start + i * jump to
    start + i * jump + size - 1, of which some may lie in the padding.

    variance: of where its gradient comes from, if all kernels were uniform, nothing were cut off by
    a ReLU, and shortcut and branch of every block counted alike.
    """

    size: int = 1
    jump: int = 1
    start: int = 0
    variance: float = 0.0

    def after(self, kernel, stride):
        """The field of a layer on top of this one, padded by half its (odd) kernel.

        The closed form for a single path (Araujo et al., Distill 2019, doi:10.23915/distill.00021,
        "Computing receptive field size"), summed up from the image on. Each step of a random walk
        through uniform kernels adds its variance, (kernel^2 - 1) / 12 of the layer's own pixels
        (arXiv:1701.04128, section 2.2).
        """
        return Field(
            self.size + (kernel - 1) * self.jump,
            self.jump * stride,
            self.start - kernel // 2 * self.jump,
            self.variance + self.jump**2 * (kernel**2 - 1) / 12,
        )

    @property
    def std(self):
        return math.sqrt(self.variance)

    def pixels(self, unit, side):
        """The first pixel that the unit depends on in an image of this side, and one past the
        last."""
        first = self.start + unit * self.jump
        return max(first, 0), min(first + self.size, side)


def theoretical(plan, pool):
    """A ResNet's receptive fields, from its convolutions as `variants.convolutions` has them.

    pool: whether a max-pooling of 3x3 with stride 2 follows the stem. -> {path: Field} in order:
    every convolution ("layer1/block0/conv1"; of a shortcut, its own), and after them "stem",
    "pool", every block ("layer1/block0") and every stage ("layer1"). Of several paths through a
    block the largest field counts; all are centered on the same pixel.
    """
    plan = dict(plan)
    kernel, stride, *_ = plan.pop("stem")
    x = Field().after(kernel, stride)
    fields = {"stem": x}
    if pool:
        x = fields["pool"] = x.after(3, 2)
    for block, paths in itertools.groupby(plan, key=lambda path: path.rpartition("/")[0]):
        branch = shortcut = x
        for path in paths:
            kernel, stride, *_ = plan[path]
            if path.endswith("/shortcut"):
                shortcut = fields[path] = shortcut.after(kernel, stride)
            else:
                branch = fields[path] = branch.after(kernel, stride)
        x = branch._replace(variance=(branch.variance + shortcut.variance) / 2)
        stage = block.partition("/")[0]
        fields.pop(stage, None)  # it moves behind its last block
        fields[block] = fields[stage] = x
    return fields


def effective(maps, weights, images, *, draws=4, seed=0):
    """Effective receptive fields: where the gradient of a layer's center unit comes from.

    maps(weights, images) -> {layer: features b h w c}; the unit is [h // 2, w // 2], one channel of
    it. -> {layer: float64 [H, W]}, the mean of |d unit / d pixel| over images, channels of the
    image, and channels of the unit, of which each image draws so many (arXiv:1701.04128, section
    3, where it is a sum over inputs of a unit of one channel).
    """
    import jax
    import jax.numpy as jnp

    layers = jax.eval_shape(maps, weights, images[:1])

    @jax.jit
    def gradient(weights, images, channels, chosen):
        def unit(images):
            found, total = maps(weights, images), 0.0
            for layer, x in found.items():
                center = x[:, x.shape[1] // 2, x.shape[2] // 2].astype(jnp.float32)
                units = jnp.take_along_axis(center, channels[layer][:, None], axis=1)
                total += chosen[layer] * units.sum()
            return total

        return jnp.abs(jax.grad(unit)(images)).mean(-1).sum(0)

    rng, sums = np.random.default_rng(seed), {layer: 0.0 for layer in layers}
    for start, _ in itertools.product(range(0, len(images), BATCH), range(draws)):
        part = images[start : start + BATCH]
        drawn = {name: rng.integers(0, x.shape[-1], len(part)) for name, x in layers.items()}
        for layer in layers:
            chosen = {name: float(name == layer) for name in layers}
            sums[layer] += np.asarray(gradient(weights, part, drawn, chosen), np.float64)
    return {layer: total / (len(images) * draws) for layer, total in sums.items()}


def width(gradient):
    """Standard deviation, along one side, of where a gradient [H, W] comes from: what sigma is of
    a Gaussian. Of rows and columns, the root of the mean of both variances."""
    mass, variances = gradient / gradient.sum(), []
    for axis in (0, 1):
        line, at = mass.sum(1 - axis), np.arange(mass.shape[axis])
        variances.append((line * (at - line @ at) ** 2).sum())
    return float(np.sqrt(np.mean(variances)))


def area(gradient, share=SHARE):
    """The fewest pixels that hold this share of a gradient [H, W]. -> int"""
    return int(mass_mask(gradient, share).sum())


def attention_distance(attention, grid, patch, prefix=0):
    """Mean attention distance: softmax [..., q, m] -> [...], in pixels.

    The distance between the centers of two patches, weighted by attention, the mean over queries
    (arXiv:2010.11929, figure 7 and appendix D.7). The `prefix` tokens before the patches are left
    out, and the rest of each row is scaled to sum to 1; the paper does not say how it treats [CLS].
    Raises ValueError if the patches do not make the grid.
    """
    rows = _patches(attention, grid, prefix)
    return patch * (rows * _distances(grid)).sum(-1).mean(-1)


def even_distance(grid, patch):
    """The attention distance of a head with uniform attention."""
    return patch * float(_distances(grid).mean())


def attention_entropy(attention, grid, prefix=0):
    """Entropy of a patch's attention in bits, the mean over queries: [..., q, m] -> [...]. At most
    log2 of the number of patches; otherwise as `attention_distance`."""
    rows = _patches(attention, grid, prefix)
    return -(rows * np.log2(np.where(rows > 0, rows, 1))).sum(-1).mean(-1)


def _patches(attention, grid, prefix):
    """Attention from patches to patches, in rows that add up to 1."""
    rows = np.asarray(attention, np.float64)[..., prefix:, prefix:]
    if rows.shape[-2:] != (grid[0] * grid[1],) * 2:
        raise ValueError(f"{rows.shape[-2:]} is not from and to a grid of {grid[0]} x {grid[1]}")
    return rows / rows.sum(-1, keepdims=True)


def _distances(grid):
    """Between all pairs of patches, in patches: [n, n]."""
    at = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), -1)
    return np.linalg.norm(at[:, None] - at, axis=-1)
