import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tests
from vit_jax import augment
from vit_jax.augment import device, host
from vit_jax.config import IMAGENET_MEAN, IMAGENET_STD, defaults

GOLDEN = tests.GOLDEN / "augment"


def noise(h, w, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, c), np.uint8)


@pytest.mark.parametrize("name, size", [("landscape", 64), ("portrait", 32), ("upscale", 32)])
def test_eval_view_matches_reference(name, size):
    golden = np.load(GOLDEN / "eval_preprocess/images.npz")
    view = augment.eval_view(golden[f"{name}_input"], size=size, channels=3, eval_crop=0.875)
    np.testing.assert_array_equal(view, golden[f"{name}_bicubic_crop"])


def test_normalize_matches_reference():
    golden = np.load(GOLDEN / "eval_preprocess/images.npz")
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    normalized = augment.normalize(jnp.asarray(golden["portrait_bicubic_crop"])[None], mean, std)[0]
    expected = golden["portrait_normalised_chw"].transpose(1, 2, 0)
    np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-6)


def test_eval_view_keeps_image_of_target_size():
    image = noise(28, 28, 1)
    np.testing.assert_array_equal(
        augment.eval_view(image, size=28, channels=1, eval_crop=1.0), image
    )
    assert augment.eval_view(image, size=28, channels=3, eval_crop=1.0).shape == (28, 28, 3)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_eval_view_squashes_the_image(interpolation):
    image = noise(50, 90)
    view = augment.eval_view(
        image,
        size=(20, 30),
        channels=3,
        eval_crop=0.5,
        interpolation=interpolation,
        crop_mode="squash",
    )
    kernel = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(image).resize((60, 40), kernel))[10:30, 15:45]
    np.testing.assert_array_equal(view, expected)


def test_alpha_channel_is_composited_on_white():
    rgba = noise(20, 30, 4)
    white = Image.new("RGBA", (30, 20), "white")
    expected = Image.alpha_composite(white, Image.fromarray(rgba)).convert("RGB")
    difference = np.int32(host.to_channels(rgba, 3)) - np.int32(expected)
    assert abs(difference).max() <= 1  # Pillow rounds differently
    opaque = host.to_channels(rgba[..., :3], 4)
    np.testing.assert_array_equal(opaque[..., :3], rgba[..., :3])
    assert (opaque[..., 3] == 255).all()


def test_to_channels_matches_pillow():
    color = noise(20, 30)
    gray = np.asarray(Image.fromarray(color).convert("L"))[..., None]
    np.testing.assert_array_equal(host.to_channels(color, 1), gray)
    np.testing.assert_array_equal(host.to_channels(gray, 3), np.concatenate([gray] * 3, -1))


