"""The host's part of a view: channels, crop, resize, affine map, RandAugment.

Functions take one uint8 image [h, w, c], return another, and run in threads and worker processes.
Random ones take a NumPy Generator.
"""

import functools
import math

import numpy as np
from PIL import Image

from vit_jax.augment.randaugment import big_vision, rand_augment, to_array, to_pil
from vit_jax.augment.resize import resize
from vit_jax.config import parse_randaugment

BILINEAR = Image.Resampling.BILINEAR


def views(config):
    """-> view(image, rng) for training, train_view or multi_crop, and eval_view(image), as
    config.augment and config.model say."""
    a = config.augment
    common = {
        "size": config.model.image,
        "channels": config.model.channels,
        "eval_crop": a.eval_crop,
    }
    evaluation = functools.partial(eval_view, **common)
    names = ("scale", "ratio")
    if a.crop == "multi":
        names += ("local_views", "local_size", "local_scale")
        options = {name: a[name] for name in names}
        size, channels = config.model.image, config.model.channels
        return functools.partial(multi_crop, size=size, channels=channels, **options), evaluation
    names += ("crop", "pad", "rotate", "shift", "zoom", "shear")
    options = {name: a[name] for name in names}
    if policy := parse_randaugment(a.randaugment):
        if a.randaugment.startswith("rand-"):
            fill = tuple(min(255, round(255 * x)) for x in config.data.mean)
            options["policy"] = functools.partial(rand_augment, **policy, fill=fill)
        else:
            options["policy"] = functools.partial(big_vision, **policy)
    return functools.partial(train_view, **common, **options), evaluation


def train_view(
    image,
    rng,
    *,
    size,
    channels,
    crop="resized",
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    pad=0,
    rotate=0.0,
    shift=0.0,
    zoom=0.0,
    shear=0.0,
    policy=None,
    eval_crop=0.875,
):
    """A random view, uint8 [size, size, channels]; `rng` is a numpy Generator.

    crop: "resized" (random_resized_crop), "pad" (the eval view, shifted by up to `pad` pixels) or
    "none" (the eval view). An affine map follows where rotate, shift, zoom or shear is not 0, then
    policy(image, rng), such as randaugment.rand_augment: it is even in left and right, so that it
    does not matter that the device flips afterwards.
    """
    if crop == "resized":
        image = to_channels(image, channels, before=True)
        image = to_channels(random_resized_crop(image, rng, size, scale, ratio), channels)
    else:
        image = eval_view(image, size=size, channels=channels, eval_crop=eval_crop)
        if crop == "pad":
            image = pad_crop(image, rng, pad)
    if rotate or shift or zoom or shear:
        image = affine(image, rng, rotate, shift, zoom, shear)
    return policy(image, rng) if policy else image


def multi_crop(
    image, rng, *, size, channels, scale, local_views, local_size, local_scale, ratio=(3 / 4, 4 / 3)
):
    """Two random crops of most of the image, and small ones of little of it (arXiv:2006.09882,
    section 3.3), from the image in full resolution.

    -> {"global": uint8 [2, size, size, channels], "local": [local_views, local_size, ...]}, without
    "local" where local_views is 0.
    """
    image = to_channels(image, channels, before=True)

    def crops(count, size, scale):
        views = (random_resized_crop(image, rng, size, scale, ratio) for _ in range(count))
        return np.stack([to_channels(view, channels) for view in views])

    found = {"global": crops(2, size, scale)}
    if local_views:
        found["local"] = crops(local_views, local_size, local_scale)
    return found


def eval_view(image, *, size, channels, eval_crop):
    """The deterministic view: short side to floor(size / eval_crop), bicubic, then the center.

    Rounding as torchvision: the long side is truncated, the center's offset rounded half to even.
    Returns uint8 [size, size, channels]; equals Resize and CenterCrop on PIL images.
    """
    image = to_channels(image, channels, before=True)
    h, w = image.shape[:2]
    short = math.floor(size / eval_crop)
    if min(h, w) != short:
        h, w = (short, short * w // h) if h <= w else (short * h // w, short)
        image = resize(image, w, h)
    if (h, w) != (size, size):
        y, x = round((h - size) / 2), round((w - size) / 2)
        image = image[y : y + size, x : x + size]
    return to_channels(image, channels)


def to_channels(image, channels, before=False):
    """uint8 [h, w, c] -> [h, w, channels]: gray repeated, or color's luma (ITU-R 601, as PIL).

    before: only what makes the work that follows less, from color to gray.
    """
    if image.shape[2] == channels or (before and channels > 1):
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    luma = image @ np.array([19595, 38470, 7471], np.uint32) + 0x8000
    return (luma >> 16).astype(np.uint8)[..., None]


def random_resized_crop(image, rng, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """A box of random area and shape, resized to a square: uint8 [size, size, c].

    Inception's crop (Szegedy et al. 2015, section 6) with the draws of torchvision's
    RandomResizedCrop: up to ten boxes with area in `scale` and log-uniform width / height in
    `ratio`, else the largest centerd box within `ratio`.
    """
    box = _crop_box(image.shape[0], image.shape[1], rng, scale, ratio)
    return resize(image, size, size, box)


def _crop_box(height, width, rng, scale, ratio):
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return int(y), int(x), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def pad_crop(image, rng, pad):
    """The image shifted by up to `pad` pixels each way, black where it was not."""
    y, x = rng.integers(2 * pad + 1, size=2)
    h, w, c = image.shape
    padded = np.zeros((h + 2 * pad, w + 2 * pad, c), image.dtype)  # np.pad takes 4 times as long
    padded[pad : pad + h, pad : pad + w] = image
    return padded[y : y + h, x : x + w]


def affine(image, rng, rotate=0.0, shift=0.0, zoom=0.0, shear=0.0):
    """Turned, sheared, scaled and moved about its center in one bilinear step, black outside.

    Each is drawn uniformly: degrees within +-rotate and +-shear (along x), scale within 1 +- zoom,
    and shares of the side within +-shift, along x and y.
    """
    h, w = image.shape[:2]
    turn, slant, grow, dx, dy = rng.uniform(-1, 1, 5)
    angle, k = math.radians(turn * rotate), math.tan(math.radians(slant * shear))
    s = 1 + grow * zoom
    cos, sin = math.cos(angle) / s, math.sin(angle) / s
    # PIL wants the map from output to input: undo the shift, the turn, the shear, the scale. In
    # plain floats: NumPy's overhead on 2 x 2 would be half of the whole.
    xx, xy, yx, yy = cos + k * sin, sin - k * cos, -sin, cos
    x, y = w / 2 + dx * shift * w, h / 2 + dy * shift * h
    data = (xx, xy, w / 2 - xx * x - xy * y, yx, yy, h / 2 - yx * x - yy * y)
    return to_array(to_pil(image).transform((w, h), Image.Transform.AFFINE, data, BILINEAR))
