"""Augmentations on the device: flip and color (as in DINO), random erasing, normalization.

Functions take float images in [0, 1], [n, h, w, c] with 1 or 3 channels, and one typed PRNG key per
image [n], so that each view depends only on the key of its image. The probability `p`, a scalar or
one value per image [n], must not be traced: an operation with p = 0 for all images is skipped.
Pillow computes in 8 bits with visible rounding (256 hues), so jitter, gray and blur round wherever
Pillow does.

References: torchvision's ColorJitter; Pillow's ImageEnhance, Blend.c and Convert.c; and
DataAugmentationDINO in main_dino.py of facebookresearch/dino. The asymmetry between the two global
views comes from BYOL (arXiv:2006.07733, appendix B).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

BLENDS = ("brightness", "contrast", "saturation")
MIN_SIGMA = 0.1  # standard deviation of the blur, in pixels
MAX_SIGMA = 2.0


def photometric(images, keys, config, kinds):
    """Apply the flip and the color augmentations of config.augment.

    Args:
      images: uint8 [b, v, h, w, c].
      keys: [b]. The randomness of a view depends on the key of its image, its kind and its index
        among the v views.
      config: config.augment.
      kinds: for each of the v views, the index of its probability in config.blur and
        config.solarize: 0 and 1 are DINO's first and second global view, 2 is a local view. The
        single view in supervised training has kind 0.

    Returns:
      float32 [b, v, h, w, c] in [0, 1].
    """
    shape = images.shape
    count = shape[0] * len(kinds)
    kind, index = jnp.array(kinds), jnp.arange(len(kinds))
    fold_in_kinds = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in)(fold_in_kinds(key, kind), index))(keys)
    keys = jax.vmap(lambda key: jax.random.split(key, 5), out_axes=1)(keys.reshape(count))
    flip_keys, jitter_keys, gray_keys, blur_keys, solarize_keys = keys

    def per_view(probabilities):
        return np.tile([probabilities[kind] for kind in kinds], shape[0])

    images = images.reshape(count, *shape[2:])
    if config.flip:
        images = flip(images, flip_keys, config.flip)
    images = _images(_planes(images).astype(jnp.float32) / 255)
    if config.three_augment:
        images = three_augment(images, gray_keys)
    images = jitter(images, jitter_keys, config.jitter, config.jitter_prob)
    images = gray(images, gray_keys, config.gray)
    images = blur(images, blur_keys, per_view(config.blur))
    images = solarize(images, solarize_keys, per_view(config.solarize))
    return images.reshape(shape)


def jitter(images, keys, strengths, p):
    """Apply torchvision's ColorJitter(*strengths) with probability p, using `adjust`.

    Args:
      images: float [n, h, w, c] in [0, 1]. Grayscale images only change in brightness and contrast.
      keys: [n].
      strengths: strength s of brightness, contrast, saturation and hue. The first three change by a
        factor, uniform in [max(0, 1 - s), 1 + s]. The hue shifts by a fraction of the color circle,
        uniform in [-s, s]. The order of the operations is random per image.
      p: probability, a scalar or [n].
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
    positions = jnp.argsort(jnp.stack(draws[len(active) :]), 0)  # one random permutation per image
    adjusted = _planes(adjust(images, factors, dict(zip(active, positions, strict=True))))
    return _images(jnp.where(_expand(coins < p), adjusted, _planes(images)))


def three_augment(images, keys):
    """Convert to grayscale, solarize or blur, each with probability 1/3 (arXiv:2204.07118).

    This is the first part of 3-Augment in augment.py of facebookresearch/deit, before color jitter.
    """
    choices, draws = _uniform(keys, 2)
    sigmas = MIN_SIGMA + (MAX_SIGMA - MIN_SIGMA) * draws
    return gray_solarize_or_blur(images, jnp.floor(3 * choices), sigmas)


def gray_solarize_or_blur(images, choices, sigmas):
    """Apply one operation to each image.

    Args:
      images: float [n, h, w, c] in [0, 1].
      choices: [n]; 0: grayscale, 1: solarize, 2: blur.
      sigmas: standard deviations of the blur [n], in pixels.

    Returns:
      float [n, h, w, c] in [0, 1].
    """
    images = gaussian_blur(images, jnp.where(choices == 2, sigmas, 0))
    planes = _planes(images)
    planes = jnp.where(_expand(choices == 0), _luma(_levels(images)) / 255, planes)
    return _images(jnp.where(_expand(choices == 1), _solarize(planes), planes))


def gray(images, keys, p):
    """Convert to grayscale with probability p; all channels are set to the luma."""
    if images.shape[-1] == 1 or not np.any(p):
        return images
    (coins,) = _uniform(keys, 1)
    planes = _planes(images)
    return _images(jnp.where(_expand(coins < p), _luma(_levels(images)) / 255, planes))


