import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

import tests
from vit_jax import augment
from vit_jax.augment import device
from vit_jax.config import IMAGENET_MEAN, IMAGENET_STD, defaults
from vit_jax.objectives import supervised

GOLDEN = np.load(tests.GOLDEN / "dino/augment/pil_ops.npz")
KEYS = jax.random.split(jax.random.key(0), 3000)
NAMES = ("brightness", "contrast", "saturation", "hue")


def smooth(n, seed=0):
    """Images like photographs in that neighbors are alike: blobs, texture, some clipping."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(n):
        image = rng.uniform(60, 190, 3)
        for side, depth in ((4, 90), (12, 40), (48, 12)):
            noise = rng.normal(0, depth, (3, side, side)).astype(np.float32)
            resized = [Image.fromarray(x).resize((48, 40), Image.Resampling.BICUBIC) for x in noise]
            image = image + np.stack(resized, -1)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(images)


def turn_hue(image, factor):
    """torchvision's adjust_hue."""
    hue, saturation, value = image.convert("HSV").split()
    hue = (np.asarray(hue).astype(int) + int(factor * 255)) % 256
    parts = Image.fromarray(hue.astype(np.uint8)), saturation, value
    return Image.merge("HSV", parts).convert("RGB")


PILLOW = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": turn_hue,
}


def adjusted(images, factors, turns):
    """-> what `augment.device` and what Pillow make of it, both in levels."""
    ours = jax.jit(device.adjust)(jnp.asarray(images) / 255, factors, turns)
    theirs = []
    for i, image in enumerate(images):
        pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        for name in sorted(factors, key=lambda name: turns[name][i]):
            if name != "hue" or pil.mode == "RGB":
                pil = PILLOW[name](pil, float(factors[name][i]))
        theirs.append(np.asarray(pil).reshape(image.shape))
    return np.asarray(ours) * 255, np.stack(theirs)


