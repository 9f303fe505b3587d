import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

import tests
from vit_jax import augment
from vit_jax.augment import device, host
from vit_jax.config import IMAGENET_MEAN, IMAGENET_STD, defaults
from vit_jax.objectives import supervised

GOLDEN = np.load(tests.GOLDEN / "dino/augment/pil_ops.npz")
KEYS = jax.random.split(jax.random.key(0), 3000)
NAMES = ("brightness", "contrast", "saturation", "hue")


def smooth(n, seed=0):
    """Generate images with correlated pixels, as in photographs, and some clipping."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        image = rng.uniform(60, 190, 3)
        for side, std in ((4, 90), (12, 40), (48, 12)):
            noise = rng.normal(0, std, (3, side, side)).astype(np.float32)
            resized = [Image.fromarray(x).resize((48, 40), Image.Resampling.BICUBIC) for x in noise]
            image = image + np.stack(resized, -1)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(images)


def adjust_hue(image, factor):
    """Adjust the hue as torchvision's adjust_hue."""
    hue, saturation, value = image.convert("HSV").split()
    hue = (np.asarray(hue).astype(int) + int(factor * 255)) % 256
    bands = Image.fromarray(hue.astype(np.uint8)), saturation, value
    return Image.merge("HSV", bands).convert("RGB")


PILLOW = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": adjust_hue,
}


def adjusted(images, factors, order):
    """Adjust images with `device.adjust` and with Pillow. Returns both results, 0 to 255."""
    ours = jax.jit(device.adjust)(jnp.asarray(images) / 255, factors, order)
    theirs = []
    for i, image in enumerate(images):
        pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        for name in sorted(factors, key=lambda name: order[name][i]):
            if name != "hue" or pil.mode == "RGB":
                pil = PILLOW[name](pil, float(factors[name][i]))
        theirs.append(np.asarray(pil).reshape(image.shape))
    return np.asarray(ours) * 255, np.stack(theirs)


def sample_factors(n, seed=0):
    rng = np.random.default_rng(seed)
    factors = {name: rng.uniform(0.4, 1.6, n).astype(np.float32) for name in NAMES[:3]}
    return factors | {"hue": rng.uniform(-0.5, 0.5, n).astype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_single_adjustment_matches_pillow(name):
    n = 24
    noise = np.random.default_rng(1).integers(0, 256, (n, 48, 48, 3), np.uint8)
    for images in (smooth(n), noise, np.stack([GOLDEN["input"]] * n)):
        factors = {name: sample_factors(n)[name]}
        ours, theirs = adjusted(images, factors, {name: np.zeros(n, int)})
        assert abs(ours - theirs).max() <= 1 and (abs(theirs - images.astype(int)) > 9).any()


@pytest.mark.parametrize("channels", [3, 1])
def test_adjustments_in_any_order_match_pillow(channels):
    permutations = np.array(list(itertools.permutations(range(4))))
    order = dict(zip(NAMES, permutations.T, strict=True))
    ours, theirs = adjusted(smooth(24)[..., :channels], sample_factors(24, 1), order)
    assert abs(ours - theirs).max() <= 2


def test_gray_and_solarize_match_pillow():
    images = smooth(4)
    floats, keys = jnp.asarray(images) / 255, KEYS[:4]
    luma = np.stack([np.asarray(Image.fromarray(x).convert("L").convert("RGB")) for x in images])
    np.testing.assert_allclose(device.gray(floats, keys, 1) * 255, luma, atol=1e-4)
    colored = (
        np.ptp(device.gray(jnp.ones((3000, 1, 1, 3)) * jnp.array([0, 0.5, 1]), KEYS, 0.2), -1) > 0
    )
    assert abs(colored.mean() - 0.8) < 0.03
    solarized = np.stack([np.asarray(ImageOps.solarize(Image.fromarray(x))) for x in images])
    np.testing.assert_allclose(device.solarize(floats, keys, 1) * 255, solarized, atol=1e-4)
    golden = jnp.asarray(GOLDEN["input"])[None] / 255
    solarized = device.solarize(golden, keys[:1], 1)[0]
    np.testing.assert_allclose(solarized * 255, GOLDEN["solarize"], atol=1e-4)


def test_blur_equals_pillow():
    for sigma in (0.1, 0.5, 1.0, 2.0):
        images = jnp.asarray(GOLDEN["input"])[None] / 255
        ours = device.gaussian_blur(images, jnp.array([sigma]))[0]
        np.testing.assert_allclose(ours * 255, GOLDEN[f"blur_r{sigma}"], atol=1e-4)
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 48, 3), np.uint8)
    sigmas = np.linspace(0.1, 2, 40, dtype=np.float32)
    for images in (smooth(40), noise):
        theirs = np.stack(
            [
                np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(float(sigma))))
                for x, sigma in zip(images, sigmas, strict=True)
            ]
        )
        ours = device.gaussian_blur(jnp.asarray(images) / 255, sigmas)
        np.testing.assert_allclose(ours * 255, theirs, atol=1e-4)
    unchanged = device.gaussian_blur(jnp.asarray(images) / 255, jnp.zeros(40))
    np.testing.assert_allclose(unchanged, images / 255, atol=1e-6)