def blur(images, keys, p):
    """Apply Pillow's Gaussian blur with probability p; sigma is uniform in 0.1 to 2 pixels."""
    if not np.any(p):
        return images
    coins, draws = _uniform(keys, 2)
    sigmas = jnp.where(coins < p, MIN_SIGMA + (MAX_SIGMA - MIN_SIGMA) * draws, 0)
    return gaussian_blur(images, sigmas)


def solarize(images, keys, p):
    """Invert 8-bit values >= 128, as Pillow's solarize(image) does, with probability p."""
    if not np.any(p):
        return images
    (coins,) = _uniform(keys, 1)
    planes = _planes(images)
    return _images(jnp.where(_expand(coins < p), _solarize(planes), planes))


def _solarize(planes):
    """Invert the values of planes [c, n, h, w] that are at least 128 in 8 bits."""
    return jnp.where(jnp.round(planes * 255) >= 128, 1 - planes, planes)


def _uniform(keys, count):
    """Draw `count` uniform numbers in [0, 1) from each key [n]. Returns [count, n]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)), out_axes=1)(keys)


def _expand(values):
    """Expand one value per image [n] to broadcast over planes [c, n, h, w]."""
    return values[:, None, None]


def _planes(images):
    """Move the channels first, [n, h, w, c] to [c, n, h, w].

    Loops over columns vectorize; loops over 3 channels do not.
    """
    return jnp.moveaxis(images, -1, 0)


def _images(planes):
    """Move the channels last, [c, n, h, w] to [n, h, w, c]."""
    return jnp.moveaxis(planes, 0, -1)


def adjust(images, factors, order):
    """Adjust brightness, contrast, saturation and hue in 8 bits, as Pillow and torchvision do.

    For 8-bit images, the result on CPU equals Pillow's.

    Args:
      images: float [n, h, w, c] in [0, 1].
      factors: {name: float32 [n]} for any of the four operations. A factor f maps x to
        d + f * (x - d), where d is 0 for brightness, the rounded mean luma of the image for
        contrast, and the luma of the pixel for saturation. The hue is shifted by this fraction of
        the color circle, in [-0.5, 0.5].
      order: {name: int [n]}, the position of each operation: for each image, a permutation of
        0, 1, ...

    Returns:
      float [n, h, w, c] in [0, 1].
    """
    planes = _levels(images)
    count = len(factors)
    order = dict(order)
    hue = order.pop("hue", None)
    if hue is None or len(planes) == 1:
        return _images(_blends(planes, factors, order, 0, count) / 255)
    # The hue shift costs as much as the three blends together, so it is computed only once: for
    # each image, first the blends before it, then the hue shift, then the blends after it.
    before = {name: jnp.where(position < hue, position, -1) for name, position in order.items()}
    after = {name: jnp.where(position > hue, position, -1) for name, position in order.items()}
    planes = _blends(planes, factors, before, 0, count - 1)
    planes = _shift_hue(planes, factors["hue"])
    return _images(_blends(planes, factors, after, 1, count) / 255)


def _levels(images):
    """Convert images [n, h, w, c] in [0, 1] to planes [c, n, h, w] of integers in 0 to 255."""
    return jnp.round(_planes(images) * 255)


def _luma(planes):
    """Compute Pillow's "L" (ITU-R 601): [c, n, h, w] to [n, h, w].

    Exact in float32, since all sums are below 2**24.
    """
    if len(planes) == 1:
        return planes[0]
    red, green, blue = planes
    return jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


def _blends(planes, factors, order, start, stop):
    """Apply the blends at positions start to stop - 1.

    Args:
      planes: [c, n, h, w], levels 0 to 255.
      factors: {name: [n]}, see `adjust`.
      order: {name: int [n]}, the position of each blend; blends outside of the range are skipped.
      start: first position.
      stop: last position + 1.

    Returns:
      [c, n, h, w], levels 0 to 255.
    """

    def blend(i, planes):
        luma = _luma(planes)
        factor, target = 1.0, 0.0  # the identity, for images without a blend at position i
        for name, position in order.items():
            factor = jnp.where(position == i, factors[name], factor)
        if "contrast" in order:
            total = luma.astype(jnp.int32).sum((1, 2))  # integers: exact, and the sum vectorizes
            mean = jnp.floor(total / math.prod(luma.shape[1:]) + 0.5)
            target = _expand(jnp.where(order["contrast"] == i, mean, target))
        if "saturation" in order:
            target = jnp.where(_expand(order["saturation"] == i), luma, target)
        factor = jnp.reshape(factor, (-1, 1, 1))
        return jnp.floor(jnp.clip(target + factor * (planes - target), 0, 255))

    # If the loop were unrolled, XLA would recompute each blend for every later use.
    return jax.lax.fori_loop(start, stop, blend, planes)


def _shift_hue(planes, shift):
    """Shift the hue by a fraction of the color circle, in Pillow's 8-bit HSV.

    Pillow rounds hue and saturation down to integers in 0 to 255, and torchvision shifts the hue
    modulo 256. The operations are ordered such that every color is rounded exactly as in Pillow.

    Args:
      planes: RGB [3, n, h, w], levels 0 to 255.
      shift: [n] in [-0.5, 0.5].

    Returns:
      RGB [3, n, h, w], levels 0 to 255.
    """
    red, green, blue = planes
    high = jnp.maximum(jnp.maximum(red, green), blue)
    low = jnp.minimum(jnp.minimum(red, green), blue)
    chroma = high - low
    middle = red + green + blue - high - low
    distance = (high - middle) / jnp.maximum(chroma, 1)  # in sixths, to the nearest odd sixth
    is_red, is_green = red == high, green == high
    center = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))  # hue of the primary, in sixths
    rising = jnp.where(is_red, blue <= green, jnp.where(is_green, red <= blue, green <= red))
    hue = jnp.where(rising, center + 1 - distance, center - 1 + distance)
    # XLA replaces the division by a constant with a multiplication by its reciprocal. The second
    # line corrects for this: the remainder is computed exactly, and is small.
    sixth = hue * (1 / 6)
    hue = sixth + ((hue - 4 * sixth) - 2 * sixth) * (1 / 6)
    hue = jnp.floor(jnp.where(hue < 0, 1 + hue, hue) * 255)
    hue = jnp.where(chroma == 0, 0, hue)
    saturation = jnp.floor(chroma / jnp.maximum(high, 1) * 255)
    shift = jnp.trunc(shift * 255)
    hue = hue + _expand(jnp.where(shift < 0, shift + 256, shift))
    hue = 6 * jnp.where(hue >= 256, hue - 256, hue)

    # HSV to RGB: as a function of the hue, with period 6 * 255, each channel is a trapezoid; the
    # three are a third of the period apart.
    amplitude = high * saturation
    channels = []
    for offset in (5 * 255, 3 * 255, 1 * 255):
        phase = hue + offset
        phase = jnp.where(phase >= 6 * 255, phase - 6 * 255, phase)
        fall = jnp.clip(jnp.minimum(phase, 4 * 255 - phase), 0, 255)
        channels.append(high - jnp.round(amplitude * fall / 255**2))
    return jnp.stack(channels)


def gaussian_blur(images, sigmas):
    """Apply Pillow's GaussianBlur(sigma): three box blurs along each axis, in 8 bits.

    Pixels beyond the edges repeat the edge pixel, in each of the six box blurs. Every box blur
    rounds to 8 bits in Pillow's fixed-point arithmetic, so that the result equals Pillow's.

    Args:
      images: float [n, h, w, c] in [0, 1].
      sigmas: standard deviations [n] in pixels, 0 to MAX_SIGMA.

    Returns:
      float [n, h, w, c] in [0, 1], multiples of 1 / 255.
    """
    weights = _box_weights(sigmas)[:, :, None, None]
    radius = weights.shape[1] - 1

    def box_blur(plane, axis):  # uint8 [n, h, w]
        size = plane.shape[axis]
        pad = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
        padded = jnp.pad(plane, pad, mode="edge")
        windows = [
            jax.lax.slice_in_dim(padded, i, i + size, axis=axis).astype(jnp.uint32)
            for i in range(2 * radius + 1)
        ]
        total = weights[:, 0] * windows[radius] + 2**23  # rounds to nearest
        for i in range(1, radius + 1):
            total += weights[:, i] * (windows[radius - i] + windows[radius + i])
        return (total >> 24).astype(jnp.uint8)

    def blur_plane(plane):
        # Loops, because XLA would otherwise recompute a box blur for every weight of the next one.
        for axis in (2, 1):
            plane = jax.lax.fori_loop(0, 3, lambda _, x, axis=axis: box_blur(x, axis), plane)
        return plane

    blurred = jax.lax.map(blur_plane, _levels(images).astype(jnp.uint8))
    return _images(blurred.astype(jnp.float32) / 255)


def _box_weights(sigmas):
    """Compute the weights of a box blur with variance sigma**2 / 3, as in Pillow's BoxBlur.c.

    A box of fractional radius r has equal weights up to floor(r), and a smaller weight at the next
    pixel on each side (extended box filtering, doi:10.1007/978-3-642-24785-9_38).

    Args:
      sigmas: [n].

    Returns:
      Weights at distance 0, 1, ... in pixels, as multiples of 2**-24, uint32 [n, distances].
    """
    variance = sigmas**2 / 3
    integer = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * integer + 1) * (integer * (integer + 1) - 3 * variance)
    radius = integer + fraction / (6 * (variance - (integer + 1) ** 2))
    inner = jnp.floor(2**24 / (2 * radius + 1)).astype(jnp.int32)[:, None]
    integer = integer.astype(jnp.int32)[:, None]
    outer = (2**24 - (2 * integer + 1) * inner) // 2
    distance = jnp.arange(1 + math.ceil((math.sqrt(4 * MAX_SIGMA**2 + 1) - 1) / 2))
    weights = jnp.where(distance == integer + 1, outer, 0)
    return jnp.where(distance <= integer, inner, weights).astype(jnp.uint32)


def normalize(images, mean, std):
    """Subtract the mean and divide by the standard deviation of each channel.

    Args:
      images: [..., c], uint8 or float in [0, 1].
      mean: [c], on the scale [0, 1].
      std: [c], on the scale [0, 1].

    Returns:
      float32 [..., c].
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    if jnp.issubdtype(images.dtype, jnp.integer):
        images = images.astype(jnp.float32) / 255
    return (images - mean) / std