def draw(n, seed=0):
    rng = np.random.default_rng(seed)
    factors = {name: rng.uniform(0.4, 1.6, n).astype(np.float32) for name in NAMES[:3]}
    return factors | {"hue": rng.uniform(-0.5, 0.5, n).astype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_each_adjustment_is_pillows(name):
    n = 24
    every = np.random.default_rng(1).integers(0, 256, (n, 48, 48, 3), np.uint8)
    for images in (smooth(n), every, np.stack([GOLDEN["input"]] * n)):
        ours, theirs = adjusted(images, {name: draw(n)[name]}, {name: np.zeros(n, int)})
        assert abs(ours - theirs).max() <= 1 and (abs(theirs - images.astype(int)) > 9).any()


@pytest.mark.parametrize("channels", [3, 1])
def test_all_adjustments_in_any_order_are_pillows(channels):
    orders = np.array(list(itertools.permutations(range(4))))
    turns = dict(zip(NAMES, orders.T, strict=True))
    ours, theirs = adjusted(smooth(24)[..., :channels], draw(24, 1), turns)
    assert abs(ours - theirs).max() <= 2


def test_gray_and_solarize_are_pillows():
    images = smooth(4)
    floats, keys = jnp.asarray(images) / 255, KEYS[:4]
    luma = np.stack([np.asarray(Image.fromarray(x).convert("L").convert("RGB")) for x in images])
    np.testing.assert_allclose(device.gray(floats, keys, 1) * 255, luma, atol=1e-4)
    colored = (
        np.ptp(device.gray(jnp.ones((3000, 1, 1, 3)) * jnp.array([0, 0.5, 1]), KEYS, 0.2), -1) > 0
    )
    assert abs(colored.mean() - 0.8) < 0.03
    sun = np.stack([np.asarray(ImageOps.solarize(Image.fromarray(x))) for x in images])
    np.testing.assert_allclose(device.solarize(floats, keys, 1) * 255, sun, atol=1e-4)
    golden = jnp.asarray(GOLDEN["input"])[None] / 255
    sun = device.solarize(golden, keys[:1], 1)[0]
    np.testing.assert_allclose(sun * 255, GOLDEN["solarize"], atol=1e-4)


def test_blur_is_pillows_but_for_its_rounding():
    for sigma in (0.1, 0.5, 1.0, 2.0):
        ours = device.gaussian_blur(jnp.asarray(GOLDEN["input"])[None] / 255, jnp.array([sigma]))[0]
        off = abs(ours * 255 - GOLDEN[f"blur_r{sigma}"])
        assert off.mean() < 0.6 and off[6:-6, 6:-6].max() < 3 and off.max() < 5
    images = smooth(40)
    sigmas = np.linspace(0.1, 2, 40, dtype=np.float32)
    blurs = [ImageFilter.GaussianBlur(float(sigma)) for sigma in sigmas]
    pairs = zip(images, blurs, strict=True)
    theirs = np.stack([np.asarray(Image.fromarray(x).filter(blur)) for x, blur in pairs])
    off = abs(device.gaussian_blur(jnp.asarray(images) / 255, sigmas) * 255 - theirs)
    assert off.mean() < 0.5 and (off < 2).mean() > 0.98 and off[:, 6:-6, 6:-6].max() < 3.5
    same = device.gaussian_blur(jnp.asarray(images) / 255, jnp.zeros(40))
    np.testing.assert_allclose(same, images / 255, atol=1e-6)


def test_jitter_draws_as_torchvision(monkeypatch):
    seen = {}

    def spy(images, factors, turns):
        seen.update(factors=factors, turns=turns)
        return images + 1

    monkeypatch.setattr(device, "adjust", spy)
    jittered = device.jitter(jnp.zeros((3000, 1, 1, 3)), KEYS, (0.4, 2.0, 0.2, 0.1), 0.8)
    assert abs(jittered.mean() - 0.8) < 0.03
    ranges = {"brightness": (0.6, 1.4), "contrast": (0, 3), "saturation": (0.8, 1.2)}
    for name, (low, high) in (ranges | {"hue": (-0.1, 0.1)}).items():
        share = (seen["factors"][name] - low) / (high - low)
        assert share.min() >= 0 and share.max() <= 1
        assert abs(share.mean() - 0.5) < 0.02 and abs(share.std() - 12**-0.5) < 0.01
    orders = np.stack([seen["turns"][name] for name in ranges | {"hue": 0}], 1)
    found, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(found) == 24 and counts.min() > 80 and counts.max() < 180  # 125 each
    drawn = np.stack([*seen["factors"].values(), *seen["turns"].values(), jittered[:, 0, 0, 0]])
    assert abs(np.corrcoef(drawn)[:4, 4:]).max() < 0.08
    # What cannot change anything is not drawn.
    device.jitter(jnp.zeros((3000, 1, 1, 1)), KEYS, (0.4, 0.4, 0.2, 0.1), 0.8)
    assert list(seen["factors"]) == ["brightness", "contrast"]
    device.jitter(jnp.zeros((3000, 1, 1, 3)), KEYS, (0, 0.4, 0, 0), 0.8)
    assert list(seen["factors"]) == ["contrast"] and not seen["turns"]["contrast"].any()


def dino(**changes):
    c = defaults().augment
    c.jitter, c.jitter_prob, c.gray = (0.4, 0.4, 0.2, 0.1), 0.8, 0.2
    c.blur, c.solarize = (1.0, 0.1, 0.5), (0.0, 0.2, 0.0)
    c.update(changes)
    return c


@pytest.mark.parametrize("kinds", [(0, 1), (2, 2)])
def test_views_have_the_probabilities_of_their_kind(kinds):
    config = dino(jitter=(0.0,) * 4, flip=0.3)
    image = np.full((1, 32, 1), 200, np.uint8)
    image[:, 1] = 140  # both are bright, and the left shows flips and blur
    views = jax.jit(lambda images, keys: device.photometric(images, keys, config, kinds))
    out = views(np.broadcast_to(image, (3000, 2, 1, 32, 1)), KEYS)
    assert out.shape == (3000, 2, 1, 32, 1) and out.dtype == jnp.float32
    off = abs(out[..., 0, :, 0] - out[..., 0, 16:17, 0]) * 255
    hits = {
        "flip": (off[..., 1] < off[..., 30], (0.3, 0.3, 0.3)),
        "blur": (off[..., [2, 29]].max(-1) > 1e-3, config.blur),
        "solarize": (out[..., 0, 16, 0] < 0.5, config.solarize),
    }
    for hit, chances in hits.values():
        assert abs(hit.mean(0) - np.array(chances)[list(kinds)]).max() < 0.03
    varied = [hit[:, i] for hit, _ in hits.values() for i in (0, 1) if 0 < hit[:, i].mean() < 1]
    assert abs(np.corrcoef(varied) - np.eye(len(varied))).max() < 0.08  # independent, in 1 key too


def test_an_image_has_the_same_views_alone_and_on_many_devices():
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 9, 12, 3), np.uint8)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    placed = jax.device_put((images, KEYS[:8]), sharding)
    views = jax.jit(lambda images, keys: device.photometric(images, keys, dino(), (0, 1)))
    together = views.lower(*placed).compile()
    for moves in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert moves not in together.as_text()
    out = np.asarray(together(*placed))
    assert 0 <= out.min() and out.max() <= 1 and (out[0] != out[1]).any()
    for i in (0, 5):
        alone = views(images[i : i + 1], KEYS[i : i + 1])[0]
        np.testing.assert_allclose(out[i], alone, atol=1e-6)
    # The same pixels under one key: views of other kinds and places are drawn anew.
    twins = np.stack([images[0, 0]] * 2)[None]
    config = dino(jitter=(0.0,) * 4, gray=0.0, blur=(1.0,) * 3, solarize=(0.0,) * 3)
    views = jax.jit(
        lambda kinds: device.photometric(twins, KEYS[:1], config, kinds)[0], static_argnums=0
    )
    found = [views(kinds) for kinds in ((0, 0), (2, 2))]
    assert len({np.asarray(view).tobytes() for group in found for view in group}) == 4


def test_what_is_off_costs_nothing():
    config = dino(flip=0.0, jitter_prob=0.0, gray=0.0, blur=(0.0,) * 3, solarize=(0.0,) * 3)
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


def test_supervised_training_has_them_too():
    c = defaults()
    c.augment.flip, c.augment.gray, c.augment.solarize = 0.0, 1.0, (1.0, 0.0, 0.0)
    seen, colored = [], smooth(3)

    def apply(params, images, **_):  # noqa: ARG001
        seen.append(images)
        return {"logits": jnp.zeros((len(images), 10))}

    objective = supervised.make(SimpleNamespace(apply=apply), c, 1)
    batch = {"image": colored, "label": jnp.zeros(len(colored), jnp.int32)}
    batch["row"] = jnp.arange(len(colored))
    objective.loss({}, {}, batch, jax.random.key(0), 0)
    levels = seen[-1] * np.array(c.data.std) + np.array(c.data.mean)
    luma = np.asarray(Image.fromarray(colored[0]).convert("L")).astype(np.float32)
    expected = np.where(luma >= 128, 255 - luma, luma) / 255
    np.testing.assert_allclose(levels[0], np.repeat(expected[..., None], 3, 2), atol=1e-5)