def test_jitter_samples_as_torchvision(monkeypatch):
    sampled = {}

    def spy(images, factors, order):
        sampled.update(factors=factors, order=order)
        return images + 1

    monkeypatch.setattr(device, "adjust", spy)
    jittered = device.jitter(jnp.zeros((3000, 1, 1, 3)), KEYS, (0.4, 2.0, 0.2, 0.1), 0.8)
    assert abs(jittered.mean() - 0.8) < 0.03
    ranges = {"brightness": (0.6, 1.4), "contrast": (0, 3), "saturation": (0.8, 1.2)}
    for name, (low, high) in (ranges | {"hue": (-0.1, 0.1)}).items():
        uniform = (sampled["factors"][name] - low) / (high - low)
        assert uniform.min() >= 0 and uniform.max() <= 1
        assert abs(uniform.mean() - 0.5) < 0.02 and abs(uniform.std() - 12**-0.5) < 0.01
    orders = np.stack([sampled["order"][name] for name in ranges | {"hue": 0}], 1)
    permutations, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(permutations) == 24 and counts.min() > 80 and counts.max() < 180  # 125 expected
    variables = [*sampled["factors"].values(), *sampled["order"].values(), jittered[:, 0, 0, 0]]
    assert abs(np.corrcoef(np.stack(variables))[:4, 4:]).max() < 0.08
    # Operations without an effect are skipped.
    device.jitter(jnp.zeros((3000, 1, 1, 1)), KEYS, (0.4, 0.4, 0.2, 0.1), 0.8)
    assert list(sampled["factors"]) == ["brightness", "contrast"]
    device.jitter(jnp.zeros((3000, 1, 1, 3)), KEYS, (0, 0.4, 0, 0), 0.8)
    assert list(sampled["factors"]) == ["contrast"] and not sampled["order"]["contrast"].any()


class FixedRng:
    """A random generator that returns fixed integers."""

    def __init__(self, *values):
        self.values = list(values)

    def integers(self, _):
        return self.values.pop(0)


def test_three_augment_matches_deit():
    """Pixels equal those of 12 views with the same draws, half of them with --src."""
    golden = np.load(tests.GOLDEN / "deit3/three_augment.npz")
    image = golden["input"]
    views = []
    for simple, (y, x, h, w) in zip(golden["simple"], golden["crop"].astype(int), strict=True):
        view = host.resize(image, 32, 32, None if simple else (y, x, h, w))
        views.append(host.simple_random_crop(image, FixedRng(y, x), 32, 4) if simple else view)
    flip = golden["flip"][:, None, None, None]
    views = jnp.asarray(np.where(flip, np.stack(views)[:, :, ::-1], views)) / 255
    views = device.gray_solarize_or_blur(views, golden["choice"], golden["sigma"])
    order = [[position for position in row if position < 3] for row in golden["order"].tolist()]
    positions = np.argsort(order).T  # the order lists the operations
    factors = dict(zip(device.BLENDS, golden["factors"].T, strict=True))
    views = device.adjust(views, factors, dict(zip(device.BLENDS, positions, strict=True)))
    np.testing.assert_allclose(views[:, ::2, ::2] * 255, golden["views"], atol=1e-3)


