"""The ResNet: published sizes, BatchNorm, and training with meshes and checkpoints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from tests.stop import StopAfter
from vit_jax import inference, models, optim, resnet, train, variants
from vit_jax.config import check
from vit_jax.errors import Preempted, UserError
from vit_jax.flops import count_flops, count_params
from vit_jax.pretrained import runs
from vit_jax.run import Run
from vit_jax.tools import evaluate, summary
from vit_jax.workdir import log

# Parameters in torchvision and timm, with 1000 classes.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def recipe(**overrides):
    """Return the config of a short ResNet run on digits, with overrides group__key=value."""
    c = digits.get_config()
    c.model.variant = "resnet8"
    c.model.pool = "cls"
    c.model.init = "deit"
    c.model.width = 4
    c.batch_size = 64
    c.total_steps = "6"
    c.optim.warmup = "1"
    c.log_every = "1"
    c.eval_every = "6"
    c.checkpoint_every = "3"
    c.compilation_cache = ""
    for path, value in overrides.items():
        group, _, key = path.rpartition("__")
        (c[group] if group else c)[key] = value
    check(c)
    return c


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    config = variants.parse(name)
    assert count_params(config) == PARAMETERS[name]
    if name in ("resnet18", "resnet50"):  # building the deeper models takes seconds
        assert f"{PARAMETERS[name]:,}" in summary.summary(name, config)


def test_flops_match_paper():
    """FLOPs match Table 1 of arXiv:1512.03385, which counts multiply-adds.

    Bottleneck models differ, because the paper has the stride in the first 1x1 convolution.
    """
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
def test_feature_maps_match_convolution_plan(name, image, sides):
    model = models.build(variants.parse(name, num_classes=10))
    weights = jax.eval_shape(
        lambda k: models.merge_trees(model.init(k), model.stats()), jax.random.key(0)
    )
    x = jnp.zeros((2, image, image, 3))
    out = jax.eval_shape(lambda w: model.apply(w, x, blocks=True, train=True), weights)
    assert {k: m.shape[1] for k, m in out["maps"].items()} == sides
    plan = variants.convolutions(variants.parse(name, image=image))
    last_convolutions = {path.split("/")[0]: conv for path, conv in plan.items()}
    for stage, (*_, channels, size) in last_convolutions.items():
        assert out["maps"][stage].shape[1:] == (*size, channels)
    assert jax.tree.structure(out["stats"]) == jax.tree.structure(model.stats())


def test_batch_norm_matches_numpy():
    """Training uses and returns batch statistics; evaluation uses running statistics."""
    rng = np.random.default_rng(0)
    conv = resnet.ConvNorm(1, 1, 3, 3, dtype=jnp.float32, rngs=resnet.nnx.Rngs(params=0))
    conv.kernel[...] = jnp.eye(3)[None, None]
    conv.scale[...] = jnp.array([1.0, 2.0, 3.0])
    conv.bias[...] = jnp.array([0.0, 1.0, -1.0])
    conv.mean[...] = jnp.array([0.5, 0.0, 1.0])
    conv.var[...] = jnp.array([4.0, 1.0, 0.25])
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


def test_bfloat16_batch_norm_sums_in_float32():
    """Gradients over 16,384 positions are within the rounding of bfloat16 of those in float32."""
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(1, 1, (16, 32, 32, 8)), jnp.bfloat16) for _ in range(2))

    def gradients(dtype):
        model = models.pure(lambda rngs: resnet.ConvNorm(1, 1, 8, 8, dtype=dtype, rngs=rngs))
        params = model.init(jax.random.key(0)) | {"kernel": jnp.eye(8)[None, None]}
        inputs = (params, model.stats(), x.astype(dtype))

        def normalize(params, stats, x):
            return model.bind(models.merge_trees(params, stats))(x, train=True)

        (_, stats), vjp = jax.vjp(normalize, *inputs)
        zeros = jax.tree.map(jnp.zeros_like, stats)
        params, _, dx = vjp((g.astype(dtype), zeros))
        return {"scale": params["scale"], "bias": params["bias"], "x": dx, "var": stats["var"]}

    ours, expected = gradients("bfloat16"), gradients("float32")
    for name in ("scale", "bias", "var"):
        assert ours[name].dtype == jnp.float32
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-5)
    atol = 0.01 * float(jnp.abs(expected["x"]).max())
    np.testing.assert_allclose(ours["x"].astype(jnp.float32), expected["x"], atol=atol)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_are_a_float32_product(dtype):
    model = resnet.create("resnet8", width=4, num_classes=10, dtype=dtype)
    out = model.pool(jax.random.normal(jax.random.key(0), (2, 2, 2, 16), dtype))
    assert out["pooled"].dtype == dtype and out["logits"].dtype == jnp.float32
    expected = np.asarray(out["pooled"], np.float64) @ np.asarray(model.head.kernel[...])
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-5, atol=1e-7)


def test_residual_blocks_are_initialized_to_identity():
    model = resnet.create("resnet8", width=4, num_classes=10)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    maps = model(x, blocks=True)["maps"]
    np.testing.assert_array_equal(maps["layer1"], maps["stem"])


def train_steps(config, devices, count=3):
    """Return the loss of each step and the running statistics after the last one."""
    run = Run(config, devices)
    state = run.init()
    batches = run.batches(0)
    losses = []
    for _ in range(count):
        state, metrics = run.step(state, next(batches))
        losses.append(float(metrics["loss"]))
    batches.close()
    return np.array(losses), jax.device_get(state.extra["inner"])


def test_batch_statistics_are_global():
    """Statistics on a mesh are those of the global batch; micro-batches are averaged."""
    single = jax.devices()[:1]
    losses, stats = train_steps(recipe(), single)
    mesh_losses, mesh_stats = train_steps(recipe(mesh__data=2, mesh__fsdp=4), jax.devices())
    np.testing.assert_allclose(mesh_losses, losses, rtol=2e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, mesh_stats, stats)
    _, accumulated = train_steps(recipe(accum_steps=2), single, 1)
    _, full_batch = train_steps(recipe(), single, 1)
    close(accumulated["stem"]["mean"], full_batch["stem"]["mean"])


def test_resume_is_bit_exact_and_statistics_are_restored(tmp_path):
    devices = jax.devices()[:1]
    config = recipe()
    rows = {}
    with pytest.raises(Preempted):
        train.train(config, tmp_path / "resumed", StopAfter(2), devices)
    for name in ("uninterrupted", "resumed"):
        train.train(config, tmp_path / name, devices=devices)
        rows[name] = [
            {k: v for k, v in row.items() if not k.startswith(("perf/", "time"))}
            for row in log.read_metrics(tmp_path / name)
        ]
    assert rows["uninterrupted"] == rows["resumed"]
    workdir = tmp_path / "uninterrupted"
    score = evaluate.evaluate(inference.load(str(workdir)))
    assert score["acc1"] == rows["uninterrupted"][-1]["eval/test/acc1"]
    _, _, _, weights, _ = runs.load_weights(workdir, raw=True)
    assert np.abs(weights["stem"]["mean"]).max() > 0  # running statistics are part of the weights
    # A run that is initialized from another one takes over its running statistics.
    config = recipe(model_init=str(workdir))
    initial = Run(config, devices).init().extra["inner"]["stem"]["mean"]
    average = runs.load_weights(workdir)[3]["stem"]["mean"]
    np.testing.assert_array_equal(initial, average)


def test_vit_options_raise():
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


def test_only_kernels_have_weight_decay():
    params = models.build(variants.parse("resnet8", num_classes=10)).init(jax.random.key(0))
    mask = optim.decay_mask(params, "timm")
    assert mask["layer1"]["block0"]["conv1"] == {"kernel": True, "scale": False, "bias": False}
    assert mask["head"] == {"kernel": True, "bias": False}


def test_blocks_run_in_the_order_of_their_numbers():
    """JAX sorts dicts by text: block10 before block2."""
    config = variants.parse("resnet8", layers=(11, 1, 1), width=4, num_classes=0)
    model = models.build(config)
    shapes = models.split(model.module)[1]
    weights = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    weights["stem"]["kernel"] += 1
    weights["stem"]["scale"] += 1
    # With a scale of 0, blocks are the identity, and these two compute relu(relu(x - 1) + 1).
    for name, bias in (("block2", -1.0), ("block10", 1.0)):
        weights["layer1"][name]["conv2"]["bias"] += bias
    images = np.random.default_rng(0).normal(size=(1, 8, 8, 3))
    maps = jax.jit(lambda w, x: model.apply(w, x, blocks=True)["maps"])(weights, images)
    expected = np.maximum(maps["stem"] - 1, 0) + 1
    assert 0 < (expected == 1).sum() < expected.size
    np.testing.assert_allclose(maps["layer1"], expected, rtol=1e-6)
