"""Attention maps, attention rollout, attention masks and principal components of patch features.

`cls_maps`, `patch_maps`, `head_map` and `rollout` accept NumPy arrays and, inside `jax.jit`, JAX
arrays; the other functions compute in NumPy. Axes: l layers, b images, h heads, q queries, m keys,
n tokens. A grid is (rows, columns) of patches: the image size divided by the patch size.
"""

import numpy as np

ROUNDING = 1e-6  # relative error of sums of float32 softmax outputs
SHADES = {"█": 0.8, "▓": 0.4, "░": 0.0}  # character: lower bound as a share of the map's maximum
LEGEND = "█ 0.8 to 1.0, ▓ 0.4 to 0.8, ░ 0 to 0.4 of the map's maximum"
# A map is nearly uniform if its maximum is below MIN_CONTRAST times its mean. Its color scale ends
# at FLAT_SCALE times the mean, so that its colors stay in the lower half.
MIN_CONTRAST = 2
FLAT_SCALE = 4


def cls_maps(attention, grid, prefix=1):
    """Return the attention of [CLS] to each patch.

    Attention to the prefix tokens is dropped, so a map sums to 1 or less.

    Args:
      attention: softmax outputs [l, b, h, q, m].
      grid: (rows, columns) of patches.
      prefix: number of tokens before the patch tokens; token 0 is [CLS].

    Returns:
      [l, b, h, rows, columns].

    Raises:
      ValueError: if there is no [CLS] token, or the number of patches does not match the grid.
    """
    if prefix < 1:
        raise ValueError("cls_maps needs a [CLS] token, but prefix is 0; use patch_maps")
    return on_grid(attention[..., 0, :], grid, prefix)


def patch_maps(attention, grid, prefix=0):
    """Return the attention to each patch, averaged over the query patches.

    For models without a [CLS] token, which average the patch tokens.

    Args:
      attention: softmax outputs [l, b, h, q, m].
      grid: (rows, columns) of patches.
      prefix: number of tokens before the patch tokens.

    Returns:
      [l, b, h, rows, columns].

    Raises:
      ValueError: if the number of patches does not match the grid.
    """
    return on_grid(attention[..., prefix:, :].mean(-2), grid, prefix)


def query_maps(attention, grid, prefix, class_token):
    """Return `cls_maps` of a model with a [CLS] token, otherwise `patch_maps`."""
    return (cls_maps if class_token else patch_maps)(attention, grid, prefix)


def on_grid(values, grid, prefix):
    """Drop the prefix tokens of [..., n] and reshape the rest to [..., rows, columns].

    Raises:
      ValueError: if the number of patches does not match the grid.
    """
    values = values[..., prefix:]
    if values.shape[-1] != grid[0] * grid[1]:
        raise ValueError(f"{values.shape[-1]} patches do not form a {grid[0]} x {grid[1]} grid")
    return values.reshape(*values.shape[:-1], *grid)


def head_map(maps, head):
    """Select a head of [..., h, rows, columns], or reduce over the heads.

    Args:
      maps: [..., h, rows, columns].
      head: index from 0, or "mean" or "max" over the heads for each patch.

    Returns:
      [..., rows, columns].
    """
    return getattr(maps, head)(-3) if isinstance(head, str) else maps[..., head, :, :]


def rollout(attention):
    """Compute attention rollout (section 3 of arXiv:2005.00928).

    The attention of each layer is averaged over the heads and then with the identity, which
    accounts for the residual connection; its rows are normalized to sum to 1; and the layers are
    multiplied, starting from the first. `cls_maps(rollout(a)[:, :, None], grid)` returns the maps.

    Args:
      attention: softmax outputs [l, b, h, n, n].

    Returns:
      [l, b, n, n]; entry i covers the first i + 1 layers.
    """
    results = []
    for layer in attention:
        mixed = (layer.mean(-3) + np.eye(layer.shape[-1], dtype=layer.dtype)) / 2
        mixed = mixed / mixed.sum(-1, keepdims=True)
        results.append(mixed @ results[-1] if results else mixed)
    return attention.__array_namespace__().stack(results)


