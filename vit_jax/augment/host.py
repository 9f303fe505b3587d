"""Augmentations on the host: channel conversion, crop, resize, affine transform, RandAugment.

Functions map one uint8 image [h, w, c] to another and run in threads and worker processes. Random
augmentations take a NumPy Generator.
"""

import functools
import math

import numpy as np
from PIL import Image

from vit_jax.augment.randaugment import big_vision, rand_augment, to_array, to_pil
from vit_jax.augment.resize import BICUBIC, BILINEAR, resize, resize_window
from vit_jax.config import parse_randaugment
from vit_jax.schema import pair

KERNELS = {"bicubic": BICUBIC, "bilinear": BILINEAR}
MAX_ASPECT_RATIO = 16  # above, the resized image would be much larger than the view


def transforms(config):
    """Create the host transforms for training and evaluation.

    Args:
      config: the run's config; uses config.augment, config.model and config.data.mean.

    Returns:
      The training transform `(image, rng) -> view`, which is `multi_crop` or `train_view`, and the
      evaluation transform `image -> view`, which is `eval_view`.
    """
    a = config.augment
    common = {"size": config.model.image, "channels": config.model.channels}
    common["interpolation"] = a.interpolation
    whole = {"eval_crop": a.eval_crop, "crop_mode": a.crop_mode}
    evaluation = functools.partial(eval_view, **common, **whole)
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
    names = ("crop", "scale", "ratio", "pad", "rotate", "shift", "zoom", "shear")
    options = {name: a[name] for name in names} | whole
    return functools.partial(train_view, **common, **options, policy=policy), evaluation


def train_view(
    image,
    rng,
    *,
    size,
    channels,
    crop,
    scale,
    ratio,
    pad,
    eval_crop,
    policy,
    interpolation="bicubic",
    crop_mode="center",
    **ranges,
):
    """Create a random training view.

    Args:
      image: uint8 [h, w, c].
      rng: NumPy Generator.
      size: side of the view in pixels, or its (height, width).
      channels: channels of the view, 1, 3 or 4.
      crop: "resized" for `random_resized_crop`, "simple" for `simple_random_crop`, "pad" for
        `eval_view` followed by `pad_crop`, or "none" for `eval_view`.
      scale: see `random_resized_crop`.
      ratio: see `random_resized_crop`.
      pad: see `pad_crop` and `simple_random_crop`.
      eval_crop: see `eval_view`.
      policy: None, or policy(image, rng), such as `randaugment.rand_augment`. A policy must be
        symmetric under horizontal flips, as it runs before the flip on the device.
      interpolation: interpolation of the resize, "bicubic" or "bilinear".
      crop_mode: see `eval_view`.
      **ranges: ranges of the affine transform after the crop, see `affine`; skipped if all are 0.

    Returns:
      uint8 [height, width, channels].
    """
    if crop in ("resized", "simple"):
        image = to_channels(image, channels, only_to_gray=True)
        if crop == "resized":
            image = random_resized_crop(image, rng, size, scale, ratio, interpolation)
        else:
            image = simple_random_crop(image, rng, size, pad, interpolation)
        image = to_channels(image, channels)
    else:
        whole = {"eval_crop": eval_crop, "crop_mode": crop_mode}
        image = eval_view(image, size=size, channels=channels, interpolation=interpolation, **whole)
        if crop == "pad":
            image = pad_crop(image, rng, pad)
    if any(ranges.values()):
        image = affine(image, rng, **ranges)
    return policy(image, rng) if policy else image


