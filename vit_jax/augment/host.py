"""The host's part of a view: channels, crop, resize, affine map, RandAugment.

Functions map one uint8 image [h, w, c] to another and run in threads and worker processes. Random
ones take a NumPy Generator.
"""

import functools
import math

import numpy as np
from PIL import Image

from vit_jax.augment.randaugment import big_vision, rand_augment, to_array, to_pil
from vit_jax.augment.resize import resize
from vit_jax.config import parse_randaugment

BILINEAR = Image.Resampling.BILINEAR


def transforms(config):
    """The views of an image that config.augment and config.model ask for.

    Returns:
      view(image, rng) for training, see `train_view` and `multi_crop`, and view(image) for
      evaluation, see `eval_view`.
    """
    a = config.augment
    common = {"size": config.model.image, "channels": config.model.channels}
    evaluation = functools.partial(eval_view, **common, eval_crop=a.eval_crop)
    if a.crop == "multi":
        names = ("scale", "ratio", "local_views", "local_size", "local_scale")
        options = {name: a[name] for name in names}
        return functools.partial(multi_crop, **common, **options), evaluation
    policy = None
    if options := parse_randaugment(a.randaugment):
        policy = functools.partial(big_vision, **options)
        if a.randaugment.startswith("rand-"):
            fill = tuple(min(255, round(255 * x)) for x in config.data.mean)
            policy = functools.partial(rand_augment, **options, fill=fill)
    names = ("eval_crop", "crop", "scale", "ratio", "pad", "rotate", "shift", "zoom", "shear")
    options = {name: a[name] for name in names}
    return functools.partial(train_view, **common, **options, policy=policy), evaluation


def train_view(image, rng, *, size, channels, crop, scale, ratio, pad, eval_crop, policy, **move):
    """One random view.

    Args:
      image: uint8 [h, w, c].
      rng: NumPy Generator.
      size, channels: of the view.
      crop: "resized", see `random_resized_crop`; "pad", the evaluation view, see `pad_crop`;
        "none", the evaluation view.
      scale, ratio, pad, eval_crop: see these functions.
      policy: None, or policy(image, rng), such as `randaugment.rand_augment`: it treats left and
        right alike, so it may come before the device's flip.
      **move: maxima of the affine map that follows the crop, see `affine`; all 0: none.

    Returns:
      uint8 [size, size, channels].
    """
    if crop == "resized":
        image = to_channels(image, channels, before=True)
        image = to_channels(random_resized_crop(image, rng, size, scale, ratio), channels)
    else:
        image = eval_view(image, size=size, channels=channels, eval_crop=eval_crop)
        if crop == "pad":
            image = pad_crop(image, rng, pad)
    if any(move.values()):
        image = affine(image, rng, **move)
    return policy(image, rng) if policy else image


def multi_crop(image, rng, *, size, channels, scale, ratio, local_views, local_size, local_scale):
    """Two global crops, and small local ones, from the image in full resolution.

    arXiv:2006.09882, section 3.3.

    Returns:
      {"global": uint8 [2, size, size, channels], "local": [local_views, local_size, ...]}, without
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
    """The view for evaluation: short side to floor(size / eval_crop), bicubic, then center crop.

    Equals torchvision's Resize and CenterCrop on PIL images: the long side is truncated, the
    center's offset rounded half to even.

    Returns:
      uint8 [size, size, channels].
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
    """uint8 [h, w, c] -> [h, w, channels]: gray repeated, or the luma of RGB (ITU-R 601, as PIL).

    before: before other work, where only the conversion to gray pays.
    """
    if image.shape[2] == channels or (before and channels > 1):
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    luma = image @ np.array([19595, 38470, 7471], np.uint32) + 0x8000
    return (luma >> 16).astype(np.uint8)[..., None]


def random_resized_crop(image, rng, size, scale, ratio):
    """Inception's crop (arXiv:1409.4842, section 6), drawn as torchvision's RandomResizedCrop.

    Up to ten boxes with area in `scale` and log-uniform width / height in `ratio`, else the
    largest centered box within `ratio`.

    Returns:
      uint8 [size, size, c].
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
    """Shift the image by up to `pad` pixels in each direction, over black."""
    y, x = rng.integers(2 * pad + 1, size=2)
    h, w, c = image.shape
    padded = np.zeros((h + 2 * pad, w + 2 * pad, c), image.dtype)  # np.pad takes 4 times as long
    padded[pad : pad + h, pad : pad + w] = image
    return padded[y : y + h, x : x + w]


def affine(image, rng, rotate=0.0, shift=0.0, zoom=0.0, shear=0.0):
    """A random affine map about the center, bilinear, black outside.

    All are drawn uniformly: degrees within +-rotate and +-shear (along x), scale within 1 +- zoom,
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
