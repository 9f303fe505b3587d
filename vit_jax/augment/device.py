"""The colors of a view, on the device: flip, jitter, gray, blur, solarize, as DINO applies them.

Functions take float images in [0, 1], [n, h, w, c] with c 3 or 1, and a typed key per image [n],
so that an image's view depends on its own key alone. The probability `p`, a number or one per
image [n], is not traced: an operation with p = 0 for all is not computed. Pillow works in 8 bits
and its rounding is visible (a hue is one of 256), so jitter and gray round where it rounds.

Sources: torchvision's ColorJitter, Pillow's ImageEnhance, Blend.c and Convert.c, and the class
DataAugmentationDINO in facebookresearch/dino's main_dino.py. That the two global views are treated
differently is BYOL's (arXiv:2006.07733, appendix B).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

BLENDS = ("brightness", "contrast", "saturation")
MIN_SIGMA = 0.1  # of the blur, pixels
MAX_SIGMA = 2.0


def photometric(images, keys, config, kinds):
    """Flip, and the color augmentations of config.augment.

    Args:
      images: uint8 [b, v, h, w, c].
      keys: [b]. The draws of a view depend on its image's key, its kind and its place among the v.
      config: config.augment.
      kinds: for each of the v views the index of its probability in config.blur and
        config.solarize: 0 or 1, DINO's global views, or 2, a local one. The one view of supervised
        training is of kind 0.

    Returns:
      float32 [b, v, h, w, c] in [0, 1].
    """
    shape, count = images.shape, images.shape[0] * len(kinds)
    kind, place = jnp.array(kinds), jnp.arange(len(kinds))
    own = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in)(own(key, kind), place))(keys)
    keys = jax.vmap(lambda key: jax.random.split(key, 5), out_axes=1)(keys.reshape(count))
    flips, jitters, grays, blurs, solarizes = keys

    def chances(by_kind):
        return np.tile([by_kind[kind] for kind in kinds], shape[0])

    images = images.reshape(count, *shape[2:])
    if config.flip:
        images = flip(images, flips, config.flip)
    images = _images(_planes(images).astype(jnp.float32) / 255)
    images = jitter(images, jitters, config.jitter, config.jitter_prob)
    images = gray(images, grays, config.gray)
    images = blur(images, blurs, chances(config.blur))
    images = solarize(images, solarizes, chances(config.solarize))
    return images.reshape(shape)


def jitter(images, keys, strengths, p):
    """torchvision's ColorJitter(*strengths), with probability p: see `adjust`.

    strengths: of brightness, contrast, saturation and hue. The first three change by a factor,
    uniform in max(0, 1 - s) to 1 + s, hue by a share of the circle, uniform in +-s, in a random
    order per image. In gray images the first two change.
    """
    names = (*BLENDS, "hue") if images.shape[-1] == 3 else BLENDS[:2]
    active = {name: s for name, s in zip(names, strengths, strict=False) if s}
    if not active or not np.any(p):
        return images
    coins, *draws = _uniform(keys, 1 + 2 * len(active))
    factors = {}
    for name, draw in zip(active, draws, strict=False):
        s = active[name]
        low, high = (-s, s) if name == "hue" else (max(0, 1 - s), 1 + s)
        factors[name] = low + (high - low) * draw
    turns = jnp.argsort(jnp.stack(draws[len(active) :]), 0)  # a random permutation an image
    changed = _planes(adjust(images, factors, dict(zip(active, turns, strict=True))))
    return _images(jnp.where(_over(coins < p), changed, _planes(images)))


def gray(images, keys, p):
    """Replace all channels by their luma, with probability p."""
    if images.shape[-1] == 1 or not np.any(p):
        return images
    (coins,) = _uniform(keys, 1)
    planes = _planes(images)
    return _images(jnp.where(_over(coins < p), _luma(_levels(images)) / 255, planes))


def blur(images, keys, p):
    """`gaussian_blur` with a uniform standard deviation, 0.1 to 2 pixels, with probability p."""
    if not np.any(p):
        return images
    coins, draws = _uniform(keys, 2)
    sigmas = jnp.where(coins < p, MIN_SIGMA + (MAX_SIGMA - MIN_SIGMA) * draws, 0)
    return gaussian_blur(images, sigmas)


def solarize(images, keys, p):
    """Invert values of 128 and more, in 8 bits, with probability p: Pillow's solarize(image)."""
    if not np.any(p):
        return images
    (coins,) = _uniform(keys, 1)
    planes = _planes(images)
    bright = jnp.round(planes * 255) >= 128
    return _images(jnp.where(_over(coins < p) & bright, 1 - planes, planes))


