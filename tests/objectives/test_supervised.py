"""The supervised objective: labels, training accuracy, class weights, meshes, checks."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import digits
from tests import GOLDEN
from vit_jax import objectives
from vit_jax.config import check
from vit_jax.devices import sharding
from vit_jax.errors import UserError
from vit_jax.models import Model
from vit_jax.objectives.supervised import binary_cross_entropy, cross_entropy, make_views

NAN = float("nan")


def train_loss(logits, labels, *, weight=None, loss="softmax", **augment):
    """Return the loss and accuracy of a model with these logits for any images."""
    config = digits.get_config()
    config.objective.label_smoothing = 0.0
    config.objective.ema = 0.0
    config.objective.loss = loss
    config.augment.update(augment)
    module = SimpleNamespace(config=SimpleNamespace(num_classes=np.shape(logits)[-1]))
    model = Model(None, dict, lambda weights: lambda *_, **__: weights, module)
    objective = objectives.make(model, config, 1)
    size = len(labels)
    images = np.zeros((size, 8, 8, 1), np.uint8)
    batch = {"image": images, "label": np.array(labels), "row": np.arange(size)}
    if weight is not None:
        batch["weight"] = np.float32(weight)
    params = {"logits": np.float32(logits)}
    loss, aux = objective.loss(params, {}, batch, jax.random.key(0), 0)
    return float(loss), float(objective.metrics(aux)["acc1"])


@pytest.mark.parametrize("label", [-1, 3, 255])
@pytest.mark.parametrize("augment", [{}, {"mixup": 0.8}])
def test_invalid_labels_give_nan_rather_than_train_another_class(label, augment):
    logits = np.zeros((4, 3))
    logits[:, 2] = 1
    loss, acc1 = train_loss(logits, [2, 2, 2, label], **augment)
    assert np.isnan(loss)
    # With mixup, the first image is mixed with the invalid one.
    assert acc1 == (0.5 if augment else 0.75)
    assert np.isnan(cross_entropy(logits, np.array([2, 2, 2, label])))
    assert np.isfinite(cross_entropy(logits, np.array([2, 1, 0, 2])))


def test_accuracy_shares_the_credit_of_ties():
    logits = [[1, 1, 1], [0, 2, 2], [NAN, 0, 1], [0, NAN, 5], [3, 1, 1]]
    _, acc1 = train_loss(logits, [0, 2, 0, 2, 0])
    assert acc1 == pytest.approx((1 / 3 + 1 / 2 + 0 + 0 + 1) / 5)


def test_class_weights_match_pytorch():
    golden = np.load(GOLDEN / "losses/cross_entropy.npz")
    logits, labels = golden["logits"], golden["labels"]
    weight = np.linspace(0.25, 2.25, 11, dtype=np.float32)[labels]
    loss, _ = train_loss(logits, labels, weight=weight)
    # torch.nn.functional.cross_entropy, which divides by the sum of the weights
    assert loss * len(labels) / weight.sum() == pytest.approx(5.836414448, rel=1e-6)
    plain, _ = train_loss(logits, labels)
    assert train_loss(logits, labels, weight=np.ones(len(labels)))[0] == plain


def test_weights_are_those_of_both_mixed_images():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 3)), np.array([0, 1, 2, 0, 1, 2])
    losses = -np.asarray(jax.nn.log_softmax(logits))  # [row, class]
    _, acc1 = train_loss(logits, labels, mixup=0.8)
    lams = []
    for i in range(6):
        # Of image i, a part lam is in row i and the rest in that of its partner, 5 - i.
        loss, weighted_acc1 = train_loss(logits, labels, weight=np.arange(6) == i, mixup=0.8)
        own, other = losses[i, labels[i]], losses[5 - i, labels[i]]
        lams.append((6 * loss - other) / (own - other))
        assert weighted_acc1 == acc1
    assert 0.01 < lams[0] < 0.99
    np.testing.assert_allclose(lams, lams[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["onehot", "mix_lam0.7_s0", "mix_lam1_s0", "mix_lam0_s0"])
def test_binary_cross_entropy_matches_deit(kind):
    golden = np.load(GOLDEN / "deit3/bce.npz")
    logits, targets = golden["logits"], golden[f"{kind}/target"]
    loss, grad = jax.value_and_grad(binary_cross_entropy)(logits, targets)
    np.testing.assert_allclose(loss, golden[f"{kind}/loss_binary_f64"], rtol=2e-6)
    np.testing.assert_allclose(grad, golden[f"{kind}/grad_binary"], atol=1e-7)
    assert np.isnan(binary_cross_entropy(logits, np.where(np.eye(6, 8), NAN, targets)))


def test_binary_loss_of_mixed_images():
    logits, labels = np.random.default_rng(0).normal(size=(4, 5)), np.array([0, 1, 2, 2])
    positive = np.eye(5)[labels] + np.eye(5)[labels[::-1]] > 0  # labels 1 and 2 are partners
    expected = np.log1p(np.exp(np.where(positive, -logits, logits))).mean()
    loss, _ = train_loss(logits, labels, loss="binary", mixup=0.8)
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("objective", "label_smoothing", 0.1, "needs config.objective.label_smoothing = 0"),
        ("data", "balance", "loss", "needs config.objective.loss = 'softmax'"),
    ],
)
def test_binary_loss_rejects_soft_and_weighted_targets(group, key, value, message):
    config = digits.get_config()
    config.objective.update(loss="binary", label_smoothing=0.0)
    check(config)
    config[group][key] = value
    with pytest.raises(UserError, match=message):
        check(config)


def test_partners_cross_devices_as_uint8():
    """Erasing is repeated for the partner, with its key, so that the mesh changes nothing."""
    c = digits.get_config()
    c.data.mean, c.data.std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    c.augment.update(mixup=1.0, cutmix=0.0, erase=0.5, flip=0.5, solarize=(0.5, 0.0, 0.0))
    images = np.random.default_rng(0).integers(0, 256, (16, 12, 10, 3), np.uint8)
    batch = {"image": images, "row": np.arange(16), "target": np.eye(16, dtype=np.float32)}
    views = jax.jit(lambda batch, rng: make_views(batch, rng, c))
    args = batch, jax.random.key(3)
    expected = views(*args)
    mesh = sharding.data_parallel_mesh()
    sharded = jax.device_put(batch, sharding.batch_sharding(mesh)), args[1]
    with jax.set_mesh(mesh):
        compiled = views.lower(*sharded).compile()
    out = compiled(*sharded)
    assert not np.allclose(out[0], views(batch, jax.random.key(4))[0], atol=0.1)
    np.testing.assert_allclose(out[0], expected[0], atol=2e-6)
    np.testing.assert_allclose(out[2], expected[2], atol=1e-6)
    lines = re.findall(r"= (\w+)\[2,12,10,3\]\S* collective-permute", compiled.as_text())
    assert lines == ["u8"]


def test_mixed_images_need_pairs_in_every_micro_batch():
    config = digits.get_config()
    config.batch_size, config.accum_steps = 12, 4
    check(config)
    config.augment.cutmix = 1.0
    with pytest.raises(UserError, match="batch_size / config.accum_steps = 3 must be even"):
        check(config)
    config.accum_steps = 2
    check(config)
