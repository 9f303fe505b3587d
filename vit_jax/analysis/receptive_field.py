"""Receptive fields of CNN layers, and attention distance and entropy of ViT heads.

All functions take and return arrays. Lengths are in pixels of the model's input image.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from vit_jax.analysis.attention import mass_mask
from vit_jax.schema import pair

BATCH = 16  # images per gradient computation
SHARE = 0.95  # of the gradient inside the effective receptive field


class Field(NamedTuple):
    """The theoretical receptive field of a layer, along one side of the image.

    Unit i depends on the pixels from start + i * jump to start + i * jump + size - 1, including
    padding.

    Attributes:
      size: size of the receptive field, in pixels.
      jump: stride with respect to the image, in pixels.
      start: first pixel of unit 0; negative in the padding.
      variance: variance of the gradient's spatial distribution for uniform kernels, without ReLU,
        and with equal weight on the shortcut and the branch of every block.
    """

    size: int = 1
    jump: int = 1
    start: int = 0
    variance: float = 0.0

    def after(self, kernel, stride):
        """Return the field of a following layer, padded by half its (odd) kernel size.

        Size, jump and start follow the closed form for a single path (Araujo et al., Distill 2019,
        doi:10.23915/distill.00021, "Computing receptive field size"), accumulated from the image
        onward. Each uniform kernel is a step of a random walk that adds its variance,
        (kernel^2 - 1) / 12 in units of the layer's input pixels (arXiv:1701.04128, section 2.2).
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
        """Return the first pixel of a unit's field inside the image, and one past the last.

        Args:
          unit: index of the unit.
          side: image size in pixels.
        """
        first = self.start + unit * self.jump
        return max(first, 0), min(first + self.size, side)


def theoretical(plan, pool):
    """Compute the theoretical receptive fields of a ResNet.

    Where a block has several paths, the largest field counts; all are centered on the same pixel.

    Args:
      plan: convolutions of the model, from `variants.convolutions`.
      pool: whether a 3x3 max pooling with stride 2 follows the stem.

    Returns:
      {path: `Field`} in execution order: every convolution ("layer1/block0/conv1"; a shortcut has
      the field of its own path), "stem", "pool", and every block ("layer1/block0") and stage
      ("layer1") after its convolutions.
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
        fields.pop(stage, None)  # reinserted after its latest block
        fields[block] = fields[stage] = x
    return fields


def effective(maps, weights, images, *, draws=4, seed=0):
    """Compute effective receptive fields: the gradient of the center unit of each layer.

    The unit is one randomly drawn channel at [h // 2, w // 2]. The paper (arXiv:1701.04128,
    section 3) instead sums over the inputs, for a unit of a single channel.

    Args:
      maps: function `(weights, images) -> {layer: features [b, h, w, c]}`.
      weights: pytree, passed to `maps`.
      images: [b, H, W, c].
      draws: channels drawn per image.
      seed: seed of the draws.

    Returns:
      {layer: float64 [H, W]}, the mean of |d unit / d pixel| over images, image channels and draws.
    """
    import jax
    import jax.numpy as jnp

    layers = jax.eval_shape(maps, weights, images[:1])

    @jax.jit
    def gradient(weights, images, channels, selected):
        def unit(images):
            total = 0.0
            for layer, x in maps(weights, images).items():
                center = x[:, x.shape[1] // 2, x.shape[2] // 2].astype(jnp.float32)
                units = jnp.take_along_axis(center, channels[layer][:, None], axis=1)
                total += selected[layer] * units.sum()
            return total

        return jnp.abs(jax.grad(unit)(images)).mean(-1).sum(0)

    rng = np.random.default_rng(seed)
    sums = {layer: 0.0 for layer in layers}
    for start, _ in itertools.product(range(0, len(images), BATCH), range(draws)):
        batch = images[start : start + BATCH]
        channels = {name: rng.integers(0, x.shape[-1], len(batch)) for name, x in layers.items()}
        for layer in layers:
            selected = {name: float(name == layer) for name in layers}
            sums[layer] += np.asarray(gradient(weights, batch, channels, selected), np.float64)
    return {layer: total / (len(images) * draws) for layer, total in sums.items()}


def width(gradient):
    """Return the standard deviation of a gradient's spatial distribution, in pixels.

    For a Gaussian this is its sigma. The variances along both axes are averaged.

    Args:
      gradient: non-negative [H, W].
    """
    mass = gradient / gradient.sum()
    variances = []
    for axis in (0, 1):
        marginal = mass.sum(1 - axis)
        coordinates = np.arange(mass.shape[axis])
        variances.append((marginal * (coordinates - marginal @ coordinates) ** 2).sum())
    return float(np.sqrt(np.mean(variances)))


def area(gradient, share=SHARE):
    """Return the smallest number of pixels that hold this share of a gradient [H, W]."""
    return int(mass_mask(gradient, share).sum())


def attention_distance(attention, grid, patch, prefix=0):
    """Compute the mean attention distance of each head, in pixels.

    The distance between the centers of query and key patch, weighted by the attention and averaged
    over the queries (arXiv:2010.11929, figure 7 and appendix D.7). Prefix tokens are dropped and
    the remaining rows are renormalized to sum to 1; the paper does not specify how it treats [CLS].

    Args:
      attention: softmax outputs [..., q, m].
      grid: (rows, columns) of patches.
      patch: patch size in pixels: the side of a square, or (height, width).
      prefix: number of tokens before the patch tokens.

    Returns:
      float64 [...].

    Raises:
      ValueError: if the number of patches does not match the grid.
    """
    weights = _patch_attention(attention, grid, prefix)
    return (weights * _pairwise_distances(grid, patch)).sum(-1).mean(-1)


def uniform_distance(grid, patch):
    """Return the attention distance of a head with uniform attention, in pixels."""
    return float(_pairwise_distances(grid, patch).mean())


def attention_entropy(attention, grid, prefix=0):
    """Compute the mean entropy of each head's attention over the patches, in bits.

    The maximum is log2 of the number of patches. Prefix tokens are treated as in
    `attention_distance`.

    Args:
      attention: softmax outputs [..., q, m].
      grid: (rows, columns) of patches.
      prefix: number of tokens before the patch tokens.

    Returns:
      float64 [...].

    Raises:
      ValueError: if the number of patches does not match the grid.
    """
    weights = _patch_attention(attention, grid, prefix)
    return -(weights * np.log2(np.where(weights > 0, weights, 1))).sum(-1).mean(-1)


def _patch_attention(attention, grid, prefix):
    """Return the attention between patches, with rows renormalized to sum to 1."""
    weights = np.asarray(attention, np.float64)[..., prefix:, prefix:]
    if weights.shape[-2:] != (grid[0] * grid[1],) * 2:
        raise ValueError(
            f"attention of shape {weights.shape[-2:]} does not match a {grid[0]} x {grid[1]} grid"
        )
    return weights / weights.sum(-1, keepdims=True)


def _pairwise_distances(grid, patch):
    """Return the distances [n, n] between the centers of all pairs of patches, in pixels."""
    centers = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), -1) * pair(patch)
    return np.linalg.norm(centers[:, None] - centers, axis=-1)