def _uniform(keys, count):
    """`count` numbers in [0, 1) from each key [n] -> [count, n]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)), out_axes=1)(keys)


def _over(values):
    """One value per image [n], to be broadcast over planes [c, n, h, w]."""
    return values[:, None, None]


def _planes(images):
    """[n, h, w, c] -> [c, n, h, w]: loops over columns vectorize, over 3 channels they do not."""
    return jnp.moveaxis(images, -1, 0)


def _images(planes):
    return jnp.moveaxis(planes, 0, -1)


def adjust(images, factors, turns):
    """Brightness, contrast, saturation and hue changed as Pillow and torchvision do, in 8 bits.

    On a CPU the result of 8-bit images is Pillow's.

    Args:
      images: [n, h, w, c].
      factors: {name: float32 [n]} of some of these. A factor f makes d + f * (x - d) of x, where d
        is black, the rounded mean luma of the image, or a pixel's luma; hue turns by that share of
        the circle, in +-0.5.
      turns: {name: int [n]}, when each happens: in each image a permutation of 0, 1, ...
    """
    planes, last, turns = _levels(images), len(factors), dict(turns)
    hue = turns.pop("hue", None)
    if hue is None or len(planes) == 1:
        return _images(_blends(planes, factors, turns, 0, last) / 255)
    # The hue costs as much as the blends together, so it is turned once: in each image the
    # blends that come before it, the hue, the blends that come after.
    before = {name: jnp.where(at < hue, at, -1) for name, at in turns.items()}
    after = {name: jnp.where(at > hue, at, -1) for name, at in turns.items()}
    planes = _blends(planes, factors, before, 0, last - 1)
    planes = _turn_hue(planes, factors["hue"])
    return _images(_blends(planes, factors, after, 1, last) / 255)


def _levels(images):
    """[n, h, w, c] in [0, 1] -> planes [c, n, h, w] of whole numbers, 0 to 255."""
    return jnp.round(_planes(images) * 255)


def _luma(planes):
    """Pillow's "L" (ITU-R 601): [c, n, h, w] -> [n, h, w]; exact, as no sum reaches 2**24."""
    if len(planes) == 1:
        return planes[0]
    red, green, blue = planes
    return jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


def _blends(planes, factors, turns, first, last):
    """Apply to each image the blends with a turn, int [n] per name, of first to last - 1."""

    def blend(now, planes):
        luma, factor, target = _luma(planes), 1.0, 0.0  # nothing changes unless one is due
        for name, at in turns.items():
            factor = jnp.where(at == now, factors[name], factor)
        if "contrast" in turns:
            total = luma.astype(jnp.int32).sum((1, 2))  # whole numbers: exact, and it vectorizes
            mean = jnp.floor(total / math.prod(luma.shape[1:]) + 0.5)
            target = _over(jnp.where(turns["contrast"] == now, mean, target))
        if "saturation" in turns:
            target = jnp.where(_over(turns["saturation"] == now), luma, target)
        factor = jnp.reshape(factor, (-1, 1, 1))
        return jnp.floor(jnp.clip(target + factor * (planes - target), 0, 255))

    # A loop: XLA would compute what is unrolled anew for each mean and for what follows.
    return jax.lax.fori_loop(first, last, blend, planes)


def _turn_hue(planes, share):
    """The hue of planes [3, n, h, w] turned by `share` [n] of the circle, by way of Pillow's HSV.

    There hue and saturation are whole numbers up to 255, rounded down, and torchvision adds to
    the hue modulo 256. The order of operations matters: it rounds every color as Pillow does.
    """
    red, green, blue = planes
    high = jnp.maximum(jnp.maximum(red, green), blue)
    low = jnp.minimum(jnp.minimum(red, green), blue)
    span, middle = high - low, red + green + blue - high - low
    off = (high - middle) / jnp.maximum(span, 1)  # 0 to 1: from the nearest odd sixth
    is_red, is_green = red == high, green == high
    edge = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    rising = jnp.where(is_red, blue <= green, jnp.where(is_green, red <= blue, green <= red))
    hue = jnp.where(rising, edge + 1 - off, edge - 1 + off)
    sixth = hue * (1 / 6)  # XLA divides by constants like this; what is left is exact, and small
    hue = sixth + ((hue - 4 * sixth) - 2 * sixth) * (1 / 6)
    hue = jnp.floor(jnp.where(hue < 0, 1 + hue, hue) * 255)
    hue = jnp.where(span == 0, 0, hue)
    saturation = jnp.floor(span / jnp.maximum(high, 1) * 255)
    shift = jnp.trunc(share * 255)
    hue = hue + _over(jnp.where(shift < 0, shift + 256, shift))
    hue = 6 * jnp.where(hue >= 256, hue - 256, hue)

    # Back: each channel is a trapezoid over the circle of 6 * 255, the three a third apart.
    depth, turned = high * saturation, []
    for start in (5 * 255, 3 * 255, 1 * 255):
        at = hue + start
        at = jnp.where(at >= 6 * 255, at - 6 * 255, at)
        fall = jnp.clip(jnp.minimum(at, 4 * 255 - at), 0, 255)
        turned.append(high - jnp.round(depth * fall / 255**2))
    return jnp.stack(turned)


