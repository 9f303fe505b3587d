"""The CNN: published sizes, batch norm by hand; a ViT's loop, meshes and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from vit_jax import inference, models, optim, resnet, train, variants
from vit_jax.config import check
from vit_jax.errors import Preempted, UserError
from vit_jax.flops import count_flops, count_params
from vit_jax.pretrained import runs
from vit_jax.run import Run
from vit_jax.tools import evaluate, summary
from vit_jax.workdir import log

# torchvision's and timm's, with 1000 classes.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def recipe(**over):
    c = digits.get_config()
    c.model.variant, c.model.pool, c.model.init = "resnet8", "cls", "deit"
    c.model.width = 4
    c.batch_size, c.total_steps, c.optim.warmup = 64, "6", "1"
    c.log_every, c.eval_every, c.checkpoint_every = "1", "6", "3"
    c.compilation_cache = ""
    for key, value in over.items():
        group, _, leaf = key.rpartition("__")
        (c[group] if group else c)[leaf] = value
    check(c)
    return c


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name):
    config = variants.parse(name)
    assert count_params(config) == PUBLISHED[name]
    if name in ("resnet18", "resnet50"):  # building the deep ones takes seconds
        assert f"{PUBLISHED[name]:,}" in summary.summary(name, config)


def test_flops_are_those_of_the_paper():
    """Table 1 of arXiv:1512.03385 counts multiply-adds; its bottlenecks stride in the first 1x1."""
    for name, gmacs in {"resnet18": 1.8, "resnet34": 3.6}.items():
        assert count_flops(variants.parse(name)) / 2e9 == pytest.approx(gmacs, rel=0.02)


@pytest.mark.parametrize(
    ("name", "image", "sides"),
    [
        (
            "resnet50",
            64,
            {"stem": 32, "pool": 16, "layer1": 16, "layer2": 8, "layer3": 4, "layer4": 2},
        ),
        ("resnet14", 28, {"stem": 28, "layer1": 28, "layer2": 14, "layer3": 7}),
        ("resnet8", 9, {"stem": 9, "layer1": 9, "layer2": 5, "layer3": 3}),
    ],
)
def test_shapes_are_those_that_are_counted(name, image, sides):
    model = models.build(variants.parse(name, num_classes=10))
    weights = jax.eval_shape(
        lambda k: models.merge_trees(model.init(k), model.stats()), jax.random.key(0)
    )
    x = jnp.zeros((2, image, image, 3))
    out = jax.eval_shape(lambda w: model.apply(w, x, blocks=True, train=True), weights)
    assert {k: m.shape[1] for k, m in out["maps"].items()} == sides
    plan = variants.convolutions(variants.parse(name, image=image))
    last = {path.split("/")[0]: words for path, words in plan.items()}
    for stage, (*_, channels, side) in last.items():
        assert out["maps"][stage].shape[1:] == (side, side, channels)
    assert jax.tree.structure(out["stats"]) == jax.tree.structure(model.stats())


def test_a_batch_norm_by_hand():
    """Training normalizes by the batch and hands its statistics on; evaluation by those kept."""
    rng = np.random.default_rng(0)
    conv = resnet.ConvNorm(1, 1, 3, 3, dtype=jnp.float32, rngs=resnet.nnx.Rngs(params=0))
    conv.kernel[...] = jnp.eye(3)[None, None]
    conv.scale[...], conv.bias[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, -1.0])
    conv.mean[...], conv.var[...] = jnp.array([0.5, 0.0, 1.0]), jnp.array([4.0, 1.0, 0.25])
    x = rng.normal(3, 2, (2, 3, 5, 3))
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y, stats = conv(jnp.asarray(x, jnp.float32), train=True)
    expected = (x - mean) / np.sqrt(var + 1e-5) * [1, 2, 3] + [0, 1, -1]
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], x.var((0, 1, 2), ddof=1), rtol=1e-5)
    y, stats = conv(jnp.asarray(x, jnp.float32), train=False)
    expected = (x - [0.5, 0, 1]) / np.sqrt(np.array([4, 1, 0.25]) + 1e-5) * [1, 2, 3] + [0, 1, -1]
    np.testing.assert_allclose(y, expected, atol=2e-5)
    assert stats == {}


def test_every_branch_starts_as_the_identity():
    model = resnet.create("resnet8", width=4, num_classes=10)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    maps = model(x, blocks=True)["maps"]
    np.testing.assert_array_equal(maps["layer1"], maps["stem"])


def steps(config, devices, count=3):
    run = Run(config, devices)
    state, batches = run.init(), run.batches(0)
    losses = []
    for _ in range(count):
        state, metrics = run.step(state, next(batches))
        losses.append(float(metrics["loss"]))
    batches.close()
    return np.array(losses), jax.device_get(state.extra["inner"])


def test_statistics_are_of_the_global_batch():
    """On a mesh a batch norm sees all of the batch, in micro-batches the mean over them."""
    one, kept = steps(recipe(), jax.devices()[:1])
    many, same = steps(recipe(mesh__data=2, mesh__fsdp=4), jax.devices())
    np.testing.assert_allclose(many, one, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), same, kept)
    _, parts = steps(recipe(accum_steps=2), jax.devices()[:1], 1)
    _, whole = steps(recipe(), jax.devices()[:1], 1)
    np.testing.assert_allclose(parts["stem"]["mean"], whole["stem"]["mean"], rtol=1e-4, atol=1e-6)


def test_it_resumes_to_the_same_bits_and_scores_from_disk(tmp_path):
    devices = jax.devices()[:1]
    config, third, rows = recipe(), iter([False, False, True]), {}
    for name in ("once", "twice"):
        train.claim(tmp_path / name, config)
    with pytest.raises(Preempted):
        train.train(config, tmp_path / "twice", lambda: next(third), devices)
    for name in ("once", "twice"):
        train.train(config, tmp_path / name, devices=devices)
        rows[name] = [
            {k: v for k, v in row.items() if not k.startswith("perf/")}
            for row in log.read_metrics(tmp_path / name)
        ]
    assert rows["once"] == rows["twice"]
    score = evaluate.evaluate(inference.load(str(tmp_path / "once")))
    assert score["acc1"] == rows["once"][-1]["eval/test/acc1"]
    _, _, model, weights, _ = runs.load_weights(tmp_path / "once", raw=True)
    trained = weights["stem"]["mean"]
    assert np.abs(trained).max() > 0  # the statistics were kept, and are among the weights
    # Another run may begin with it: the classifier of 10 classes stays, the statistics too.
    config = recipe(model_init=str(tmp_path / "once"))
    found = Run(config, devices).init().extra["inner"]["stem"]["mean"]
    average = runs.load_weights(tmp_path / "once")[3]["stem"]["mean"]
    np.testing.assert_array_equal(found, average)


def test_what_only_a_vit_has_is_refused():
    with pytest.raises(UserError, match="resnet8 has no depth, drop_path; pass --config.m"):
        recipe(model__depth=3, model__drop_path=0.1)
    with pytest.raises(UserError, match="layer_decay"):
        recipe(optim__layer_decay=0.9)
    with pytest.raises(ValueError, match="resnet50 has no option 'depth'"):
        variants.parse("resnet50,depth=3")
    with pytest.raises(ValueError, match="no attention"):
        resnet.create("resnet8", width=4)(jnp.zeros((1, 8, 8, 3)), attention=True)
    with pytest.raises(ValueError, match="unknown ResNet 'resnet9'"):
        resnet.create("resnet9")


def test_kernels_decay_and_norms_do_not():
    params = models.build(variants.parse("resnet8", num_classes=10)).init(jax.random.key(0))
    mask = optim.decay_mask(params, "timm")
    assert mask["layer1"]["block0"]["conv1"] == {"kernel": True, "scale": False, "bias": False}
    assert mask["head"] == {"kernel": True, "bias": False}
