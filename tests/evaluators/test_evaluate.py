"""Tests of accuracy, feature extraction and combined evaluators."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from vit_jax import augment, batch, data, evaluators, models, variants
from vit_jax.devices import sharding
from vit_jax.errors import UserError
from vit_jax.evaluators import knn, linear_probe


@pytest.fixture(scope="module")
def setup():
    config = digits.get_config()
    config.model.variant = "mu/2"
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    return config, mesh, models.build(variants.from_config(config.model, 10))


def test_accuracy_matches_numpy(setup):
    config, mesh, model = setup
    config.eval_batch_size = 77  # 180 images: the last batch is padded
    params = model.init(jax.random.key(0))
    # The classifier is initialized to zero; random weights give varied predictions.
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (32, 10))
    scores = evaluators.make(("accuracy",), model, config, "val", mesh)(params)
    source, (_, view) = data.make(config, "val"), augment.transforms(config)
    examples = [source[i] for i in range(len(source))]
    images = jnp.stack([view(x["image"]) for x in examples])
    labels = np.array([x["label"] for x in examples])
    images = augment.normalize(images, config.data.mean, config.data.std)
    logits = np.asarray(model.apply(params, images)["logits"])
    order = np.argsort(-logits, axis=1)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = {
        "acc1": (order[:, 0] == labels).mean(),
        "acc5": (order[:, :5] == labels[:, None]).any(1).mean(),
        "loss": -log_softmax[np.arange(180), labels].mean(),
        "images": 180,
    }
    assert scores.keys() == expected.keys() and scores["acc1"] > 0
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(
    ("value", "acc1", "acc5", "loss"),
    [(0.0, 0.1, 0.5, np.log(10)), (np.nan, 0, 0, np.nan), (np.inf, 0, 0, np.nan)],
)
def test_equal_logits_share_the_credit_and_nan_earns_none(setup, value, acc1, acc5, loss):
    config, mesh, model = setup
    params = jax.tree.map(lambda x: x * 0 + value, model.init(jax.random.key(0)))
    scores = evaluators.make(("accuracy",), model, config, "val", mesh)(params)
    assert scores == pytest.approx(
        {"acc1": acc1, "acc5": acc5, "loss": loss, "images": 180}, rel=1e-6, nan_ok=True
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_features_cover_every_image_in_order(setup, devices):
    config, _, model = setup
    config.eval_batch_size = 56  # 180 images: the last batch is padded
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    params = model.init(jax.random.key(0))
    names = ("pooled", "logits", "none_such")
    arrays = evaluators.features(model, config, "val", mesh, names)(params)
    source, (_, view) = data.make(config, "val"), augment.transforms(config)
    examples = [source[i] for i in range(len(source))]
    images = jnp.stack([view(x["image"]) for x in examples])
    images = augment.normalize(images, config.data.mean, config.data.std)
    expected = model.apply(params, images)
    assert arrays.keys() == {"pooled", "logits", "label"}
    np.testing.assert_array_equal(arrays["label"], [x["label"] for x in examples])
    for name in ("pooled", "logits"):
        assert arrays[name].dtype == np.float32
        np.testing.assert_allclose(arrays[name], expected[name], atol=1e-5)
    for count in (1, 56, 60, 1000):
        first = evaluators.features(model, config, "val", mesh, max_images=count)(params)
        np.testing.assert_array_equal(first["pooled"], arrays["pooled"][:count])


def test_readouts_share_the_features_of_each_split(setup, monkeypatch):
    config, mesh, model = setup
    config.eval_batch_size = 180
    params = model.init(jax.random.key(0))
    names = ("accuracy", "knn", "linear_probe")
    splits = []  # the split of each batch that is read
    eval_batches = batch.eval_batches

    def counting(source, *args, **options):
        split = "train" if len(source) > 180 else "val"
        return (splits.append(split) or rows for rows in eval_batches(source, *args, **options))

    monkeypatch.setattr(batch, "eval_batches", counting)
    scores = evaluators.make(names, model, config, "val", mesh)(params)
    # Accuracy reads val separately.
    assert {s: splits.count(s) for s in ("train", "val")} == {"train": 7, "val": 2}
    single = {}
    for name in names:
        single |= evaluators.make((name,), model, config, "val", mesh)(params)
    assert scores == single
    keys = {"acc1", "acc5", "loss", "images", "knn10", "knn20", "linear_acc1"}
    assert scores.keys() == keys and scores["images"] == 180
    assert all(type(x) in (float, int) for x in scores.values())

    bank, queries = (
        evaluators.features(model, config, split, mesh)(params) for split in ("train", "val")
    )
    knns = knn.read_out(bank, queries, **config.knn)
    assert knns == {k: scores[k] for k in ("knn10", "knn20")}
    linear = linear_probe.read_out(bank, queries, **config.linear_probe)
    assert linear == {"linear_acc1": scores["linear_acc1"]}
    # An untrained model's features classify digits; shuffled labels would give chance accuracy.
    assert scores["knn20"] > 0.5 and scores["linear_acc1"] > 0.5


def test_invalid_evaluations_are_rejected(setup):
    config, mesh, model = setup
    headless = models.build(dataclasses.replace(model.module.config, num_classes=0))
    with pytest.raises(UserError, match="accuracy requires a model with a"):
        evaluators.make(("accuracy",), headless, config, "val", mesh)
    for name in ("knn", "linear_probe"):
        with pytest.raises(UserError, match="use val or test"):
            evaluators.make((name,), headless, config, "train", mesh)
