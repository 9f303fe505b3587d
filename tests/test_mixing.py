"""mixup and CutMix: parity with timm, and the distributions of the random draws."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import tests
from vit_jax import mixing

GOLDEN = tests.GOLDEN / "augment/mixup"
META = json.loads((GOLDEN / "meta.json").read_text())
CASES = sorted(path.stem for path in GOLDEN.glob("*_sm*.npz"))


@pytest.mark.parametrize("case", CASES)
def test_mix_matches_timm(case):
    meta, golden = META[case], np.load(GOLDEN / f"{case}.npz")
    images = np.load(GOLDEN / "images.npy").transpose(0, 2, 3, 1)
    smoothing = meta["smoothing"]
    targets = np.eye(10, dtype=np.float32)[np.load(GOLDEN / "labels.npy")] * (1 - smoothing)
    targets += smoothing / 10
    boxes = np.array(meta["boxes_yl_yh_xl_xh_lam"])
    if len(boxes):
        box = boxes[:, :4].astype(int).T if meta["mode"] == "elem" else boxes[0, :4].astype(int)
        lam = boxes[:, 4] if meta["mode"] == "elem" else boxes[0, 4]
        images, targets = mixing.mix(images, targets, lam, box)
    else:
        images, targets = mixing.mix(images, targets, meta["lam_requested"])
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), golden["images"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets, golden["targets"], rtol=0, atol=1e-6)


def test_cut_box_matches_timm():
    table = np.load(GOLDEN / "rand_bbox_table.npy")
    assert len(table) == 128
    for height, width, lam, y, x, *expected_box, expected_lam in table:
        clipped_lam, box = mixing.cut_box(lam, int(y), int(x), int(height), int(width))
        assert box.tolist() == expected_box
        assert clipped_lam == pytest.approx(expected_lam, abs=1e-6)


def sample(n, **options):
    options = dict(height=224, width=224, mixup=0.8, cutmix=1.0) | options
    keys = jax.random.split(jax.random.key(0), n)
    lam, box = jax.jit(jax.vmap(partial(mixing.sample, **options)))(keys)
    return np.asarray(lam), np.asarray(box)


def test_samples_follow_the_distributions():
    stats = META["_deit_sampler_stats_20000_draws"]
    lam, _ = sample(40_000, cutmix=0.0)
    assert lam.mean() == pytest.approx(0.5, abs=0.006)
    assert lam.mean() == pytest.approx(stats["mixup_lam_mean"], abs=0.01)
    assert lam.std() == pytest.approx(stats["mixup_lam_std"], abs=0.01)
    lam, box = sample(20_000)
    cut = box[:, 1] > box[:, 0]
    assert cut.mean() == pytest.approx(stats["frac_cutmix"], abs=0.02)
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / 224**2
    np.testing.assert_allclose(lam[cut], 1 - area[cut], rtol=0, atol=1e-6)
    # With uniform lam and center, a side s = sqrt(1 - lam) that is clipped to the image has the
    # expected length s - s^2 / 4, so the mean area is E[(s - s^2 / 4)^2] = 0.5 - 0.2 + 1 / 48.
    assert 1 - lam[cut].mean() == pytest.approx(0.5 - 0.2 + 1 / 48, abs=0.01)
    lam, box = sample(5_000, prob=0.3, mixup=0.0)
    assert (lam < 1).mean() == pytest.approx(0.3, abs=0.03)
    assert (box[lam == 1, 1] == box[lam == 1, 0]).all()


def test_pixels_and_targets_have_equal_weights():
    targets = jax.nn.one_hot(jnp.arange(6), 6)
    images = jnp.broadcast_to(targets[:, None, None], (6, 8, 10, 6))  # one color per class
    mix = jax.jit(partial(mixing.mix_batch, mixup=0.8, cutmix=1.0))
    methods = set()
    for seed in range(8):
        mixed, soft = mix(jax.random.key(seed), images, targets)
        np.testing.assert_allclose(mixed.mean((1, 2)), soft, atol=1e-6)
        np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
        methods.add("cutmix" if np.isin(mixed, (0, 1)).all() else "mixup")
    assert methods == {"cutmix", "mixup"}
    unmixed = mixing.mix_batch(jax.random.key(0), images, targets, mixup=0.0, cutmix=0.0)
    assert unmixed[0] is images and unmixed[1] is targets
