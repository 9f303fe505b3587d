"""Statistics of the weights and tokens of a model: filters, positions, similarities, sizes.

Arrays in, arrays out. A grid is the rows and columns of patches, an image's sides / the patch's.
"""

import math

import numpy as np

from vit_jax import variants
from vit_jax.analysis.attention import fix_signs, on_grid
from vit_jax.flops import count_params

TINY = 1e-12  # below it a vector has no direction
# Top-1 on ImageNet at 224 pixels, trained on it alone: Ti, S and B of DeiT (arXiv:2012.12877), L
# and H as MAE's authors trained them from scratch (arXiv:2111.06377, appendix A.2).
PUBLISHED = {"Ti/16": 72.2, "S/16": 79.9, "B/16": 81.8, "L/16": 82.6, "H/14": 83.1}


def filters(kernel, count=28):
    """The principal components of the first layer's filters: figure 7, left, of arXiv:2010.11929.

    kernel: [p, p, c, d], d filters of p x p pixels. -> filters [count, p, p, c], of length 1 and
    the sign in which the largest weight is positive; shares [count] of the variance that they hold.
    There are no more than the filters' pixels, or than filters.
    """
    shape = np.shape(kernel)[:3]
    x = np.asarray(kernel, np.float64).reshape(-1, np.shape(kernel)[-1]).T
    _, spread, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    axes = fix_signs(axes[:count])
    variance = spread**2
    shares = variance[:count] / max(variance.sum(), TINY)
    return axes.reshape(-1, *shape).astype(np.float32), shares


def cosines(a, b):
    """Cosine similarity of rows: [..., n, d] and [..., m, d] -> [..., n, m], 0 where one is 0."""
    unit = [
        x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), TINY)
        for x in (np.asarray(a, np.float64), np.asarray(b, np.float64))
    ]
    return unit[0] @ unit[1].swapaxes(-1, -2)


def positions(module):
    """A ViT's position embeddings of its patches, learned or fixed: float32 [rows, columns, d]."""
    from vit_jax.layers.patch_embed import sincos2d

    grid = module.config.grid
    if module.pos_embed is None:
        table = sincos2d(grid, module.config.width)
    else:
        table = module.pos_embed[...][:, -math.prod(grid) :]
    return np.asarray(table, np.float32).reshape(*grid, -1)


def position_similarity(table):
    """Of every position with every other: [h, w, d] -> cosines [h, w, h, w]; figure 7, center."""
    h, w, d = table.shape
    flat = table.reshape(-1, d)
    return cosines(flat, flat).reshape(h, w, h, w)


def neighbor_similarity(similarity):
    """[h, w, h, w] -> the mean over pairs of positions one step apart, along a row or a column, and
    that over all pairs of two different ones. Positions that tell where they are differ there."""
    h, w = similarity.shape[:2]
    y, x = np.divmod(np.arange(h * w), w)
    steps = np.abs(y[:, None] - y) + np.abs(x[:, None] - x)
    flat = similarity.reshape(h * w, h * w)
    if h * w == 1:
        return 1.0, 1.0
    return float(flat[steps == 1].mean()), float(flat[steps > 0].mean())


def pooled_similarity(tokens, grid, prefix=1):
    """Similarity of each patch with the token that is read out: [b, n, d] -> cosines [b, *grid].

    That is [CLS], the first of the `prefix` tokens before the patches; without any, the patches'
    mean. Raises ValueError if the patches do not make the grid.
    """
    tokens = np.asarray(tokens, np.float64)
    reader = tokens[:, :1] if prefix else tokens.mean(1, keepdims=True)
    return on_grid(cosines(reader, tokens)[:, 0], grid, prefix)


def beside_published(name, config, top1=None):
    """The model among the published ViTs, smallest first, as the rows of `figures.sizes.bars`.

    config: of the model, with its number of classes; top1: a percentage or None. The published ones
    have 1000 classes and images of 224 pixels, and their own accuracy on ImageNet.
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

    rows = [row(other, variants.parse(other), (), best) for other, best in PUBLISHED.items()]
    rows.append(row(f"this: {name}", config, () if top1 is None else (top1,)) | {"this": name})
    return sorted(rows, key=lambda row: row["parameters"])