def multi_crop(
    image,
    rng,
    *,
    size,
    channels,
    scale,
    ratio,
    local_views,
    local_size,
    local_scale,
    interpolation="bicubic",
):
    """Create two global crops and several smaller local crops (arXiv:2006.09882, section 3.3).

    All crops are taken from the image at full resolution.

    Args:
      image: uint8 [h, w, c].
      rng: NumPy Generator.
      size: side of the global crops in pixels, or their (height, width).
      channels: channels of the crops, 1 or 3.
      scale: range of the area of the global crops, as a fraction of the image.
      ratio: range of width / height of all crops.
      local_views: number of local crops.
      local_size: side of the local crops in pixels, or their (height, width).
      local_scale: range of the area of the local crops, as a fraction of the image.
      interpolation: interpolation of the resize, "bicubic" or "bilinear".

    Returns:
      {"global": uint8 [2, height, width, channels],
       "local": uint8 [local_views, height, width, channels]}; without "local" if local_views is 0.
    """
    image = to_channels(image, channels, only_to_gray=True)

    def crops(count, size, scale):
        options = (size, scale, ratio, interpolation)
        views = (random_resized_crop(image, rng, *options) for _ in range(count))
        return np.stack([to_channels(view, channels) for view in views])

    views = {"global": crops(2, size, scale)}
    if local_views:
        views["local"] = crops(local_views, local_size, local_scale)
    return views


def eval_view(image, *, size, channels, eval_crop, interpolation="bicubic", crop_mode="center"):
    """Create the evaluation view: resize, then center crop.

    The image is resized to the smallest size with its aspect ratio that covers
    floor(size / eval_crop), or, if it is squashed, to exactly this size. For square views, the
    result equals torchvision's Resize and CenterCrop on PIL images: the long side is rounded down
    to whole pixels, and the offset of the crop is rounded half to even. If the aspect ratios differ
    by more than MAX_ASPECT_RATIO, a few pixels may differ by one or two levels; see
    `resize_window`.

    Args:
      image: uint8 [h, w, c].
      size: side of the view in pixels, or its (height, width).
      channels: channels of the view, 1, 3 or 4.
      eval_crop: ratio of the view to the resized image, along the side that the view covers.
      interpolation: "bicubic" or "bilinear".
      crop_mode: "center", or "squash", which changes the aspect ratio.

    Returns:
      uint8 [height, width, channels].
    """
    height, width = pair(size)
    image = to_channels(image, channels, only_to_gray=True)
    old_h, old_w = image.shape[:2]
    min_h, min_w = math.floor(height / eval_crop), math.floor(width / eval_crop)
    squashed = crop_mode == "squash"
    h, w = (min_h, min_w) if squashed else _covering_size(old_h, old_w, min_h, min_w)
    y, x = round((h - height) / 2), round((w - width) / 2)
    image = _resize_and_crop(image, h, w, (y, x, height, width), interpolation)
    return to_channels(image, channels)


def _covering_size(old_h, old_w, height, width):
    """Return the smallest size, with the aspect ratio of an image, that covers (height, width)."""
    if old_h * width <= old_w * height:
        return height, height * old_w // old_h
    return width * old_h // old_w, width


def _resize_and_crop(image, h, w, window, interpolation):
    """Resize an image to (h, w) and crop the window (y, x, height, width)."""
    y, x, height, width = window
    ratio = (w / h) / (width / height)
    if max(ratio, 1 / ratio) > MAX_ASPECT_RATIO:
        return resize_window(image, w, h, window, KERNELS[interpolation])
    image = resize(image, w, h, kernel=KERNELS[interpolation])
    return image[y : y + height, x : x + width]


