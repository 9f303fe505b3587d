"""mixup and CutMix: two images and their targets -> one. On the device, in static shapes.

mixup: arXiv:1710.09412, Equation 1. CutMix: arXiv:1905.04899, Equations 1 and 2. How both are
drawn is timm's `Mixup` in mode "batch", which DeiT uses: one draw for a batch, and an image's
partner is its mirror in the order of the batch. Here the batch is that of all devices.
"""

import jax
from jax import numpy as jnp


def mix(images, targets, lam, box=None):
    """Mixes every image with its partner, images[::-1]. -> images [b, h, w, c], targets [b, k]

    images: float [b, h, w, c]. targets: float [b, k], such as one-hot. lam: scalar or [b], the
    share of the own target. box: y0, y1, x0, x1 (ends exclusive, each a scalar or [b]): the
    region that comes from the partner, whole; lam is then the share of the area outside it.
    Without a box, or where it is empty, pixels are mixed as the targets are (mixup).
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
    """Draws what `mix` takes. -> lam, float32 scalar; box, int32 [4], empty unless it is CutMix

    mixup, cutmix: alpha of Beta(alpha, alpha), 0 for off; numbers that JAX does not trace.
    prob: probability of mixing at all (else lam = 1). switch: that of CutMix, where both are on.
    """
    keys = jax.random.split(rng, 5)
    if not (mixup or cutmix):
        return jnp.float32(1), jnp.zeros(4, jnp.int32)
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
    """CutMix's box of the area (1 - lam) * height * width around a center, cut at the borders.

    -> lam of the box as it came out, float32; y0, y1, x0, x1, int32 [4]. timm's `rand_bbox` and
    its correction of lam.
    """
    side = jnp.sqrt(1 - jnp.asarray(lam, jnp.float32))
    half_h = (height * side).astype(jnp.int32) // 2
    half_w = (width * side).astype(jnp.int32) // 2
    y0, y1 = (jnp.clip(center_y + half, 0, height) for half in (-half_h, half_h))
    x0, x1 = (jnp.clip(center_x + half, 0, width) for half in (-half_w, half_w))
    lam = 1 - ((y1 - y0) * (x1 - x0)).astype(jnp.float32) / (height * width)
    return lam, jnp.stack([y0, y1, x0, x1]).astype(jnp.int32)


def mix_batch(rng, images, targets, *, mixup, cutmix, prob=1.0, switch=0.5):
    """`sample` and `mix`: a batch mixed as config.augment says. Shapes as in `mix`."""
    if not (mixup or cutmix) or not prob:
        return images, targets
    _, height, width, _ = images.shape
    alphas = dict(mixup=mixup, cutmix=cutmix, prob=prob, switch=switch)
    lam, box = sample(rng, height=height, width=width, **alphas)
    return mix(images, targets, lam, box)
