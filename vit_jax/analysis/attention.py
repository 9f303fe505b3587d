"""Attention maps, attention rollout and principal components of a model's named outputs.

Arrays in, arrays out: numpy's or, within jit, JAX's. Axes: l layers, b images, h heads, q queries
and m what they attend to, which are both all n tokens. A grid is the rows and columns of patches,
an image's sides / the patch's.
"""

import numpy as np

ROUNDING = 1e-6  # of a sum of float32 softmax outputs
SHADES = {"█": 0.8, "▓": 0.4, "░": 0.0}  # and the least share of a map's maximum it stands for
LEGEND = "█ 0.8 to 1.0, ▓ 0.4 to 0.8, ░ 0 to 0.4 of the map's maximum"


def cls_maps(attention, grid, prefix=1):
    """How much [CLS] attends to each patch: [l, b, h, q, m] -> [l, b, h, *grid].

    prefix: number of tokens before the patches; token 0 is [CLS]. Attention to them is left out,
    so a map sums to 1 or less. Raises ValueError if the patches do not make the grid.
    """
    if prefix < 1:
        raise ValueError("there is no [CLS] token whose attention could be read")
    return on_grid(attention[..., 0, :], grid, prefix)


def patch_maps(attention, grid, prefix=0):
    """How much the average patch attends to each: [l, b, h, q, m] -> [l, b, h, *grid].

    For models without a [CLS] token, which pool the mean of the patches.
    """
    return on_grid(attention[..., prefix:, :].mean(-2), grid, prefix)


def on_grid(rows, grid, prefix):
    """Values per token [..., n] -> those of the patches [..., *grid]. Raises ValueError."""
    rows = rows[..., prefix:]
    if rows.shape[-1] != grid[0] * grid[1]:
        raise ValueError(f"{rows.shape[-1]} patches do not make a grid of {grid[0]} x {grid[1]}")
    return rows.reshape(*rows.shape[:-1], *grid)


def head_map(maps, head):
    """One map of all heads': [..., h, rows, columns] -> [..., rows, columns].

    head: its number from 0, or "mean" or "max", patch by patch over the heads.
    """
    return getattr(maps, head)(-3) if isinstance(head, str) else maps[..., head, :, :]


def rollout(attention):
    """Attention rollout (section 3 of arXiv:2005.00928): [l, b, h, n, n] -> [l, b, n, n].

    The attention averaged over heads and then with the identity, for the residual connection, rows
    scaled to sum to 1, and multiplied from the first layer up. Entry i covers the first i + 1
    layers; `cls_maps(rollout(a)[:, :, None], grid)` are its maps.
    """
    found = []
    for layer in attention:
        mixed = (layer.mean(-3) + np.eye(layer.shape[-1], dtype=layer.dtype)) / 2
        mixed = mixed / mixed.sum(-1, keepdims=True)
        found.append(mixed @ found[-1] if found else mixed)
    return attention.__array_namespace__().stack(found)


def as_text(values):
    """A map [rows, columns] as lines of █ ▓ ░, two characters per patch so that it is square.

    Shades are shares of the map's maximum, as in `LEGEND`, with inclusive lower bounds.
    """
    values = np.asarray(values, np.float64)
    shares = values / (values.max() or 1) + ROUNDING
    shades = np.select([shares >= low for low in SHADES.values()], list(SHADES), "░")
    return "\n".join("".join(row) for row in shades.repeat(2, axis=1))


def mass_mask(maps, keep=0.6):
    """The fewest patches that hold this share of each map's sum: [..., h, w] -> bool [..., h, w].

    Figure 1 of arXiv:2104.14294 shows such masks, section 4.2.2 scores them as segmentations. Of
    equal patches the first one, row by row, comes first; a patch of 0 is never needed. Raises
    ValueError unless 0 < keep <= 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must be above 0 and at most 1")
    flat = np.asarray(maps, np.float64).reshape(*np.shape(maps)[:-2], -1)
    order = np.argsort(-flat, axis=-1, kind="stable")
    falling = np.take_along_axis(flat, order, -1)
    before = np.cumsum(falling, -1) - falling  # what the larger ones hold
    needed = (before < (keep - ROUNDING) * flat.sum(-1, keepdims=True)) & (falling > 0)
    mask = np.empty(flat.shape, bool)
    np.put_along_axis(mask, order, needed, -1)
    return mask.reshape(np.shape(maps))


def fix_signs(axes):
    """Rows [n, d] with the sign in which their largest element is positive."""
    return axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]


def pca(tokens, components=3):
    """Features as colors: [b, n, d] -> float32 [b, n, components] in [0, 1].

    The principal components of all patches of all images together, so that colors are comparable
    between images, clipped to their 1st and 99th percentiles, which become 0 and 1. The largest
    weight of a component is positive. A constant component is 1/2 everywhere.
    """
    x = np.asarray(tokens, np.float64)
    x = x.reshape(-1, x.shape[-1])
    x = x - x.mean(0)
    squares, axes = np.linalg.eigh(x.T @ x)  # rising
    spread, axes = np.sqrt(squares[::-1].clip(0)), axes.T[::-1][:components]
    axes = fix_signs(axes)
    scores = np.zeros((len(x), components))
    scores[:, : len(axes)] = x @ axes.T
    scores[:, : len(axes)][:, spread[: len(axes)] <= ROUNDING * spread[0]] = 0
    low, high = np.percentile(scores, (1, 99), axis=0)
    flat = high <= low
    colors = np.where(flat, 0.5, (scores - low) / np.where(flat, 1, high - low))
    return colors.clip(0, 1).astype(np.float32).reshape(*np.shape(tokens)[:2], components)
