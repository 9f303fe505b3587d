"""Statistics of a model's weights and tokens: filters, position embeddings, similarities, sizes.

A grid is (rows, columns) of patches: the image size divided by the patch size.
"""

import math

import numpy as np

from vit_jax import variants
from vit_jax.analysis.attention import fix_signs, on_grid
from vit_jax.flops import count_params

TINY = 1e-12  # avoids division by zero


def filters(kernel, count=28):
    """Compute the principal components of the patch embedding filters or the first convolution.

    Figure 7, left, of arXiv:2010.11929.

    Args:
      kernel: [p, p, c, d], d filters of p x p pixels.
      count: maximum number of components. There are at most p * p * c and at most d.

    Returns:
      A tuple `(components, shares)`:
        components: float32 [count, p, p, c] of unit norm; the largest weight of each is positive.
        shares: float64 [count], share of the variance that each component explains.
    """
    shape = np.shape(kernel)[:3]
    x = np.asarray(kernel, np.float64).reshape(-1, np.shape(kernel)[-1]).T
    _, spread, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    axes = fix_signs(axes[:count])
    variance = spread**2
    shares = variance[:count] / max(variance.sum(), TINY)
    return axes.reshape(-1, *shape).astype(np.float32), shares


def cosines(a, b):
    """Compute the cosine similarity of all pairs of rows; 0 for rows of zeros.

    Args:
      a: [..., n, d].
      b: [..., m, d].

    Returns:
      float64 [..., n, m].
    """
    a, b = (
        x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), TINY)
        for x in (np.asarray(a, np.float64), np.asarray(b, np.float64))
    )
    return a @ b.swapaxes(-1, -2)


def positions(module):
    """Return the position embeddings of a ViT's patches, float32 [rows, columns, d].

    A model without learned position embeddings gets the fixed 2-D sin-cos table.
    """
    from vit_jax.layers.patch_embed import sincos2d

    grid = module.config.grid
    if module.pos_embed is None:
        table = sincos2d(grid, module.config.width)
    else:
        table = module.pos_embed[...][:, -math.prod(grid) :]
    return np.asarray(table, np.float32).reshape(*grid, -1)


def position_similarity(table):
    """Compute the cosine similarity of all pairs of positions (figure 7, center).

    Args:
      table: position embeddings [h, w, d].

    Returns:
      float64 [h, w, h, w].
    """
    h, w, d = table.shape
    flat = table.reshape(-1, d)
    return cosines(flat, flat).reshape(h, w, h, w)


def neighbor_similarity(similarity):
    """Average the similarity over neighboring positions and over all positions.

    If the embeddings encode the positions, neighbors are more similar.

    Args:
      similarity: [h, w, h, w], from `position_similarity`.

    Returns:
      A tuple of the mean over pairs of horizontally or vertically adjacent positions, and the mean
      over all pairs of different positions.
    """
    h, w = similarity.shape[:2]
    y, x = np.divmod(np.arange(h * w), w)
    steps = np.abs(y[:, None] - y) + np.abs(x[:, None] - x)
    flat = similarity.reshape(h * w, h * w)
    if h * w == 1:
        return 1.0, 1.0
    return float(flat[steps == 1].mean()), float(flat[steps > 0].mean())


def pooled_similarity(tokens, grid, prefix=1, class_token=True):
    """Compute the cosine similarity of each patch to the pooled token.

    The pooled token is [CLS], the first of the prefix tokens, or the mean of the patches.

    Args:
      tokens: [b, n, d].
      grid: (rows, columns) of patches.
      prefix: number of tokens before the patch tokens.
      class_token: whether the pooled token is [CLS].

    Returns:
      float64 [b, rows, columns].

    Raises:
      ValueError: if the number of patches does not match the grid.
    """
    tokens = np.asarray(tokens, np.float64)
    pooled = tokens[:, :1] if class_token else tokens[:, prefix:].mean(1, keepdims=True)
    return on_grid(cosines(pooled, tokens)[:, 0], grid, prefix)


def compare_with_published(name, config, top1=None, dataset=None):
    """Compare a model's size to those of published ViTs.

    The published models have 1000 classes, images of 224 pixels, and the top-1 accuracy on ImageNet
    in `variants.PUBLISHED`.

    Args:
      name: name of the model.
      config: `ViTConfig` or `ResNetConfig` of the model.
      top1: its accuracy as a percentage, or None.
      dataset: name of the dataset of this accuracy, or None.

    Returns:
      Rows for `figures.sizes.bars`, by ascending number of parameters.
    """

    def row(name, config, top1=(), published=None):
        return {
            "model": name,
            "layers": variants.count_layers(config),
            "width": config.width,
            "heads": getattr(config, "num_heads", None),
            "top1": list(top1),
            "published": published,
            "parameters": count_params(config),
        }

    rows = [
        row(other, variants.parse(other), (), best)
        for other, (best, _) in variants.PUBLISHED.items()
    ]
    this = row(f"this: {name}", config, () if top1 is None else (top1,))
    rows.append(this | {"this": name, "dataset": dataset})
    return sorted(rows, key=lambda row: row["parameters"])
