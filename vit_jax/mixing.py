"""mixup and CutMix on the device, with static shapes.

mixup: arXiv:1710.09412, equation 1. CutMix: arXiv:1905.04899, equations 1 and 2. The random draws
follow timm's `Mixup` in mode "batch", as in DeiT: one draw per batch, and image i of a batch of b
is mixed with image b - 1 - i. The batch is the global batch over all devices; with gradient
accumulation, `step.split_batch` keeps both images of a pair in one micro-batch.
"""

import jax
from jax import numpy as jnp


def mix(images, targets, lam, box=None, partners=None):
    """Mix every image with its partner.

    Args:
      images: float [b, h, w, c].
      targets: float [b, k], such as one-hot labels, or a tree of such arrays.
      lam: scalar or [b], weight of the targets of the image; the partner's targets have weight
        1 - lam.
      box: y0, y1, x0, x1 (ends exclusive), each a scalar or [b]: the region that is replaced by the
        partner's pixels (CutMix). lam must be the fraction of the area outside the box. Without a
        box, or with an empty one, pixels are mixed with the same weights as the targets (mixup).
      partners: images[::-1], if it is computed elsewhere; None: compute it.

    Returns:
      The mixed images [b, h, w, c] and targets.
    """
    lam = jnp.asarray(lam, float).reshape(-1, 1)
    weight = lam[:, :, None, None]
    inside = False
    if box is not None:
        y0, y1, x0, x1 = (jnp.asarray(side).reshape(-1, 1, 1, 1) for side in box)
        rows = jnp.arange(images.shape[1]).reshape(1, -1, 1, 1)
        columns = jnp.arange(images.shape[2]).reshape(1, 1, -1, 1)
        inside = (y0 <= rows) & (rows < y1) & (x0 <= columns) & (columns < x1)
        weight = jnp.where((y0 < y1) & (x0 < x1), 1, weight)
    weight = weight.astype(images.dtype)
    partners = images[::-1] if partners is None else partners
    images = jnp.where(inside, partners, images * weight + partners * (1 - weight))
    return images, jax.tree.map(lambda x: x * lam + x[::-1] * (1 - lam), targets)


def sample(rng, *, height, width, mixup, cutmix, prob=1.0, switch=0.5):
    """Sample the arguments of `mix`.

    Args:
      rng: key.
      height: height of the images.
      width: width of the images.
      mixup: alpha of mixup, lam ~ Beta(alpha, alpha); 0: off. A Python number, not traced.
      cutmix: alpha of CutMix; 0: off. At least one of the two must be on.
      prob: probability of mixing; otherwise lam = 1.
      switch: probability of CutMix if both are on.

    Returns:
      lam, float32 scalar; box, int32 [4], which is empty for mixup.
    """
    keys = jax.random.split(rng, 5)
    cutmix_prob = switch if mixup and cutmix else float(bool(cutmix))
    cut = jax.random.uniform(keys[0]) < cutmix_prob
    alpha = jnp.where(cut, cutmix or 1.0, mixup or 1.0)
    lam = jax.random.beta(keys[1], alpha, alpha)
    lam = jnp.where(jax.random.uniform(keys[2]) < prob, lam, 1)
    center_y = jax.random.randint(keys[3], (), 0, height)
    center_x = jax.random.randint(keys[4], (), 0, width)
    cut_lam, box = cut_box(lam, center_y, center_x, height, width)
    return jnp.where(cut, cut_lam, lam), jnp.where(cut, box, 0)


def cut_box(lam, center_y, center_x, height, width):
    """Compute CutMix's box of area (1 - lam) * height * width, clipped to the image.

    Equals timm's `rand_bbox`, including its correction of lam for the clipped area.

    Args:
      lam: scalar, fraction of the area outside the box.
      center_y: row of the center of the box, int.
      center_x: column of the center of the box, int.
      height: height of the image.
      width: width of the image.

    Returns:
      lam of the clipped box, float32; the box y0, y1, x0, x1, int32 [4].
    """
    side = jnp.sqrt(1 - jnp.asarray(lam, jnp.float32))
    half_h = (height * side).astype(jnp.int32) // 2
    half_w = (width * side).astype(jnp.int32) // 2
    y0, y1 = (jnp.clip(center_y + half, 0, height) for half in (-half_h, half_h))
    x0, x1 = (jnp.clip(center_x + half, 0, width) for half in (-half_w, half_w))
    lam = 1 - ((y1 - y0) * (x1 - x0)).astype(jnp.float32) / (height * width)
    return lam, jnp.stack([y0, y1, x0, x1]).astype(jnp.int32)


def mix_batch(rng, images, targets, *, mixup, cutmix, partners=None, **probabilities):
    """Apply `mix` with arguments from `sample`; `prob` and `switch` are passed to it."""
    if not (mixup or cutmix):
        return images, targets
    _, height, width, _ = images.shape
    lam, box = sample(rng, height=height, width=width, mixup=mixup, cutmix=cutmix, **probabilities)
    return mix(images, targets, lam, box, partners)