def flip(images, keys, p):
    """Flip images [n, h, w, c] horizontally, each with probability p. keys: [n]."""
    coins = jax.vmap(lambda key: jax.random.bernoulli(key, p))(keys)
    return jnp.where(coins[:, None, None, None], images[:, :, ::-1], images)


def erase(images, keys, p):
    """Apply random erasing (arXiv:1708.04896), as in timm's "pixel" mode.

    Replaces a box with noise N(0, 1). The box covers 2 to 33% of the area, with height / width
    log-uniform in 0.3 to 3.3; it is the first of ten random boxes that is smaller than the image.

    Args:
      images: normalized images [n, h, w, c].
      keys: [n].
      p: probability per image.

    Returns:
      [n, h, w, c].
    """

    def erase_one(image, key):
        h, w = image.shape[:2]
        coin_key, box_key, noise_key = jax.random.split(key, 3)
        top, left, height, width = erase_box(box_key, h, w)
        rows = jnp.arange(h)[:, None, None]
        columns = jnp.arange(w)[None, :, None]
        inside = (rows >= top) & (rows < top + height)
        inside &= (columns >= left) & (columns < left + width)
        noise = _pixel_noise(noise_key, image.shape)
        return jnp.where(inside & jax.random.bernoulli(coin_key, p), noise, image)

    return jax.vmap(erase_one)(images, keys)


