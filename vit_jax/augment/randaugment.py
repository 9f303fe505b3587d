"""RandAugment (arXiv:1909.13719) on the host, as timm has it and DeiT uses it, and big_vision's.

timm's fifteen operations are the "increasing" ones, by timm's names: a larger magnitude, from 0 to
10, changes the image more. They are Pillow's, and what Pillow rounds away is part of them.
"""

import functools

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.augment.shear import shear

MOST = 10  # magnitude
DEGREES, SHEAR, SHARE, CHANGE = 30.0, 0.3, 0.45, 0.9  # at magnitude 10
BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
AFFINE = Image.Transform.AFFINE


def rand_augment(image, rng, *, magnitude, std=0.0, layers=2, p=0.5, fill=(128,)):
    """`layers` operations, drawn with replacement, each applied with probability p.

    image: uint8 [h, w, 1 or 3]; rng: a numpy Generator; magnitude: of each N(magnitude, std), kept
    within 0 to 10, its sign even; fill: what is outside of the image, a level a channel.
    """
    names = [NAMES[i] for i in rng.integers(len(NAMES), size=layers)]
    applied, negative = rng.random(layers) < p, rng.random(layers) < 0.5
    sizes = np.clip(rng.normal(magnitude, std, layers), 0, MOST)
    pil = None
    for name, wanted, minus, size in zip(names, applied, negative, sizes, strict=True):
        if wanted:
            pil = to_pil(image) if pil is None else pil
            pil = OPERATIONS[name](pil, float(-size if minus else size), _fill(fill, pil))
    return image if pil is None else to_array(pil)


def apply_op(name, image, magnitude, fill=(124, 116, 104)):
    """One operation, by timm's name: uint8 [h, w, c] -> the same. Raises KeyError.

    magnitude: -10 to 10. For what has two directions, such as Rotate or BrightnessIncreasing, the
    sign is the direction; the others take its absolute value.
    """
    pil = to_pil(image)
    return to_array(OPERATIONS[name](pil, float(magnitude), _fill(fill, pil)))


def _posterize(pil, level, _):
    bits = 4 - int(abs(level) / MOST * 4)
    # Pillow refuses 0 bits since version 13; it was, and is, a black image.
    return ImageOps.posterize(pil, bits) if bits else pil.point(lambda _: 0)


def _solarize(pil, level, _):
    return ImageOps.solarize(pil, 256 - min(256, int(abs(level) / MOST * 256)))


def _solarize_add(pil, level, _):
    added = min(128, int(abs(level) / MOST * 110))
    table = [min(255, i + added) if i < 128 else i for i in range(256)]
    return pil.point(table * len(pil.getbands()))


def _enhance(change, pil, level, _):
    return change(pil, max(0.1, 1 + level / MOST * CHANGE))


def _color(pil, factor):
    return ImageEnhance.Color(pil).enhance(factor)


def _contrast(pil, factor):
    return ImageEnhance.Contrast(pil).enhance(factor)


def _brightness(pil, factor):
    return ImageEnhance.Brightness(pil).enhance(factor)


