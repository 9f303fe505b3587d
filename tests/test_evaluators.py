"""Accuracy: every image once, whatever the batch; ties and NaN are no luck."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from vit_jax import augment, data, evaluators, sharding, vit


@pytest.fixture(scope="module")
def setup():
    config = digits.get_config()
    config.model.variant = "mu/2"
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    return config, mesh, vit.build(10, **config.model)


def test_it_equals_counting_by_hand(setup):
    config, mesh, model = setup
    config.eval_batch_size = 77  # 180 images: the last batch is padded
    params = model.init(jax.random.key(0))
    # Its classifier starts at zero; a random one makes guesses.
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (32, 10))
    found = evaluators.make("accuracy", model, config, "val", mesh)(params)
    source, (_, view) = data.make(config, "val"), augment.views(config)
    examples = [source[i] for i in range(len(source))]
    images = jnp.stack([view(x["image"]) for x in examples])
    labels = np.array([x["label"] for x in examples])
    images = augment.normalise(images, config.data.mean, config.data.std)
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
    found = evaluators.make("accuracy", model, config, "val", mesh)(params)
    assert found["acc1"] == found["acc5"] == 0