@pytest.mark.parametrize("crop", ["resized", "simple", "pad", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_train_view_shape_and_determinism(crop, channels):
    c = defaults()
    c.model.image, c.model.channels = 24, channels
    c.augment.crop, c.augment.pad, c.augment.rotate = crop, 2, 10.0
    train, _ = augment.transforms(c)
    image = noise(40, 31)
    a, b, other = (train(image, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert a.shape == (24, 24, channels) and a.dtype == np.uint8
    np.testing.assert_array_equal(a, b)
    assert (a != other).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("local_views", [0, 3])
def test_multi_crop_shapes_areas_and_determinism(channels, local_views):
    c = defaults()
    c.model.image, c.model.channels, c.augment.crop = 24, channels, "multi"
    c.augment.scale, c.augment.local_scale = (0.4, 1.0), (0.05, 0.4)
    c.augment.local_size, c.augment.local_views = 12, local_views
    train, evaluation = augment.transforms(c)
    image = noise(40, 60)
    a, b, other = (train(image, np.random.default_rng(seed)) for seed in (0, 0, 1))
    shapes = {"global": (2, 24, 24, channels)}
    if local_views:
        shapes["local"] = (3, 12, 12, channels)
    assert {key: view.shape for key, view in a.items()} == shapes
    assert all(view.dtype == np.uint8 for view in a.values())
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (a["global"] != other["global"]).any() and (a["global"][0] != a["global"][1]).any()
    assert evaluation(image).shape == (24, 24, channels)
    # In an image whose values increase by 1 per pixel along an axis, the range of values in a crop
    # is its size along this axis.
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None], (200, 200, channels))
    ramp = np.swapaxes(ramp, 0, 1) if channels == 3 else ramp
    crops = [train(np.ascontiguousarray(ramp), np.random.default_rng(seed)) for seed in range(60)]
    for key, (low, high) in {"global": (0.4, 1.0), "local": (0.05, 0.4)}.items():
        if key in shapes:
            spans = np.concatenate([np.ptp(crop[key].astype(int), (1, 2, 3)) for crop in crops])
            # Bounds on the side, given the range of the area and aspect ratios from 3:4 to 4:3.
            assert spans.min() > 190 * (low * 3 / 4) ** 0.5 - 5
            assert spans.max() < 200 * min(1, (high * 4 / 3) ** 0.5) + 5
            assert np.ptp(spans) > 40


def test_resized_crop_area_and_aspect_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array(
        [host._crop_box(200, 300, rng, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)]
    )
    y, x, h, w = boxes.T
    assert (y >= 0).all() and (x >= 0).all() and (y + h <= 200).all() and (x + w <= 300).all()
    area, ratio = h * w / 60000, w / h
    assert area.min() < 0.09 and 0.85 < area.max() <= 1  # at most 267 x 200, which is 4:3
    assert abs(np.log(ratio)).max() < np.log(4 / 3) + 0.03
    small = ratio[area < 0.5]  # small boxes always fit, so their log ratio is exactly uniform
    assert abs(np.log(small).mean()) < 0.02
    assert abs(np.log(small).std() - np.log(16 / 9) / 12**0.5) < 0.01
    # Positions are uniform.
    assert abs((x / np.maximum(300 - w, 1)).mean() - 0.5) < 0.02


def test_resized_crop_falls_back_to_center_crop():
    rng = np.random.default_rng(0)
    assert host._crop_box(10, 1000, rng, (0.5, 1.0), (3 / 4, 4 / 3)) == (0, 493, 10, 13)
    assert host._crop_box(1000, 10, rng, (0.5, 1.0), (3 / 4, 4 / 3)) == (493, 0, 13, 10)


def test_resized_crop_ignores_pixels_outside_box():
    image = np.full((64, 64, 3), 255, np.uint8)
    y, x, h, w = host._crop_box(64, 64, np.random.default_rng(3), (0.1, 0.2), (1, 1))
    image[y : y + h, x : x + w] = 0
    view = host.random_resized_crop(image, np.random.default_rng(3), 16, (0.1, 0.2), (1, 1))
    assert view.max() == 0


@pytest.mark.parametrize(("shape", "resized"), [((30, 44), (20, 29)), ((44, 30), (29, 20))])
def test_simple_random_crop_is_a_crop_of_the_padded_image(shape, resized):
    image = noise(*shape)
    whole = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BICUBIC)
    padded = np.pad(np.asarray(whole), [(4, 4), (4, 4), (0, 0)], "reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (20, 20), (0, 1)).swapaxes(2, 4)
    rng = np.random.default_rng(0)
    positions = set()
    for _ in range(1500):
        view = host.simple_random_crop(image, rng, 20, 4)
        (position,) = np.argwhere((windows.swapaxes(2, 3) == view).all((2, 3, 4)))
        positions.add(tuple(position))
    assert len(positions) == windows.shape[0] * windows.shape[1] == 9 * 18


def test_pad_crop_covers_all_shifts():
    image = np.full((6, 6, 1), 9, np.uint8)
    shifts = set()
    for seed in range(200):
        view = host.pad_crop(image, np.random.default_rng(seed), 2)
        rows, columns = view[..., 0].any(1), view[..., 0].any(0)
        assert view.shape == image.shape and (view[rows][:, columns] == 9).all()
        shifts.add((*rows, *columns))
    assert len(shifts) == 25


THIN = """
import resource
import sys
import numpy as np
from vit_jax import augment
from vit_jax.config import defaults

def views(image):
    for crop in ("resized", "simple", "pad", "none", "multi"):
        c = defaults()
        c.augment.crop = crop
        train, evaluation = augment.transforms(c)
        view = train(image, np.random.default_rng(0))
        yield evaluation(image)
        if crop != "simple":  # at any position
            yield from view.values() if crop == "multi" else [view]

views_of_noise = list(views(np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for short in (1, 2):
    for channels in (1, 3):
        row = np.clip(np.arange(60_000) - 29_900, 0, 255).astype(np.uint8)
        wide = np.broadcast_to(row[None, :, None], (short, len(row), channels))
        for image in (wide, wide.swapaxes(0, 1)):
            for view in views(np.ascontiguousarray(image)):
                side = view.shape[1]
                centers = view[..., side // 2, side // 2, :]
                assert abs(centers.astype(int) - 99.5).max() < 2, centers
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(used * (1 if sys.platform == "darwin" else 1024))
"""


def test_long_thin_images_need_little_memory():
    done = subprocess.run([sys.executable, "-c", THIN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 30e6


@pytest.mark.parametrize("crop", ["resized", "simple", "pad", "none", "multi"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_one_pixel(crop, channels):
    c = defaults()
    c.model.image, c.model.channels = 32, channels
    c.augment.crop, c.augment.pad, c.augment.local_size = crop, 0, 16
    for ratio in ((3 / 4, 4 / 3), (0.1, 0.2), (5.0, 9.0)):
        c.augment.ratio = ratio
        train, evaluation = augment.transforms(c)
        for shape in ((1, 1, 3), (1, 9, 3), (9, 1, 3), (1, 1, 1)):
            image = np.full(shape, 90, np.uint8)
            views = [train(image, np.random.default_rng(0)), evaluation(image)]
            for view in jax.tree.leaves(views):
                assert view.shape[-3] >= 16 and view.shape[-1] == channels
                assert (view == 90).all()


class FixedRng:
    """A random generator that returns fixed values."""

    def __init__(self, *values):
        self.values = values

    def uniform(self, *_):
        return np.array(self.values)


def test_affine_shift_rotate_zoom_and_shear():
    image = noise(8, 8, 1)
    shifted = host.affine(image, FixedRng(0, 0, 0, 1, 0), shift=0.25)
    np.testing.assert_array_equal(shifted[:, 2:], image[:, :-2])  # to the right
    assert not shifted[:, :2].any()
    shifted = host.affine(image, FixedRng(0, 0, 0, 0, 1), shift=0.25)
    np.testing.assert_array_equal(shifted[2:], image[:-2])  # down
    rotated = host.affine(image, FixedRng(1, 0, 0, 0, 0), rotate=90.0)
    inner = np.s_[1:-1, 1:-1]  # at the border, rounding may select pixels outside of the image
    errors = [rotated[inner].astype(int) - np.rot90(image, k)[inner] for k in (1, 3)]
    assert min(abs(error).max() for error in errors) <= 1
    square = np.zeros((16, 16, 1), np.uint8)
    square[6:10, 6:10] = 255
    zoomed = host.affine(square, FixedRng(0, 0, 1, 0, 0), zoom=1.0)
    assert (zoomed > 128).sum() == 64 and zoomed[4:12, 4:12].min() > 100
    column = np.zeros((16, 16, 1), np.uint8)
    column[:, 7:9] = 255
    sheared = host.affine(column, FixedRng(0, 1, 0, 0, 0), shear=45.0)[..., 0]
    middle = sheared.argmax(1)[2:-2]
    assert (np.abs(np.diff(middle)) == 1).all()  # 45 degrees: one column per row


KEYS = jax.random.split(jax.random.key(0), 400)


def test_flip_is_random_per_image():
    images = jnp.asarray(np.stack([noise(4, 5, 1, seed) for seed in range(400)]))
    flipped = jax.jit(device.flip)(images, KEYS, 0.3)
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    unchanged = (flipped == images).all((1, 2, 3))
    assert (mirrored | unchanged).all() and 80 < mirrored.sum() < 160
    single = device.flip(images[7:8], KEYS[7:8], 0.3)
    np.testing.assert_array_equal(single[0], flipped[7])


def test_erase_matches_reference_distribution():
    images = jnp.full((400, 64, 64, 3), 50.0)
    erased = np.asarray(jax.jit(augment.erase)(images, KEYS, 0.25))
    masks = (erased != 50).all(-1)
    count = masks.any((1, 2)).sum()
    assert 70 < count < 130
    values = erased[masks]
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    for mask in masks[masks.any((1, 2))]:
        assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()  # a filled rectangle
    # Compare the distribution with 105 boxes sampled by timm for images of this size.
    y0, y1, x0, x1 = np.load(GOLDEN / "random_erasing/boxes_yl_yh_xl_xh_64x64.npy").T
    boxes = jax.jit(jax.vmap(lambda key: augment.erase_box(key, 64, 64)))(KEYS)
    top, left, h, w = map(np.asarray, boxes)
    assert (h * w >= 0.015 * 4096).all() and (h * w <= 0.35 * 4096).all()
    for ours, theirs in [
        (h, y1 - y0),
        (w, x1 - x0),
        (h * w, (y1 - y0) * (x1 - x0)),
        (top, y0),
        (left, x0),
    ]:
        error = theirs.std() * (1 / 105 + 1 / 400) ** 0.5
        assert abs(ours.mean() - theirs.mean()) < 3.5 * error
        assert 0.75 < ours.std() / theirs.std() < 1.33