def test_three_augment_is_one_operation_before_the_jitter(monkeypatch):
    monkeypatch.setattr(device, "jitter", lambda images, *_: 2 * images)
    config = defaults().augment
    config.flip, config.three_augment = 0.0, True
    image = smooth(1)[0, :20, :24]
    views = jax.jit(lambda images, keys: device.photometric(images, keys, config, (0,)))
    out = views(np.broadcast_to(image, (600, 1, *image.shape)), KEYS[:600])[:, 0]
    out = np.round(np.asarray(out) / 2 * 255)
    pil = Image.fromarray(image)
    gray = (out == np.asarray(pil.convert("L"))[..., None]).all((1, 2, 3))
    solarized = (out == np.asarray(ImageOps.solarize(pil))).all((1, 2, 3))
    blurred = ~gray & ~solarized
    for hit in (gray, solarized, blurred):
        assert abs(hit.mean() - 1 / 3) < 0.06  # three standard errors
    # The blur is uniform in sigma, so that a quarter of the images is blurred by less than 0.575.
    steps = abs(np.diff(out[blurred], axis=2)).mean((1, 2, 3))
    weakest = np.asarray(pil.filter(ImageFilter.GaussianBlur(0.575))).astype(float)
    assert abs((steps > abs(np.diff(weakest, axis=1)).mean()).mean() - 0.25) < 0.1


def dino_config(**changes):
    c = defaults().augment
    c.jitter, c.jitter_prob, c.gray = (0.4, 0.4, 0.2, 0.1), 0.8, 0.2
    c.blur, c.solarize = (1.0, 0.1, 0.5), (0.0, 0.2, 0.0)
    c.update(changes)
    return c


@pytest.mark.parametrize("kinds", [(0, 1), (2, 2)])
def test_views_use_the_probabilities_of_their_kind(kinds, monkeypatch):
    monkeypatch.setattr(device, "MIN_SIGMA", 0.5)  # weaker blurs do not change these 8-bit values
    config = dino_config(jitter=(0.0,) * 4, flip=0.3)
    image = np.full((1, 32, 1), 200, np.uint8)
    image[:, 1] = 140  # solarizing inverts both values; the darker column reveals flips and blur
    views = jax.jit(lambda images, keys: device.photometric(images, keys, config, kinds))
    out = views(np.broadcast_to(image, (3000, 2, 1, 32, 1)), KEYS)
    assert out.shape == (3000, 2, 1, 32, 1) and out.dtype == jnp.float32
    difference = abs(out[..., 0, :, 0] - out[..., 0, 16:17, 0]) * 255
    hits = {
        "flip": (difference[..., 1] < difference[..., 30], (0.3, 0.3, 0.3)),
        "blur": (difference[..., [2, 29]].max(-1) > 1e-3, config.blur),
        "solarize": (out[..., 0, 16, 0] < 0.5, config.solarize),
    }
    for hit, probabilities in hits.values():
        assert abs(hit.mean(0) - np.array(probabilities)[list(kinds)]).max() < 0.03
    random = [hit[:, i] for hit, _ in hits.values() for i in (0, 1) if 0 < hit[:, i].mean() < 1]
    # Operations and views are independent, also for the same key.
    assert abs(np.corrcoef(random) - np.eye(len(random))).max() < 0.08


