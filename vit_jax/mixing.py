"""mixup and CutMix, on the device, in static shapes.

mixup: arXiv:1710.09412, equation 1. CutMix: arXiv:1905.04899, equations 1 and 2. The draws are
those of timm's `Mixup` in mode "batch", as in DeiT: one per batch, where the partner of an image is
its mirror in the order of the batch. Here the batch is that of all devices.
"""

import jax
from jax import numpy as jnp


def mix(images, targets, lam, box=None):
    """Mix every image with its partner, images[::-1].

    Args:
      images: float [b, h, w, c].
      targets: float [b, k], such as one-hot.
      lam: scalar or [b], the share of an image's own target.
      box: y0, y1, x0, x1 (ends exclusive, each a scalar or [b]), the region that is the partner's;
        lam is then the share of the area outside of it. Without a box, or where it is empty, pixels
        are mixed in the same proportion as the targets (mixup).

    Returns:
      images [b, h, w, c], targets [b, k].
    """
    lam = jnp.asarray(lam, targets.dtype).reshape(-1, 1)
    own = lam[:, :, None, None]
    inside = False
    if box is not None:
        y0, y1, x0, x1 = (jnp.asarray(side).reshape(-1, 1, 1, 1) for side in box)
        rows = jnp.arange(images.shape[1]).reshape(1, -1, 1, 1)
        columns = jnp.arange(images.shape[2]).reshape(1, 1, -1, 1)
        inside = (y0 <= rows) & (rows < y1) & (x0 <= columns) & (columns < x1)
        own = jnp.where((y0 < y1) & (x0 < x1), 1, own)
    own = own.astype(images.dtype)
    partners = images[::-1]
    images = jnp.where(inside, partners, images * own + partners * (1 - own))
    return images, targets * lam + targets[::-1] * (1 - lam)


def sample(rng, *, height, width, mixup, cutmix, prob=1.0, switch=0.5):
    """Draw the arguments of `mix`.

    Args:
      rng: key.
      height, width: of the images.
      mixup, cutmix: alpha of Beta(alpha, alpha), 0 for off, at least one of them on; not traced.
      prob: probability of mixing at all, else lam = 1.
      switch: probability of CutMix, where both are on.

    Returns:
      lam, float32 scalar; box, int32 [4], empty unless it is CutMix.
    """
    keys = jax.random.split(rng, 5)
    both = switch if mixup and cutmix else float(bool(cutmix))
    cut = jax.random.uniform(keys[0]) < both
    alpha = jnp.where(cut, cutmix or 1.0, mixup or 1.0)
    lam = jax.random.beta(keys[1], alpha, alpha)
    lam = jnp.where(jax.random.uniform(keys[2]) < prob, lam, 1)
    center_y = jax.random.randint(keys[3], (), 0, height)
    center_x = jax.random.randint(keys[4], (), 0, width)
    cut_lam, box = cut_box(lam, center_y, center_x, height, width)
    return jnp.where(cut, cut_lam, lam), jnp.where(cut, box, 0)


def cut_box(lam, center_y, center_x, height, width):
    """CutMix's box of area (1 - lam) * height * width around a center, clipped to the image.

    As timm's `rand_bbox`, with its correction of lam.

    Returns:
      lam of the clipped box, float32; y0, y1, x0, x1, int32 [4].
    """
    side = jnp.sqrt(1 - jnp.asarray(lam, jnp.float32))
    half_h = (height * side).astype(jnp.int32) // 2
    half_w = (width * side).astype(jnp.int32) // 2
    y0, y1 = (jnp.clip(center_y + half, 0, height) for half in (-half_h, half_h))
    x0, x1 = (jnp.clip(center_x + half, 0, width) for half in (-half_w, half_w))
    lam = 1 - ((y1 - y0) * (x1 - x0)).astype(jnp.float32) / (height * width)
    return lam, jnp.stack([y0, y1, x0, x1]).astype(jnp.int32)


def mix_batch(rng, images, targets, *, mixup, cutmix, **chances):
    """Mix a batch: `mix` with the draws of `sample`; prob and switch as there."""
    if not (mixup or cutmix):
        return images, targets
    _, height, width, _ = images.shape
    lam, box = sample(rng, height=height, width=width, mixup=mixup, cutmix=cutmix, **chances)
    return mix(images, targets, lam, box)
