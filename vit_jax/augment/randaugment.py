"""RandAugment (arXiv:1909.13719) on the host, as in timm and DeiT, and as in big_vision.

timm's fifteen operations are the "increasing" ones, by timm's names: a larger magnitude, from 0 to
10, changes the image more. They are Pillow's, rounding included.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.augment.shear import shear

MAX_MAGNITUDE = 10
BICUBIC = Image.Resampling.BICUBIC
NEAREST = Image.Resampling.NEAREST


def rand_augment(image, rng, *, magnitude, std=0.0, layers=2, p=0.5, fill=(128,)):
    """Apply timm's operations, drawn with replacement.

    Args:
      image: uint8 [h, w, 1 or 3].
      rng: NumPy Generator.
      magnitude: mean of the operations' magnitudes, 0 to 10; the sign of each is drawn too.
      std: standard deviation of the magnitudes.
      layers: number of operations drawn.
      p: probability of applying each.
      fill: level per channel of what is outside of the image.

    Returns:
      uint8 [h, w, 1 or 3].
    """
    names = [NAMES[i] for i in rng.integers(len(NAMES), size=layers)]
    applied = rng.random(layers) < p
    negative = rng.random(layers) < 0.5
    sizes = np.clip(rng.normal(magnitude, std, layers), 0, MAX_MAGNITUDE)
    pil = None
    for name, wanted, minus, size in zip(names, applied, negative, sizes, strict=True):
        if wanted:
            pil = to_pil(image) if pil is None else pil
            x = float(-size if minus else size) / MAX_MAGNITUDE
            pil = OPERATIONS[name](pil, x, _fill(fill, pil))
    return image if pil is None else to_array(pil)


def apply_op(name, image, magnitude, fill=(124, 116, 104)):
    """Apply one operation, by timm's name. Raises KeyError.

    magnitude: -10 to 10. For operations with two directions, such as Rotate or
    BrightnessIncreasing, the sign is the direction; the others take its absolute value.
    """
    pil = to_pil(image)
    return to_array(OPERATIONS[name](pil, magnitude / MAX_MAGNITUDE, _fill(fill, pil)))


class Sharpness(ImageEnhance.Sharpness):
    """ImageEnhance.Sharpness with its blurred image (ImageFilter.SMOOTH) made in whole numbers: the
    same pixels in a third of the time."""

    def __init__(self, pil):
        image = to_array(pil)
        h, w, c = image.shape
        flat = image.reshape(h, -1).astype(np.uint16)
        rows = flat[:-2] + flat[1:-1] + flat[2:]
        total = rows[:, : -2 * c] + rows[:, c:-c] + rows[:, 2 * c :] + 4 * flat[1:-1, c:-c]
        blurred = image.copy()  # the rim stays as it is
        blurred[1:-1, 1:-1] = ((total + 6) // 13).reshape(max(h - 2, 0), max(w - 2, 0), c)
        self.image = pil
        self.degenerate = to_pil(blurred)


def _posterize(pil, bits):
    # Pillow refuses 0 bits since version 13; it was, and is, a black image.
    return ImageOps.posterize(pil, bits) if bits else pil.point(lambda _: 0)


def _add_below(pil, added):
    """Pixels below 128 become brighter."""
    table = [min(255, i + added) if i < 128 else i for i in range(256)]
    return pil.point(table * len(pil.getbands()))


def _increasing(kind):
    return lambda pil, x, _: kind(pil).enhance(max(0.1, 1 + x * 0.9))


# name: (image, x, fill) -> image, where x is the signed magnitude as a share of 10.
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
    """Apply `layers` of big_vision's sixteen operations, drawn with replacement.

    Its randaug(layers, magnitude), pp/archive/autoaugment.py at 3925d42: geometric operations have
    a random sign and take the nearest pixel; the others go one way, so that at 10 color, contrast,
    brightness and sharpness are all times 1.9 and Solarize does nothing. Outside of the image is
    gray (128). image: uint8 [h, w, 1 or 3].
    """
    pil = to_pil(image)
    share = magnitude / MAX_MAGNITUDE
    fill = _fill((128,) * 3, pil)
    for i in rng.integers(len(BIG_VISION), size=layers):
        sign = 1 - 2 * rng.integers(2)
        center = rng.random(2)
        pil = BIG_VISION[i](pil, share * sign, fill, center)
    return to_array(pil)


def _enhance(kind):
    return lambda pil, x, *_: kind(pil).enhance(abs(x) * 1.8 + 0.1)


def _affine(pil, data, fill):
    return pil.transform(pil.size, Image.Transform.AFFINE, data, NEAREST, fillcolor=fill)


def _cutout(pil, x, fill, center):
    """A gray square of 80 pixels, at magnitude 10, about any pixel (arXiv:1708.04552)."""
    pil = pil.copy()
    half = int(abs(x) * 40)
    column, row = (int(c * size) for c, size in zip(center, pil.size, strict=True))
    pil.paste(fill, (column - half, row - half, column + half, row + half))
    return pil


# (image, x, fill, center) -> image, where x is the signed magnitude as a share of 10.
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
    return tuple(fill) if pil.mode == "RGB" else round(sum(fill) / len(fill))


def to_pil(image):
    """uint8 [h, w, 1 or 3] -> PIL image, gray or RGB."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def to_array(pil):
    """PIL image, gray or RGB -> uint8 [h, w, 1 or 3]."""
    array = np.asarray(pil)
    return array[..., None] if array.ndim == 2 else array