def _sharpness(pil, factor):
    """ImageEnhance.Sharpness, whose blurred image (ImageFilter.SMOOTH) is made in whole numbers:
    the same pixels in a third of the time."""
    image = to_array(pil)
    h, w, c = image.shape
    flat = image.reshape(h, -1).astype(np.uint16)
    rows = flat[:-2] + flat[1:-1] + flat[2:]
    total = rows[:, : -2 * c] + rows[:, c:-c] + rows[:, 2 * c :] + 4 * flat[1:-1, c:-c]
    blurred = image.copy()  # which keeps its rim
    blurred[1:-1, 1:-1] = ((total + 6) // 13).reshape(max(h - 2, 0), max(w - 2, 0), c)
    return Image.blend(to_pil(blurred), pil, factor)


def _rotate(pil, level, fill):
    return pil.rotate(level / MOST * DEGREES, BICUBIC, fillcolor=fill)


def _shear_x(pil, level, fill):
    return shear(pil, 1, level / MOST * SHEAR, 0.0, fill)


def _shear_y(pil, level, fill):
    return shear(pil, 0, level / MOST * SHEAR, 0.0, fill)


def _translate_x(pil, level, fill):
    return shear(pil, 1, 0.0, level / MOST * SHARE * pil.size[0], fill)


def _translate_y(pil, level, fill):
    return shear(pil, 0, 0.0, level / MOST * SHARE * pil.size[1], fill)


OPERATIONS = {
    "AutoContrast": lambda pil, *_: ImageOps.autocontrast(pil),
    "Equalize": lambda pil, *_: ImageOps.equalize(pil),
    "Invert": lambda pil, *_: ImageOps.invert(pil),
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": functools.partial(_enhance, _color),
    "ContrastIncreasing": functools.partial(_enhance, _contrast),
    "BrightnessIncreasing": functools.partial(_enhance, _brightness),
    "SharpnessIncreasing": functools.partial(_enhance, _sharpness),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}
NAMES = tuple(OPERATIONS)


def big_vision(image, rng, *, magnitude, layers=2):
    """`layers` of big_vision's sixteen operations, drawn with replacement, all of them applied.

    Its randaug(layers, magnitude), pp/archive/autoaugment.py at 3925d42: what turns or moves does
    so either way, to the nearest pixel; the rest goes one way, so that at 10 colors, contrast,
    brightness and sharpness are all times 1.9 and Solarize does nothing; gray (128) comes in from
    outside. image: uint8 [h, w, 1 or 3].
    """
    pil, share = to_pil(image), magnitude / MOST
    for i in rng.integers(len(BIG_VISION), size=layers):
        sign, center = 1 - 2 * rng.integers(2), rng.random(2)
        pil = BIG_VISION[i](pil, share, share * sign, center)
    return to_array(pil)


def _nearest(map_):
    """An operation from share -> the affine map from output to input."""

    def transform(pil, _, share, __):
        fill = _fill((128,) * 3, pil)
        return pil.transform(pil.size, AFFINE, map_(share), NEAREST, fillcolor=fill)

    return transform


def _factor(change):
    return lambda pil, share, *_: change(pil, share * 1.8 + 0.1)


def _posterize_to(pil, share, *_):
    bits = min(8, int(share * 4))
    return ImageOps.posterize(pil, bits) if bits else pil.point(lambda _: 0)


def _add_below(pil, share, *_):
    table = [min(255, i + int(share * 110)) if i < 128 else i for i in range(256)]
    return pil.point(table * len(pil.getbands()))


def _cutout(pil, share, _, center):
    """A gray square of 80 pixels, at 10, about any pixel (arXiv:1708.04552)."""
    pil, half = pil.copy(), int(share * 40)
    x, y = (int(c * size) for c, size in zip(center, pil.size, strict=True))
    pil.paste(_fill((128,) * 3, pil), (x - half, y - half, x + half, y + half))
    return pil


BIG_VISION = (
    lambda pil, *_: ImageOps.autocontrast(pil),
    lambda pil, *_: ImageOps.equalize(pil),
    lambda pil, *_: ImageOps.invert(pil),
    lambda pil, _, share, __: pil.rotate(share * 30, NEAREST, fillcolor=_fill((128,) * 3, pil)),
    _posterize_to,
    lambda pil, share, *_: ImageOps.solarize(pil, int(share * 256)),
    _factor(_color),
    _factor(_contrast),
    _factor(_brightness),
    _factor(_sharpness),
    _nearest(lambda share: (1, share * 0.3, 0, 0, 1, 0)),
    _nearest(lambda share: (1, 0, 0, share * 0.3, 1, 0)),
    _nearest(lambda share: (1, 0, share * 100, 0, 1, 0)),
    _nearest(lambda share: (1, 0, 0, 0, 1, share * 100)),
    _cutout,
    _add_below,
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