def _pixel_noise(key, shape):
    """Draw N(0, 1) for all pixels of an image from its key, float32.

    On accelerators threefry takes longer than the rest of the augmentation
    (experiments/compile_check).
    """
    return jax.lax.platform_dependent(
        key,
        cpu=lambda key: jax.random.normal(key, shape, jnp.float32),
        default=lambda key: hashed_normal(key, shape),
    )


def hashed_normal(key, shape):
    """Draw N(0, 1) from a hash of the key and of the index of each value.

    It takes a tenth of the operations of threefry, and is good enough for noise in images. Values
    are a function of the key and their index alone, however the program is batched or sharded.

    Args:
      key: a typed key.
      shape: shape of the result.

    Returns:
      float32 array of 2**23 different values, symmetric around 0.
    """
    first, second = jax.random.key_data(key)[:2]
    index = jnp.uint32(0)
    for axis, size in enumerate(shape):
        index = index * size + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    bits = _hash(_hash(index + first) ^ second)
    odd = ((bits >> 8) | 1).astype(jnp.int32) - 2**23
    return np.float32(math.sqrt(2)) * jax.lax.erf_inv(odd.astype(jnp.float32) * 2**-23)


def _hash(x):
    """Mix the bits of uint32 by a bijection (multiply and xor-shift, as in MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def erase_box(key, h, w):
    """Sample the box that is erased in an image of size [h, w].

    Returns:
      top, left, height, width in pixels; height and width are 0 if none of ten boxes fits.
    """
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    area = h * w * jax.random.uniform(area_key, (10,), minval=0.02, maxval=1 / 3)
    low, high = math.log(0.3), math.log(1 / 0.3)
    aspect = jnp.exp(jax.random.uniform(aspect_key, (10,), minval=low, maxval=high))
    height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (height < h) & (width < w)
    first = jnp.argmax(fits)
    height, width = height[first] * fits[first], width[first] * fits[first]
    top = jax.random.randint(top_key, (), 0, h - height + 1)
    left = jax.random.randint(left_key, (), 0, w - width + 1)
    return top, left, height, width
