"""The logit lens against the model's own outputs."""

import jax
import numpy as np
import pytest

from vit_jax import vit
from vit_jax.analysis import logit_lens

IMAGES = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
OPTIONS = dict(width=32, depth=2, num_heads=2, mlp_dim=48, image=(16, 24), num_classes=7)


@pytest.mark.parametrize(
    "options",
    [
        dict(pool="cls"),
        dict(pool="gap"),
        dict(pool="cls_gap", reg_tokens=2),
        dict(pool="map"),
        dict(pool="cls", dist_token=True),
    ],
    ids=lambda options: ",".join(options | {options["pool"]: 0}),
)
def test_the_last_block_gives_the_logits_of_the_model(options):
    model = vit.create("Ti/8", **OPTIONS, **options)
    model.head.kernel[...] *= 20  # probabilities that are far from uniform
    expected = jax.nn.softmax(model(IMAGES)["logits"])
    out = logit_lens.compute(model, IMAGES)
    assert out["probabilities"].shape == (2, 2, 7) and out["patches"].shape == (2, 2, 6)
    np.testing.assert_allclose(out["probabilities"][:, -1], expected, atol=1e-6)
    assert np.abs(out["probabilities"][:, 0] - expected).max() > 1e-5
    # One patch alone: what the classifier says of a sequence of this patch.
    blocks = model(IMAGES, blocks=True)["blocks"]
    prefix = model.config.prefix
    alone = np.repeat(np.asarray(blocks[0])[:, prefix + 4][:, None], prefix + 1, axis=1)
    logits = logit_lens.classify(model, alone)
    predicted = np.asarray(expected).argmax(-1)
    values = np.asarray(jax.nn.softmax(logits))[np.arange(2), predicted]
    np.testing.assert_allclose(out["patches"][:, 0, 4], values, atol=1e-6)


def test_patches_of_mean_pooling_are_classified_by_norm_and_head():
    model = vit.create("Ti/8", **OPTIONS, pool="gap")
    x = model(IMAGES, blocks=True)["blocks"][0]
    prefix = model.config.prefix
    norm = model.fc_norm if model.norm is None else model.norm
    np.testing.assert_allclose(
        logit_lens.classify_tokens(model, x[:, prefix:]), model.head(norm(x[:, prefix:])), atol=1e-5
    )