def gaussian_blur(images, sigmas):
    """Pillow's GaussianBlur(sigma): three box blurs along each axis; edges are extended.

    images [n, h, w, c], sigmas [n] in pixels, 0 to MAX_SIGMA. Pillow rounds to 8 bits after each of
    the six and extends the edges anew. Measured for sigma 0.1 to 2 on smooth random images of 96
    pixels: 0.4 levels of 255 apart on average, 99.5 % of values within 2, all within 3 but for
    the 6 pixels along the edges, where it is up to 8.
    """
    reach = 3 * math.ceil((math.sqrt(4 * MAX_SIGMA**2 + 1) - 1) / 2)
    weights = _kernel(sigmas, reach)

    def smear(plane):  # n h w
        for axis in (1, 2):
            pad = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
            padded, size, plane = jnp.pad(plane, pad, mode="edge"), plane.shape[axis], 0
            for i in range(2 * reach + 1):
                part = jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
                plane += weights[:, i, None, None] * part
        return plane

    # A loop: XLA would compute what comes before anew for each weight.
    return _images(jax.lax.map(smear, _planes(images)))


def _kernel(sigmas, reach):
    """Weights [n, 2 * reach + 1] of three boxes that together have the variance sigma**2: a box of
    radius r weighs the pixels up to floor(r), and the two beyond by the fraction that is left
    (extended box filtering, doi:10.1007/978-3-642-24785-9_38)."""
    variance = sigmas**2 / 3  # of a box
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = (whole + fraction / (6 * (variance - (whole + 1) ** 2)))[:, None]
    side = reach // 3
    box = jnp.clip(radius + 1 - abs(jnp.arange(-side, side + 1)), 0, 1) / (2 * radius + 1)
    smooth = jax.vmap(functools.partial(jnp.convolve, precision="highest"))
    return smooth(smooth(box, box), box)


def normalize(images, mean, std):
    """uint8, or float in [0, 1], [..., c]; mean and std per channel. -> float32 [..., c]"""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    if jnp.issubdtype(images.dtype, jnp.integer):
        images = images.astype(jnp.float32) / 255
    return (images - mean) / std


def flip(images, keys, p):
    """Horizontal flip, with probability p per image. [b, h, w, c], keys [b]."""
    coins = jax.vmap(lambda key: jax.random.bernoulli(key, p))(keys)
    return jnp.where(coins[:, None, None, None], images[:, :, ::-1], images)


def erase(images, keys, p):
    """Random erasing (arXiv:1708.04896) as timm's "pixel" mode, with probability p per image.

    A box becomes noise N(0, 1): 2 to 33 % of the area, log-uniform height / width in 0.3 to 3.3,
    the first of ten draws that is smaller than the image. images: normalized [b, h, w, c].
    """

    def erase_one(image, key):
        h, w = image.shape[:2]
        coin, box, noise = jax.random.split(key, 3)
        top, left, height, width = erase_box(box, h, w)
        rows = jnp.arange(h)[:, None, None]
        columns = jnp.arange(w)[None, :, None]
        inside = (rows >= top) & (rows < top + height)
        inside &= (columns >= left) & (columns < left + width)
        noise = jax.random.normal(noise, image.shape, image.dtype)
        return jnp.where(inside & jax.random.bernoulli(coin, p), noise, image)

    return jax.vmap(erase_one)(images, keys)


def erase_box(key, h, w):
    """Draw the box to erase in an image h x w; empty if none of ten fits.

    Returns:
      top, left, height, width.
    """
    area, aspect, top, left = jax.random.split(key, 4)
    area = h * w * jax.random.uniform(area, (10,), minval=0.02, maxval=1 / 3)
    low, high = math.log(0.3), math.log(1 / 0.3)
    aspect = jnp.exp(jax.random.uniform(aspect, (10,), minval=low, maxval=high))
    height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (height < h) & (width < w)
    first = jnp.argmax(fits)
    height, width = height[first] * fits[first], width[first] * fits[first]
    top = jax.random.randint(top, (), 0, h - height + 1)
    left = jax.random.randint(left, (), 0, w - width + 1)
    return top, left, height, width