def test_views_do_not_depend_on_batch_or_sharding():
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 9, 12, 3), np.uint8)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = jax.device_put((images, KEYS[:8]), sharding)
    views = jax.jit(lambda images, keys: device.photometric(images, keys, dino_config(), (0, 1)))
    compiled = views.lower(*sharded).compile()
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in compiled.as_text()
    out = np.asarray(compiled(*sharded))
    assert 0 <= out.min() and out.max() <= 1 and (out[0] != out[1]).any()
    for i in (0, 5):
        single = views(images[i : i + 1], KEYS[i : i + 1])[0]
        np.testing.assert_allclose(out[i], single, atol=1e-6)
    # With identical pixels and one key, views of different kinds or indices still differ.
    identical = np.stack([images[0, 0]] * 2)[None]
    config = dino_config(jitter=(0.0,) * 4, gray=0.0, blur=(1.0,) * 3, solarize=(0.0,) * 3)
    views = jax.jit(
        lambda kinds: device.photometric(identical, KEYS[:1], config, kinds)[0], static_argnums=0
    )
    pairs = [views(kinds) for kinds in ((0, 0), (2, 2))]
    assert len({np.asarray(view).tobytes() for pair in pairs for view in pair}) == 4


def test_disabled_operations_cost_no_flops():
    config = dino_config(flip=0.0, jitter_prob=0.0, gray=0.0, blur=(0.0,) * 3, solarize=(0.0,) * 3)
    images = smooth(2).reshape(1, 2, 40, 48, 3)
    views = jax.jit(lambda images, keys: device.photometric(images, keys, config, (0, 1)))
    np.testing.assert_allclose(views(images, KEYS[:1]), images / np.float32(255), rtol=1e-6)
    cost = views.lower(images, KEYS[:1]).compile().cost_analysis()
    assert cost["flops"] <= 2 * images.size
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    np.testing.assert_allclose(
        augment.normalize(views(images, KEYS[:1]), mean, std),
        augment.normalize(images, mean, std),
        atol=1e-6,
    )


def test_hashed_noise_is_normal_and_a_function_of_the_key_alone():
    draw = jax.jit(jax.vmap(lambda key: device.hashed_normal(key, (32, 40, 3))))
    noise = np.asarray(draw(KEYS[:64]))
    assert stats.kstest(noise.ravel(), "norm").statistic < 1.95 / noise.size**0.5  # p = 0.001
    assert 4.2 < np.abs(noise).max() < 6  # extremes of 245,760 values
    for axis in range(4):  # images, rows, columns and channels
        values = np.moveaxis(noise, axis, 0)
        for a, b in ((values[:-1], values[1:]), (values[:-1] ** 2, values[1:] ** 2)):
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / a.size**0.5
    np.testing.assert_array_equal(draw(KEYS[5:6])[0], noise[5])


def test_supervised_training_applies_color_augmentation():
    c = defaults()
    c.augment.flip, c.augment.gray, c.augment.solarize = 0.0, 1.0, (1.0, 0.0, 0.0)
    inputs = []
    images = smooth(3)

    def apply(params, images, **_):  # noqa: ARG001
        inputs.append(images)
        return {"logits": jnp.zeros((len(images), 10))}

    module = SimpleNamespace(config=SimpleNamespace(num_classes=10))
    model = SimpleNamespace(apply=apply, module=module, stats=dict)
    objective = supervised.make(model, c, 1)
    batch = {"image": images, "label": jnp.zeros(len(images), jnp.int32)}
    batch["row"] = jnp.arange(len(images))
    objective.loss({}, {}, batch, jax.random.key(0), 0)
    pixels = inputs[-1] * np.array(c.data.std) + np.array(c.data.mean)
    luma = np.asarray(Image.fromarray(images[0]).convert("L")).astype(np.float32)
    expected = np.where(luma >= 128, 255 - luma, luma) / 255
    np.testing.assert_allclose(pixels[0], np.repeat(expected[..., None], 3, 2), atol=1e-5)
