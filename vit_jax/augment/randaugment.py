"""RandAugment (arXiv:1909.13719) on the host: the variants of timm (used by DeiT) and big_vision.

The timm variant has fifteen operations, with timm's names. They are its "increasing" operations: a
larger magnitude, from 0 to 10, changes the image more. All operations match Pillow's, including
rounding.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.augment.shear import shear

MAX_MAGNITUDE = 10
BICUBIC = Image.Resampling.BICUBIC
NEAREST = Image.Resampling.NEAREST


def rand_augment(image, rng, *, magnitude, std=0.0, layers=2, p=0.5, fill=(128,)):
    """Apply RandAugment as in timm; operations are sampled with replacement.

    Args:
      image: uint8 [h, w, 1 or 3].
      rng: NumPy Generator.
      magnitude: mean magnitude of the operations, 0 to 10; the signs are random.
      std: standard deviation of the magnitudes.
      layers: number of operations that are sampled.
      p: probability that a sampled operation is applied.
      fill: value per channel for pixels from outside of the image, 0 to 255.

    Returns:
      uint8 [h, w, 1 or 3].
    """
    names = [NAMES[i] for i in rng.integers(len(NAMES), size=layers)]
    selected = rng.random(layers) < p
    negative = rng.random(layers) < 0.5
    sizes = np.clip(rng.normal(magnitude, std, layers), 0, MAX_MAGNITUDE)
    pil = None
    for name, applied, negated, size in zip(names, selected, negative, sizes, strict=True):
        if applied:
            pil = to_pil(image) if pil is None else pil
            x = float(-size if negated else size) / MAX_MAGNITUDE
            pil = OPERATIONS[name](pil, x, _fill(fill, pil))
    return image if pil is None else to_array(pil)


def apply_op(name, image, magnitude, fill=(124, 116, 104)):
    """Apply one operation of the timm variant.

    Args:
      name: timm's name of the operation, a key of `OPERATIONS`.
      image: uint8 [h, w, 1 or 3].
      magnitude: -10 to 10. The sign selects the direction of operations that have two directions,
        such as Rotate or BrightnessIncreasing; all other operations ignore it.
      fill: value per channel for pixels from outside of the image, 0 to 255.

    Returns:
      uint8 [h, w, 1 or 3].

    Raises:
      KeyError: if there is no such operation.
    """
    pil = to_pil(image)
    return to_array(OPERATIONS[name](pil, magnitude / MAX_MAGNITUDE, _fill(fill, pil)))


class Sharpness(ImageEnhance.Sharpness):
    """ImageEnhance.Sharpness with the blur (ImageFilter.SMOOTH) computed in integers.

    Pixels are identical to Pillow's, in a third of the time.
    """

    def __init__(self, pil):
        image = to_array(pil)
        h, w, c = image.shape
        flat = image.reshape(h, -1).astype(np.uint16)
        rows = flat[:-2] + flat[1:-1] + flat[2:]
        total = rows[:, : -2 * c] + rows[:, c:-c] + rows[:, 2 * c :] + 4 * flat[1:-1, c:-c]
        blurred = image.copy()  # the border is not blurred
        blurred[1:-1, 1:-1] = ((total + 6) // 13).reshape(max(h - 2, 0), max(w - 2, 0), c)
        self.image = pil
        self.degenerate = to_pil(blurred)


def _posterize(pil, bits):
    # Pillow rejects 0 bits since version 13; earlier versions returned a black image.
    return ImageOps.posterize(pil, bits) if bits else pil.point(lambda _: 0)


def _add_below(pil, added):
    """Add a constant to pixel values below 128."""
    table = [min(255, i + added) if i < 128 else i for i in range(256)]
    return pil.point(table * len(pil.getbands()))


def _increasing(enhancer):
    return lambda pil, x, _: enhancer(pil).enhance(max(0.1, 1 + x * 0.9))


# name: function (image, x, fill) -> image, where x in [-1, 1] is the signed magnitude / 10.
OPERATIONS = {
    "AutoContrast": lambda pil, *_: ImageOps.autocontrast(pil),
    "Equalize": lambda pil, *_: ImageOps.equalize(pil),
    "Invert": lambda pil, *_: ImageOps.invert(pil),
    "Rotate": lambda pil, x, fill: pil.rotate(x * 30.0, BICUBIC, fillcolor=fill),
    "PosterizeIncreasing": lambda pil, x, _: _posterize(pil, 4 - int(abs(x) * 4)),
    "SolarizeIncreasing": lambda pil, x, _: ImageOps.solarize(pil, 256 - int(abs(x) * 256)),
    "SolarizeAdd": lambda pil, x, _: _add_below(pil, int(abs(x) * 110)),
    "ColorIncreasing": _increasing(ImageEnhance.Color),
    "ContrastIncreasing": _increasing(ImageEnhance.Contrast),
    "BrightnessIncreasing": _increasing(ImageEnhance.Brightness),
    "SharpnessIncreasing": _increasing(Sharpness),
    "ShearX": lambda pil, x, fill: shear(pil, 1, x * 0.3, 0.0, fill),
    "ShearY": lambda pil, x, fill: shear(pil, 0, x * 0.3, 0.0, fill),
    "TranslateXRel": lambda pil, x, fill: shear(pil, 1, 0.0, x * 0.45 * pil.width, fill),
    "TranslateYRel": lambda pil, x, fill: shear(pil, 0, 0.0, x * 0.45 * pil.height, fill),
}
NAMES = tuple(OPERATIONS)


def big_vision(image, rng, *, magnitude, layers=2):
    """Apply RandAugment as in big_vision; sixteen operations are sampled with replacement.

    Equals randaug(layers, magnitude) in pp/archive/autoaugment.py at commit 3925d42. Geometric
    operations have a random sign and use nearest-neighbor interpolation; pixels from outside of the
    image are gray (128). All other operations have one direction: at magnitude 10, color, contrast,
    brightness and sharpness are multiplied by 1.9, and Solarize has no effect.

    Args:
      image: uint8 [h, w, 1 or 3].
      rng: NumPy Generator.
      magnitude: magnitude of the operations, 0 to 30.
      layers: number of operations that are applied.

    Returns:
      uint8 [h, w, 1 or 3].
    """
    pil = to_pil(image)
    x = magnitude / MAX_MAGNITUDE
    fill = _fill((128,) * 3, pil)
    for i in rng.integers(len(BIG_VISION), size=layers):
        sign = 1 - 2 * rng.integers(2)
        center = rng.random(2)
        pil = BIG_VISION[i](pil, x * sign, fill, center)
    return to_array(pil)


def _enhance(enhancer):
    return lambda pil, x, *_: enhancer(pil).enhance(abs(x) * 1.8 + 0.1)


def _affine(pil, data, fill):
    return pil.transform(pil.size, Image.Transform.AFFINE, data, NEAREST, fillcolor=fill)


def _cutout(pil, x, fill, center):
    """Cut out a square around a random pixel (arXiv:1708.04552), of side 80 at magnitude 10."""
    pil = pil.copy()
    half = int(abs(x) * 40)
    column, row = (int(c * size) for c, size in zip(center, pil.size, strict=True))
    pil.paste(fill, (column - half, row - half, column + half, row + half))
    return pil


# Functions (image, x, fill, center) -> image, where x is the signed magnitude / 10.
BIG_VISION = (
    lambda pil, *_: ImageOps.autocontrast(pil),
    lambda pil, *_: ImageOps.equalize(pil),
    lambda pil, *_: ImageOps.invert(pil),
    lambda pil, x, fill, _: pil.rotate(x * 30, NEAREST, fillcolor=fill),
    lambda pil, x, *_: _posterize(pil, min(8, int(abs(x) * 4))),
    lambda pil, x, *_: ImageOps.solarize(pil, int(abs(x) * 256)),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(Sharpness),
    lambda pil, x, fill, _: _affine(pil, (1, x * 0.3, 0, 0, 1, 0), fill),
    lambda pil, x, fill, _: _affine(pil, (1, 0, 0, x * 0.3, 1, 0), fill),
    lambda pil, x, fill, _: _affine(pil, (1, 0, x * 100, 0, 1, 0), fill),
    lambda pil, x, fill, _: _affine(pil, (1, 0, 0, 0, 1, x * 100), fill),
    _cutout,
    lambda pil, x, *_: _add_below(pil, int(abs(x) * 110)),
)


def _fill(fill, pil):
    """Return the fill value of RGB images, or its mean over the channels for grayscale images."""
    return tuple(fill) if pil.mode == "RGB" else round(sum(fill) / len(fill))


def to_pil(image):
    """Convert an array, uint8 [h, w, 1 or 3], to a PIL image in mode "L" or "RGB"."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def to_array(pil):
    """Convert a PIL image in mode "L" or "RGB" to an array, uint8 [h, w, 1 or 3]."""
    array = np.asarray(pil)
    return array[..., None] if array.ndim == 2 else array