def color_scale(values):
    """Decide whether a map of attention is nearly uniform, and where its color scale ends.

    On a scale up to its own maximum, the rounding noise of uniform attention would look like a
    pattern. The maximum is compared with the mean of the map rather than with 1 / tokens: [CLS]
    may keep most of the attention, and rollout keeps a part for the query, while the rest still has
    a pattern. Without such tokens, the mean is 1 / tokens.

    Args:
      values: [rows, columns], non-negative.

    Returns:
      A tuple `(top, nearly_uniform)`: the value of the last color, above 0, and a bool.
    """
    values = np.asarray(values, np.float64)
    maximum, mean = float(values.max()), float(values.mean())
    nearly_uniform = maximum < MIN_CONTRAST * mean
    return (FLAT_SCALE * mean if nearly_uniform else maximum or 1.0), nearly_uniform


def as_text(values):
    """Format a map [rows, columns] as lines of █ ▓ ░, two characters per patch to make it square.

    The shades are shares of the map's maximum with inclusive lower bounds, see `LEGEND`.
    """
    values = np.asarray(values, np.float64)
    shares = values / (values.max() or 1) + ROUNDING
    shades = np.select([shares >= low for low in SHADES.values()], list(SHADES), "░")
    return "\n".join("".join(row) for row in shades.repeat(2, axis=1))


def mass_mask(maps, keep=0.6):
    """Select the smallest set of patches that holds a share of each map's sum.

    Figure 1 of arXiv:2104.14294 shows such masks, and section 4.2.2 evaluates them as
    segmentations. Ties are broken in row-major order; patches of value 0 are never selected.

    Args:
      maps: non-negative [..., h, w].
      keep: share of the sum, 0 < keep <= 1.

    Returns:
      bool [..., h, w].

    Raises:
      ValueError: if `keep` is out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must be above 0 and at most 1")
    flat = np.asarray(maps, np.float64).reshape(*np.shape(maps)[:-2], -1)
    order = np.argsort(-flat, axis=-1, kind="stable")
    descending = np.take_along_axis(flat, order, -1)
    sum_of_larger = np.cumsum(descending, -1) - descending
    needed = sum_of_larger < (keep - ROUNDING) * flat.sum(-1, keepdims=True)
    needed &= descending > 0
    mask = np.empty(flat.shape, bool)
    np.put_along_axis(mask, order, needed, -1)
    return mask.reshape(np.shape(maps))


def fix_signs(axes):
    """Flip each row of [n, d] so that its element of largest magnitude is positive."""
    return axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]


def pca(tokens, components=3):
    """Project features onto their principal components, scaled to [0, 1] to be drawn as colors.

    The components are computed over all patches of all images, so that colors are comparable
    between images. Each component is clipped to its 1st and 99th percentiles, which map to 0 and 1.
    The largest weight of a component is positive. A constant component is 0.5 everywhere.

    Args:
      tokens: [b, n, d].
      components: number of components.

    Returns:
      float32 [b, n, components] in [0, 1].
    """
    x = np.asarray(tokens, np.float64)
    x = x.reshape(-1, x.shape[-1])
    x = x - x.mean(0)
    squares, axes = np.linalg.eigh(x.T @ x)  # ascending
    spread = np.sqrt(squares[::-1].clip(0))
    axes = fix_signs(axes.T[::-1][:components])
    scores = np.zeros((len(x), components))
    scores[:, : len(axes)] = x @ axes.T
    scores[:, : len(axes)][:, spread[: len(axes)] <= ROUNDING * spread[0]] = 0
    low, high = np.percentile(scores, (1, 99), axis=0)
    flat = high <= low
    colors = np.where(flat, 0.5, (scores - low) / np.where(flat, 1, high - low))
    return colors.clip(0, 1).astype(np.float32).reshape(*np.shape(tokens)[:2], components)
