"""The training step: parity with timm, meshes, gradient accumulation, frozen parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits, dino_digits
from tests import GOLDEN
from tests.tiny import tiny
from vit_jax import objectives, optim, pretrained, vit
from vit_jax.devices import sharding
from vit_jax.objectives.supervised import cross_entropy, smooth
from vit_jax.optim import add_decay
from vit_jax.perf import hlo, topologies, workloads
from vit_jax.run import Run
from vit_jax.step import TrainState, _apply, init_state, make_train_step, split_batch


def test_cross_entropy_and_label_smoothing_match_timm():
    golden = np.load(GOLDEN / "losses/cross_entropy.npz")
    logits, labels = golden["logits"], golden["labels"]
    soft = cross_entropy(logits, golden["soft_targets"])
    np.testing.assert_allclose(soft, golden["soft_target_ce"][0], rtol=1e-6)
    smoothed = smooth(jax.nn.one_hot(labels, 11), 0.1)
    np.testing.assert_allclose(
        cross_entropy(logits, smoothed), golden["label_smoothing_ce_0_1"][0], rtol=1e-6
    )
    hard = cross_entropy(logits, jax.nn.one_hot(labels, 11))
    np.testing.assert_allclose(cross_entropy(logits, labels), hard, rtol=1e-6)


@pytest.mark.parametrize("scan", ["on", "off"])
def test_four_steps_match_timm(scan):
    """AdamW with decay groups, soft targets and EMA of the weights, on a timm ViT (as in DeiT)."""
    folder = GOLDEN / "train_steps_supervised"
    name = "num_heads=3"
    model = pretrained.load(folder / "init.safetensors", name, scan=scan)
    apply, params = vit.functional(model)
    images = np.load(folder / "images.npy").transpose(0, 1, 3, 4, 2)
    targets = np.load(folder / "soft_targets.npy")
    lrs = jnp.asarray([0.001, 0.002, 0.0015, 0.001])
    tx = optax.chain(
        optax.scale_by_adam(),
        add_decay(0.05, "timm"),
        optax.scale_by_learning_rate(lambda count: lrs[count]),
    )

    def loss(params, extra, batch, rng, step):  # noqa: ARG001
        logits = apply(params, batch["image"], train=True, rng=rng)["logits"]
        return cross_entropy(logits, batch["target"]), {"metrics": {}, "carry": {}}

    objective = objectives.Objective(
        init=lambda _: (params, {}),
        loss=loss,
        update=lambda extra, *_: extra,
        weights=lambda params, _: params,
        views=None,
        flops=None,
    )
    objective = objectives.with_ema(objective, 0.9)
    step = jax.jit(make_train_step(objective, tx))
    state = init_state(objective, tx, jax.random.key(0))
    for i in range(4):
        batch = {"image": images[i], "target": targets[i]}
        state, metrics = step(state, batch, jax.random.key(1))
        tolerance = 1e-5 if i == 0 else 1e-4
        np.testing.assert_allclose(metrics["loss"], np.load(folder / "loss.npy")[i], atol=tolerance)
        np.testing.assert_allclose(
            metrics["grad_norm"], np.load(folder / "grad_norm.npy")[i], rtol=1e-4
        )
        if i == 0:
            _assert_params_equal(state.params, folder / "after_step0.safetensors", name)
    _assert_params_equal(state.params, folder / "after_step3.safetensors", name)
    weights = objective.weights(state.params, state.extra)
    _assert_params_equal(weights, folder / "ema_after_step3.safetensors", name)


def _assert_params_equal(params, path, name):
    _, expected = vit.functional(pretrained.load(path, name))
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True)
    for (path, ours), theirs in pairs:
        if "qkv" in str(path) and "bias" in str(path):
            # The softmax is invariant to the keys' bias. Its gradient is rounding error, which Adam
            # scales to steps of size lr, so only the biases of queries and values are compared.
            ours = ours[:, ::2]
            theirs = theirs[:, ::2]
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=str(path))


def small_config(**overrides):
    c = tiny(digits.get_config())
    c.batch_size = 16
    c.eval_batch_size = 16
    c.data.synthetic.images = 64
    c.model.update(width=64, num_heads=4, mlp_dim=128, init="deit", scan="on")
    for key, value in overrides.items():
        group, _, leaf = key.rpartition("__")
        (c[group] if group else c)[leaf] = value
    return c


def losses(config, devices, steps=3):
    """Return the loss and gradient norm of each step [steps, 2], and the final state."""
    run = Run(config, devices)
    state = run.init()
    batches = run.batches(0)
    values = []
    for _ in range(steps):
        state, metrics = run.step(state, next(batches))
        values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    batches.close()
    return np.array(values), state


@pytest.mark.parametrize("accum_steps", [1, 2])
def test_bad_steps_change_nothing_but_the_counters(accum_steps):
    """NaN in one image of the second and third batch; the EMA, moments and counts stay as well."""
    config = small_config(accum_steps=accum_steps)
    run = Run(config, jax.devices()[:1])
    step = jax.jit(make_train_step(run.objective, optim.make(config, 8)[0], accum_steps))
    state = run.init()
    batches = run.batches(0)
    states = []
    for i in range(4):
        rows = jax.tree.map(np.array, next(batches))
        rows["image"] = rows["image"].astype(np.float32)
        if i in (1, 2):
            rows["image"][0, 0, 0] = np.nan
        state, metrics = step(state, rows, run.train_rng)
        states.append(jax.device_get(state))
        assert np.isfinite(float(metrics["loss"])) == (i not in (1, 2))
    batches.close()
    first, second, third, last = states
    for skipped in (second, third):
        jax.tree.map(np.testing.assert_array_equal, skipped[1:4], first[1:4])
    assert [state.step for state in states] == [1, 2, 3, 4]
    assert [tuple(map(int, state.bad)) for state in states] == [
        (0, 0, 0),
        (1, 1, 2),
        (2, 2, 2),
        (2, 0, 2),
    ]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(last))
    assert (last.params["head"]["kernel"] != first.params["head"]["kernel"]).any()


def test_an_update_that_overflows_is_a_bad_step():
    """The loss and the gradients are finite, the update is not where it is not 0."""
    config = small_config()
    run = Run(config, jax.devices()[:1])
    tx = optax.chain(optax.scale(1e38), optax.scale(1e38))
    state = init_state(run.objective, tx, run.init_rng)
    batches = run.batches(0)
    train_step = jax.jit(make_train_step(run.objective, tx))
    new, metrics = train_step(state, next(batches), run.train_rng)
    batches.close()
    assert np.isfinite(float(metrics["loss"])) and np.isfinite(float(metrics["grad_norm"]))
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
    assert tuple(map(int, new.bad)) == (1, 1, 1)


@pytest.mark.parametrize("ok", [True, False])
def test_update_on_accelerators_leaves_out_values_that_are_not_finite(ok):
    objective = objectives.Objective(
        init=None,
        loss=None,
        update=lambda extra, params, aux, step: extra + params,  # noqa: ARG005
        weights=None,
        views=None,
        flops=None,
    )
    before = jnp.array([1.0, 2.0, 3.0])
    state = TrainState(jnp.int32(0), before, before, before, bad=None)
    updates = jnp.array([0.5, jnp.nan, jnp.inf])
    new, norm = _apply(objective, jnp.array(ok), state, updates, 2 * before, {})
    expected = [[1.5, 2, 3], [2.5, 4, 6], [2, 4, 6]] if ok else [[1, 2, 3]] * 3
    np.testing.assert_array_equal(jnp.stack(new), expected)
    assert np.isfinite(norm) == (not ok)


def test_loss_is_equal_on_every_mesh():
    """1 device, 8 replicas, 8 parameter shards, and 2 x 2 x 2 with two micro-batches."""
    overrides = {"model__drop_path": 0.2, "augment__mixup": 0.8, "augment__cutmix": 1.0}
    overrides["augment__erase"] = 0.5
    results = {}
    for shape in [(8, 1, 1), (1, 8, 1), (2, 2, 2)]:
        axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), shape, strict=True))
        config = small_config(**overrides, **axes, accum_steps=2 if shape == (2, 2, 2) else 1)
        results[shape], state = losses(config, jax.devices())
        # The EMA and the moments are sharded like the parameters.
        for tree in (state.params, state.extra["ema"], state.opt_state[0].mu):
            kernel = tree["blocks"]["mlp"]["fc1"]["kernel"]
            assert kernel.addressable_shards[0].data.size == kernel.size / (shape[1] * shape[2])
    expected, _ = losses(small_config(**overrides), jax.devices()[:1])
    for shape, result in results.items():
        np.testing.assert_allclose(result, expected, rtol=2e-5, err_msg=str(shape))


def test_gradient_accumulation_matches_a_single_batch():
    """Random draws and partners of mixup and CutMix depend only on the row in the batch."""
    overrides = {
        "model__drop_path": 0.3,
        "augment__erase": 0.5,
        "augment__mixup": 0.8,
        "augment__cutmix": 1.0,
        "objective__label_smoothing": 0.1,
        "optim__name": "sgd",  # Adam amplifies the rounding errors of zero gradients
        "optim__lr": 0.05,
        "optim__warmup": "0",
    }
    device = jax.devices()[:1]
    expected, state = losses(small_config(**overrides), device)
    values, accumulated = losses(small_config(**overrides, accum_steps=4), device)
    np.testing.assert_allclose(values, expected, rtol=2e-5)
    close = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, accumulated.params, state.params)


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_scanned_and_unrolled_blocks_take_the_same_steps(name):
    overrides = {
        "model__depth": 2,
        "model__drop_path": 0.3,
        "model__drop_path_uniform": True,
        "model__layer_scale_init": 0.1,
        "model__qkv_bias": False,  # the gradients of key biases are rounding errors
        "optim__name": name,
        "optim__clip": 1.0,
        "optim__warmup": "0",
    }
    results = [
        losses(small_config(**overrides, model__scan=scan), jax.devices()[:1])
        for scan in ("on", "off")
    ]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    close = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, results[0][1].params, results[1][1].params)


def test_accumulated_gradients_are_all_reduced_once():
    """Scanned blocks on 8 devices, with the partners of mixup and CutMix on other devices."""
    overrides = {
        "model__depth": 3,
        "model__drop_path": 0.3,
        "augment__erase": 0.5,
        "augment__mixup": 0.8,
        "augment__cutmix": 1.0,
        "optim__name": "sgd",  # Adam amplifies the rounding errors of zero gradients
        "optim__lr": 0.05,
        "optim__warmup": "0",
        "batch_size": 32,
    }
    expected, expected_state = losses(small_config(**overrides), jax.devices()[:1])
    config = small_config(**overrides, accum_steps=2)
    values, state = losses(config, jax.devices())
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    close = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, state.params, expected_state.params)
    run = Run(config)
    program = run.lower(workloads.batch_shapes(config)).compile().as_text()
    count = hlo.collectives(program)["all-reduce"]
    assert count["runs"] == count["ops"]  # none in a loop
    assert 0 <= count["bytes"] - 4 * run.parameters < 100  # the loss and the accuracy as well


@pytest.mark.slow
@pytest.mark.parametrize(("scan", "attn"), [("on", "pallas"), ("off", "xla")])
def test_accumulated_gradients_are_all_reduced_once_on_tpu(scan, attn):
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    overrides = {"model__depth": 3, "model__dtype": "bfloat16", "augment__mixup": 0.8}
    overrides |= {"model__scan": scan, "model__attn": attn, "batch_size": 32}
    config = small_config(**overrides, accum_steps=2)
    run = Run(config, topologies.topology("v5e:2x4"))
    program = run.lower(workloads.batch_shapes(config)).compile().as_text()
    count = hlo.collectives(program)["all-reduce"]
    assert count["runs"] == count["ops"] <= 2
    assert 4 * run.parameters <= count["bytes"] < 4.1 * run.parameters


@pytest.mark.parametrize(("size", "parts"), [(16, 2), (24, 3), (8, 1), (6, 2), (3, 3)])
def test_partners_are_in_the_same_micro_batch(size, parts):
    rows = np.asarray(split_batch(jnp.arange(size), parts))
    assert rows.shape == (parts, size // parts)
    assert sorted(rows.ravel()) == list(range(size))
    if size // parts % 2 == 0:
        np.testing.assert_array_equal(rows[:, ::-1], size - 1 - rows)


def test_batch_is_split_without_communication():
    mesh = sharding.data_parallel_mesh()
    assert mesh.size == 8
    part = jax.NamedSharding(mesh, jax.P(None, *sharding.batch_sharding(mesh).spec))
    split = jax.jit(
        lambda x: split_batch(x, 4),
        in_shardings=sharding.batch_sharding(mesh),
        out_shardings=part,
    )
    program = split.lower(jnp.zeros((64, 3))).compile().as_text()
    assert "f32[8,3]" in program  # rows per device
    assert "all-" not in program and "collective" not in program


def test_state_leaves_do_not_share_buffers():
    """With a shared buffer, donation fails or overwrites another array."""
    run = Run(small_config(), jax.devices()[:1])
    leaves = jax.tree.leaves(run.init())
    pointers = [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)


def test_sgd_with_post_norm_overfits_one_batch():
    c = small_config(optim__name="sgd", optim__lr=0.05, model__norm="post", optim__warmup="0")
    c.optim.weight_decay = 0.05
    c.total_steps = "60"
    run = Run(c, jax.devices()[:1])
    state, batches = run.init(), run.batches(0)
    rows = next(batches)
    values = []
    for _ in range(60):
        state, metrics = run.step(state, rows)
        values.append(float(metrics["loss"]))
    batches.close()
    assert values[-1] < 0.5 * values[0]


def test_linear_probe_trains_only_the_head_without_a_backward_pass():
    device = jax.devices()[:1]
    overrides = {"optim__warmup": "0", "optim__weight_decay": 0.1}
    flops = {}
    for trainable in ("", "head"):
        run = Run(small_config(optim__trainable=trainable, **overrides), device)
        state, batches = run.init(), run.batches(0)
        before = jax.device_get(state.params)
        rows = next(batches)
        rng = jax.random.key(0)
        flops[trainable] = run._step.lower(state, rows, rng).compile().cost_analysis()["flops"]
        after = jax.device_get(run.step(state, rows)[0].params)
        batches.close()
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
        assert all(jax.tree.leaves(changed.pop("head")))
        backbone = jax.tree.leaves(changed)
        assert all(backbone) != bool(trainable) and any(backbone) != bool(trainable)
    assert flops["head"] < 0.5 * flops[""]  # the forward pass is a third of a training step


# Options of today's models, in groups that can be combined.
MODERN = {
    "dinov2": dict(
        pool="cls", reg_tokens=2, layer_scale_init=0.1, mlp="swiglu", qk_norm=True, rope="axial"
    ),
    "clip": dict(
        pool="cls", dist_token=True, embed_norm=True, patch_bias=False, k_bias=False, rope="dinov3"
    ),
    "rope_mixed": dict(pool="map", norm="res_post", rope="mixed", pos_embed="none", mlp_norm=True),
}
LAYOUTS = [(8, 1, 1, "on"), (2, 4, 1, "off"), (4, 1, 2, "on")]  # data, fsdp, tensor, scan


@pytest.mark.parametrize("name", MODERN)
def test_modern_blocks_train_equally_on_every_mesh(name):
    """Losses, gradient norms and parameters after two steps, with scanned and unrolled blocks."""
    results = {}
    for data, fsdp, tensor, scan in [(1, 1, 1, "on"), (1, 1, 1, "off"), *LAYOUTS]:
        config = small_config(mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor)
        config.optim.name = "sgd"  # Adam amplifies the rounding errors of zero gradients
        config.optim.lr = 0.05
        config.optim.warmup = "0"
        config.model.update(scan=scan, drop_path=0.2, **MODERN[name])
        values, state = losses(config, jax.devices()[: data * fsdp * tensor], steps=2)
        results[data, fsdp, tensor, scan] = values, jax.device_get(state.params)
    expected, params = results[1, 1, 1, "on"]
    assert np.isfinite(expected).all() and expected[1, 0] != expected[0, 0]
    for layout, (values, trained) in results.items():
        np.testing.assert_allclose(values, expected, rtol=1e-5, err_msg=str(layout))
        close = partial(np.testing.assert_allclose, atol=1e-5, err_msg=str(layout))
        jax.tree.map(close, trained, params)


def test_dino_trains_modern_blocks_equally_on_a_mesh():
    results = []
    for count, scan in ((1, "on"), (1, "off"), (8, "on")):
        config = tiny(dino_digits.get_config())
        config.batch_size = 8
        config.mesh.fsdp = config.mesh.tensor = 2 if count > 1 else 1
        config.model.update(scan=scan, drop_path=0.2, width=64, num_heads=4)
        config.model.update(MODERN["dinov2"])
        config.optim.name = "sgd"
        config.optim.lr = 0.05
        config.optim.warmup = "0"
        results.append(losses(config, jax.devices()[:count], steps=2)[0])
    assert np.isfinite(results).all()
    for values in results[1:]:
        np.testing.assert_allclose(values, results[0], rtol=1e-5)
