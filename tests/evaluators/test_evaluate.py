"""Every image once, whatever the batch; ties and NaN are no luck; features are read once."""

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


def test_it_equals_counting_by_hand(setup):
    config, mesh, model = setup
    config.eval_batch_size = 77  # 180 images: the last batch is padded
    params = model.init(jax.random.key(0))
    # Its classifier starts at zero; a random one makes guesses.
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (32, 10))
    found = evaluators.make(("accuracy",), model, config, "val", mesh)(params)
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
    assert found.keys() == expected.keys() and found["acc1"] > 0
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_the_same_score_for_every_class_is_never_right(setup, value):
    config, mesh, model = setup
    params = jax.tree.map(lambda x: x * 0 + value, model.init(jax.random.key(0)))
    found = evaluators.make(("accuracy",), model, config, "val", mesh)(params)
    assert found["acc1"] == found["acc5"] == 0


@pytest.mark.parametrize("devices", [1, 8])
def test_features_are_those_of_every_image_in_order(setup, devices):
    config, _, model = setup
    config.eval_batch_size = 56  # 180 images: the last batch is padded
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    params = model.init(jax.random.key(0))
    names = ("pooled", "logits", "none_such")
    found = evaluators.features(model, config, "val", mesh, names)(params)
    source, (_, view) = data.make(config, "val"), augment.transforms(config)
    examples = [source[i] for i in range(len(source))]
    images = jnp.stack([view(x["image"]) for x in examples])
    images = augment.normalize(images, config.data.mean, config.data.std)
    expected = model.apply(params, images)
    assert found.keys() == {"pooled", "logits", "label"}
    np.testing.assert_array_equal(found["label"], [x["label"] for x in examples])
    for name in ("pooled", "logits"):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    for count in (1, 56, 60, 1000):
        first = evaluators.features(model, config, "val", mesh, max_images=count)(params)
        np.testing.assert_array_equal(first["pooled"], found["pooled"][:count])


def test_several_read_outs_read_each_split_once(setup, monkeypatch):
    config, mesh, model = setup
    config.eval_batch_size = 180
    params = model.init(jax.random.key(0))
    names, splits = ("accuracy", "knn", "linear_probe"), []
    batches, make_source = {"train": 7, "val": 1}, batch.eval_batches

    def counting(source, *args, **options):
        split = "train" if len(source) > 180 else "val"
        return (splits.append(split) or rows for rows in make_source(source, *args, **options))

    monkeypatch.setattr(batch, "eval_batches", counting)
    found = evaluators.make(names, model, config, "val", mesh)(params)
    # Accuracy looks at val by itself.
    assert {s: splits.count(s) for s in batches} == {"train": 7, "val": 2}
    single = {}
    for name in names:
        single |= evaluators.make((name,), model, config, "val", mesh)(params)
    assert found == single
    keys = {"acc1", "acc5", "loss", "images", "knn10", "knn20", "linear_acc1"}
    assert found.keys() == keys and found["images"] == 180
    assert all(type(x) in (float, int) for x in found.values())

    bank, queries = (
        evaluators.features(model, config, split, mesh)(params) for split in ("train", "val")
    )
    knns = knn.read_out(bank, queries, **config.knn)
    assert knns == {k: found[k] for k in ("knn10", "knn20")}
    linear = linear_probe.read_out(bank, queries, **config.linear_probe)
    assert linear == {"linear_acc1": found["linear_acc1"]}
    # An untrained model's features of digits tell much; by a shuffled order they would nothing.
    assert found["knn20"] > 0.5 and found["linear_acc1"] > 0.5


def test_what_cannot_be_scored(setup):
    config, mesh, model = setup
    features = models.build(dataclasses.replace(model.module.config, num_classes=0))
    with pytest.raises(UserError, match="accuracy needs a classifier"):
        evaluators.make(("accuracy",), features, config, "val", mesh)
    for name in ("knn", "linear_probe"):
        with pytest.raises(UserError, match="score val or test"):
            evaluators.make((name,), features, config, "train", mesh)