def to_channels(image, channels, only_to_gray=False):
    """Convert between RGB, RGBA and grayscale.

    Args:
      image: uint8 [h, w, 1, 3 or 4].
      channels: 1 for the luma (ITU-R 601, as in PIL); 3, which repeats a grayscale channel; or 4
        for RGBA, opaque unless the image has an alpha channel. Otherwise, transparent pixels are
        composited on white.
      only_to_gray: return the image unchanged unless channels is 1. Before a crop, converting to
        grayscale saves work, while converting to RGB adds work.

    Returns:
      uint8 [h, w, channels].
    """
    if image.shape[2] == channels or (only_to_gray and channels > 1):
        return image
    if channels == 4:
        rgb = to_channels(image, 3)
        return np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=2)
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.uint32)
        blended = (image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
        return to_channels(blended.astype(np.uint8), channels)
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    luma = image @ np.array([19595, 38470, 7471], np.uint32) + 0x8000
    return (luma >> 16).astype(np.uint8)[..., None]


def random_resized_crop(image, rng, size, scale, ratio, interpolation="bicubic"):
    """Apply the Inception crop (arXiv:1409.4842, section 6), as in torchvision's RandomResizedCrop.

    Samples up to ten boxes until one fits the image, else uses the largest centered box whose
    aspect ratio is within `ratio`.

    Args:
      image: uint8 [h, w, c].
      rng: NumPy Generator.
      size: side of the result in pixels, or its (height, width), which does not affect the box.
      scale: range of the area of the box, as a fraction of the image; uniform.
      ratio: range of width / height of the box; log-uniform.
      interpolation: interpolation of the resize, "bicubic" or "bilinear".

    Returns:
      uint8 [height, width, c].
    """
    box = _crop_box(image.shape[0], image.shape[1], rng, scale, ratio)
    height, width = pair(size)
    return resize(image, width, height, box, KERNELS[interpolation])


def _crop_box(height, width, rng, scale, ratio):
    """Sample the box (y, x, h, w) of `random_resized_crop`."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return int(y), int(x), h, w
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def simple_random_crop(image, rng, size, pad, interpolation="bicubic"):
    """Apply the simple random crop of DeiT III (arXiv:2204.07118, section 3), option --src.

    The image is resized to the smallest size with its aspect ratio that covers `size`, padded by
    reflection on each side, and cropped at a random position.

    Args:
      image: uint8 [h, w, c].
      rng: NumPy Generator.
      size: side of the result in pixels, or its (height, width).
      pad: padding on each side, in pixels; less than half of `size`.
      interpolation: interpolation of the resize, "bicubic" or "bilinear".

    Returns:
      uint8 [height, width, c].
    """
    height, width = pair(size)
    h, w = _covering_size(*image.shape[:2], height, width)
    y, x = (int(rng.integers(n + 2 * pad + 1)) - pad for n in (h - height, w - width))
    # Only the part inside of the image is computed, and its edges are reflected.
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + height, h), min(x + width, w)
    window = (top, left, bottom - top, right - left)
    image = _resize_and_crop(image, h, w, window, interpolation)
    return np.pad(
        image, [(top - y, y + height - bottom), (left - x, x + width - right), (0, 0)], "reflect"
    )


def pad_crop(image, rng, pad):
    """Pad the image with `pad` black pixels on each side, then crop it randomly to its size."""
    y, x = rng.integers(2 * pad + 1, size=2)
    h, w, c = image.shape
    padded = np.zeros((h + 2 * pad, w + 2 * pad, c), image.dtype)  # np.pad is 4x slower
    padded[pad : pad + h, pad : pad + w] = image
    return padded[y : y + h, x : x + w]


def affine(image, rng, rotate=0.0, shift=0.0, zoom=0.0, shear=0.0):
    """Apply a random affine transform about the center, with bilinear interpolation.

    All parameters are sampled uniformly. Pixels from outside of the image are black.

    Args:
      image: uint8 [h, w, 1 or 3].
      rng: NumPy Generator.
      rotate: maximum rotation, in degrees; the angle is in [-rotate, rotate].
      shift: maximum translation along x and y, as a fraction of the side.
      zoom: maximum change of scale; the scale is in [1 - zoom, 1 + zoom].
      shear: maximum shear along x, in degrees.

    Returns:
      uint8 [h, w, 1 or 3].
    """
    h, w = image.shape[:2]
    rotation, slant, growth, dx, dy = rng.uniform(-1, 1, 5)
    angle = math.radians(rotation * rotate)
    k = math.tan(math.radians(slant * shear))
    scale = 1 + growth * zoom
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    # PIL needs the inverse map, from output to input: undo the translation, rotation, shear and
    # scale. Plain floats, as NumPy's overhead on 2x2 matrices would be half of the total time.
    xx, xy, yx, yy = cos + k * sin, sin - k * cos, -sin, cos
    x, y = w / 2 + dx * shift * w, h / 2 + dy * shift * h
    data = (xx, xy, w / 2 - xx * x - xy * y, yx, yy, h / 2 - yx * x - yy * y)
    return to_array(to_pil(image).transform((w, h), Image.Transform.AFFINE, data, BILINEAR))
