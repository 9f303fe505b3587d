"""Schedules, parameter groups and optimizer steps against reference implementations."""

import json
import re

import jax
import numpy as np
import optax
import pytest

from configs import deit3
from tests import GOLDEN
from vit_jax import optim
from vit_jax.config import defaults, schema
from vit_jax.errors import UserError

WIDTH, DEPTH = 6, 2
SHAPES = {  # without the layer axis
    "cls_token": (1, 1, WIDTH),
    "dist_token": (1, 1, WIDTH),
    "reg_token": (1, 4, WIDTH),
    "pos_embed": (1, 5, WIDTH),
    "patch_embed/kernel": (2, 2, 3, WIDTH),
    "patch_embed/bias": (WIDTH,),
    "blocks/norm1/scale": (WIDTH,),
    "blocks/norm1/bias": (WIDTH,),
    "blocks/attn/qkv/kernel": (WIDTH, 3, WIDTH),
    "blocks/attn/qkv/bias": (3, WIDTH),
    "blocks/attn/proj/kernel": (WIDTH, WIDTH),
    "blocks/attn/proj/bias": (WIDTH,),
    "blocks/ls1/gamma": (WIDTH,),
    "blocks/norm2/scale": (WIDTH,),
    "blocks/norm2/bias": (WIDTH,),
    "blocks/mlp/fc1/kernel": (WIDTH, 8),
    "blocks/mlp/fc1/bias": (8,),
    "blocks/mlp/fc2/kernel": (8, WIDTH),
    "blocks/mlp/fc2/bias": (WIDTH,),
    "blocks/ls2/gamma": (WIDTH,),
    "norm/scale": (WIDTH,),
    "norm/bias": (WIDTH,),
    "fc_norm/scale": (WIDTH,),
    "fc_norm/bias": (WIDTH,),
    "head/kernel": (WIDTH, 3),
    "head/bias": (3,),
    "head_dist/kernel": (WIDTH, 3),
    "head_dist/bias": (3,),
}


def tree(make):
    """Return a nested dict with make(path, shape) at every leaf, for stacked blocks."""
    params = {}
    for path, shape in SHAPES.items():
        *groups, leaf = path.split("/")
        node = params
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = make(path, (DEPTH, *shape) if groups[:1] == ["blocks"] else shape)
    return params


def flatten_by_path(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in leaves}


def from_timm_name(name):
    """Return the path of a timm parameter in our tree, and the index of its block or None."""
    block = re.match(r"blocks\.(\d+)\.", name)
    name = re.sub(r"^blocks\.\d+", "blocks", name).replace("patch_embed.proj", "patch_embed")
    name = re.sub(r"(norm\d?)\.weight$", r"\1.scale", name).replace(".weight", ".kernel")
    return name.replace(".", "/"), block and int(block[1])


def make_config(**changes):
    c = defaults()
    c.batch_size = 8
    c.total_steps = "6"
    c.optim.update(lr=1e-2, b2=0.99, weight_decay=0.3, warmup="2", end=1e-4, warmup_start=1e-3)
    c.optim.update(changes)
    return c


def test_schedules_match_timm_and_mae():
    golden = np.load(GOLDEN / "schedule/lr.npz")
    meta = json.loads((GOLDEN / "schedule/meta.json").read_text())
    for name, m in meta.items():
        if name.startswith("mae"):
            actual = optim.cosine_schedule(
                m["lr"], m["epochs"], warmup=m["warmup_epochs"], end=m["min_lr"], warmup_prefix=True
            )(golden[f"{name}_epoch"])
            expected = golden[name]
        else:
            actual = optim.cosine_schedule(
                m["scaled_lr"],
                m["epochs"],
                warmup=m["warmup_epochs"],
                warmup_start=m["warmup_lr"],
                end=m["min_lr"],
            )(np.arange(m["epochs"] + 12))
            expected = golden[f"{name}_sched_of_t"]
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-18, err_msg=name)
    prefix = dict(warmup=10, warmup_start=1e-3, end=1e-4, warmup_prefix=True)
    actual = [optim.cosine_schedule(0.8, 100, **prefix)(t) for t in range(110)]
    np.testing.assert_allclose(actual, golden["timm_warmup_prefix"], rtol=1e-12)


def test_schedule_matches_big_vision_and_traces():
    golden = np.load(GOLDEN / "schedule/bv_cosine.npz")
    total, warmup = int(golden["total"]), int(golden["warmup"])
    schedule = optim.cosine_schedule(1.0, total, warmup=warmup, warmup_prefix=True)
    # The reference computes in float32; 1e-7 is its rounding error for cosines near -1.
    np.testing.assert_allclose(schedule(golden["step"]), golden["lr_mult"], rtol=1e-5, atol=1e-7)
    traced = jax.jit(schedule)(golden["step"].astype(np.int32))
    np.testing.assert_allclose(traced, schedule(golden["step"]), rtol=1e-5, atol=2e-7)
    assert optim.cosine_schedule(0.5, 10)(0) == 0.5 and optim.cosine_schedule(0.5, 10)(10) == 0


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("timm_vit_cls", "timm"),
        ("timm_vit_reg_ls_gap", "timm"),
        ("timm_deit_distilled_current_timm", "timm"),
        ("deit2020_distilled_timm0.3.2_skiplist", "deit"),
        ("mae_layer_decay", "timm"),
    ],
)
def test_parameter_groups_match_timm_deit_and_mae(name, rule):
    params = tree(lambda _, shape: np.zeros(shape))
    mask = flatten_by_path(optim.decay_mask(params, rule))
    scales = flatten_by_path(optim.layer_scales(params, 0.75))
    groups = json.loads((GOLDEN / "param_groups/groups.json").read_text())[name]
    for group in groups:
        for timm_name in group["names"]:
            path, block = from_timm_name(timm_name)
            assert mask[path] == (group["weight_decay"] > 0), timm_name
            if name == "mae_layer_decay":
                scale = scales[path] if block is None else scales[path][block].item()
                assert scale == pytest.approx(group["lr_scale"], rel=1e-12), timm_name


def test_decay_rules_without_reference_file():
    params = tree(lambda _, shape: np.zeros(shape))
    rules = ("timm", "dino", "kernel", "all")
    masks = {rule: flatten_by_path(optim.decay_mask(params, rule)) for rule in rules}
    decayed = {rule: {k for k, v in masks[rule].items() if v} for rule in rules}
    assert decayed["dino"] - decayed["timm"] == {
        "cls_token",
        "dist_token",
        "reg_token",
        "pos_embed",
    }
    assert decayed["kernel"] == {k for k in SHAPES if k.endswith("kernel")} == decayed["timm"]
    assert decayed["all"] == set(SHAPES)
    with pytest.raises(UserError, match="unknown decay rule 'tim'"):
        optim.decay_mask(params, "tim")
    with pytest.raises(UserError, match="needs a model with blocks"):
        optim.layer_scales({"head": params["head"]}, 0.5)


def test_steps_match_big_vision():
    golden = np.load(GOLDEN / "train_steps_supervised/big_vision_optimizer/steps.npz")
    meta = json.loads(
        (GOLDEN / "train_steps_supervised/big_vision_optimizer/meta.json").read_text()
    )
    config = make_config(lr=meta["lr"], b2=meta["betas"][1], weight_decay=meta["wd"])
    config.total_steps, config.optim.warmup = str(meta["total_steps"]), str(meta["warmup_steps"])
    config.optim.update(decay_rule="kernel", decay_by="schedule", warmup_prefix=True, end=0.0)
    config.optim.update(warmup_start=0.0, clip=meta["grad_clip_norm"])
    tx, _ = optim.make(config, 1)

    def read(letter, t):
        keys = [k for k in golden.files if k.startswith(f"{letter}{t}/")]
        return {k.split("/", 1)[1]: golden[k] for k in keys}

    params = read("p", 0)
    state = tx.init(params)
    for t in range(5):
        updates, state = jax.jit(tx.update)(read("g", t), state, params)
        params = jax.tree.map(np.add, params, updates)
        for name, expected in read("p", t + 1).items():
            np.testing.assert_allclose(params[name], expected, rtol=2e-6, atol=2e-7, err_msg=name)


def test_lamb_matches_deit():
    """The LAMB of DeiT III, with given gradients: zero and tiny tensors, and zero gradients."""
    golden = np.load(GOLDEN / "deit3/lamb.npz")
    names = {"w": "w", "zero_w": "zero_w", "tiny_w": "tiny_w", "conv": "conv"}
    names |= {"bias": "bias", "pos": "pos_embed"}

    def read(kind, t):
        return {name: golden[f"{kind}/{key}"][t] for key, name in names.items()}

    config = make_config(name="lamb", lr=1.0, b2=0.999, eps=1e-8, clip=1.0, warmup="0", end=1.0)
    config.optim.weight_decay = float(golden["weight_decay"])
    tx, schedule = optim.make(config, 1)
    assert schedule(3) == 1
    params = read("params", 0)
    mask = optim.decay_mask(params, "deit")
    assert {name for name, decays in mask.items() if decays} == set(golden["decay"])
    state = tx.init(params)
    for t, lr in enumerate(golden["lrs"]):
        updates, state = jax.jit(tx.update)(read("grads", t), state, params)
        params = {name: params[name] + lr * u for name, u in updates.items()}
        for name, expected in read("params", t + 1).items():
            np.testing.assert_allclose(params[name], expected, rtol=0, atol=2e-6, err_msg=name)


def test_optimizers_are_the_choices_of_the_config():
    assert tuple(optim.OPTIMIZERS) == schema()["optim.name"].choices
    with pytest.raises(UserError, match="'lamb' needs config.optim.decay_by = 'lr'"):
        optim.make(make_config(name="lamb", decay_by="schedule"), 1)


def test_per_block_equals_the_transformation_of_separate_blocks():
    inner = optax.chain(optax.clip_by_global_norm(0.3), optax.scale_by_adam(), optax.centralize())
    rng = np.random.default_rng(0)

    def draw():
        stacks = [{"w": rng.normal(size=(n, 4, 3)), "b": rng.normal(size=(n, 4))} for n in (2, 3)]
        first, second = jax.tree.map(np.float32, stacks)
        head = np.float32(rng.normal(size=(4, 2)))
        return {"a": {"blocks": first, "head": head}, "b": {"blocks": second}}

    def separate(tree):
        blocks = [(stack, i) for stack, n in (("a", 2), ("b", 3)) for i in range(n)]
        parts = [jax.tree.map(lambda x, i=i: x[i], tree[s]["blocks"]) for s, i in blocks]
        return [{"head": tree["a"]["head"]}, *parts]

    params = draw()
    tx = optim.per_block(inner)
    state = tx.init(params)
    expected_states = [inner.init(part) for part in separate(params)]
    for _ in range(3):
        grads = draw()
        updates, state = jax.jit(tx.update)(grads, state, params)
        results = [
            inner.update(*args)
            for args in zip(separate(grads), expected_states, separate(params), strict=True)
        ]
        expected_states = [s for _, s in results]
        for actual, (expected, _) in zip(separate(updates), results, strict=True):
            jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6), actual, expected)


MATRICES = ("attn/qkv/kernel", "attn/proj/kernel", "mlp/fc1/kernel", "mlp/fc2/kernel")


def is_hidden(name):
    """Return whether a tensor of `separate_matrices` is a matrix of a hidden layer."""
    return any(matrix in name for matrix in MATRICES)


def separate_matrices(params):
    """Return {"path/block/part": array}; queries, keys and values are separate tensors."""
    separated = {}
    for path, leaf in flatten_by_path(params).items():
        for i in range(DEPTH) if path.startswith("blocks") else [None]:
            tensor = leaf if i is None else leaf[i]
            parts = range(3) if path.endswith("qkv/kernel") else [None]
            for j in parts:
                separated[f"{path}/{i}/{j}"] = np.asarray(tensor if j is None else tensor[:, j])
    return separated


def test_muon_updates_the_matrices_of_each_block():
    """Steps equal those of optax.contrib.muon, given separate queries, keys and values."""
    config = make_config(name="muon", momentum=0.95, clip=0.7)
    tx, schedule = optim.make(config, 1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(np.float32, tree(lambda _, shape: rng.normal(size=shape)))
    dimensions = optax.contrib.MuonDimensionNumbers()

    expected = separate_matrices(params)
    inner = optax.contrib.muon(
        1.0,
        adam_b2=config.optim.b2,
        muon_weight_dimension_numbers={n: dimensions if is_hidden(n) else None for n in expected},
    )
    reference = optax.chain(
        optax.clip_by_global_norm(0.7),
        inner,
        optax.scale(-1),
        optax.add_decayed_weights(0.3, {name: "kernel" in name for name in expected}),
        optax.scale_by_learning_rate(schedule),
    )
    state, expected_state = tx.init(params), reference.init(expected)
    for _ in range(2):
        grads = jax.tree.map(np.float32, tree(lambda _, shape: rng.normal(size=shape)))
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = jax.tree.map(np.add, params, updates)
        args = separate_matrices(grads), expected_state, expected
        step, expected_state = jax.jit(reference.update)(*args)
        expected = {name: expected[name] + step[name] for name in expected}
        for name, actual in separate_matrices(params).items():
            np.testing.assert_allclose(actual, expected[name], atol=2e-5, err_msg=name)


def test_muon_orthogonalizes():
    """All singular values of an update are about sqrt(max(1, outputs / inputs))."""
    rng = np.random.default_rng(0)

    def draw(path, shape):
        """Draw matrices with singular values from 0.3 to 1; the others do not converge."""
        parts = path.endswith("qkv/kernel")
        normal = rng.normal(size=np.moveaxis(np.zeros(shape), -2, 0).shape if parts else shape)
        u, values, v = np.linalg.svd(normal, full_matrices=False)
        matrices = np.float32(u * np.linspace(0.3, 1, values.shape[-1]) @ v)
        return np.moveaxis(matrices, 0, -2) if parts else matrices

    grads = tree(lambda path, shape: draw(path, shape) if "kernel" in path else np.ones(shape))
    grads["stage"] = {"conv": {"kernel": draw("", (18, 30)).reshape(3, 3, 2, 30)}}
    params = jax.tree.map(np.zeros_like, grads)
    tx, _ = optim.make(make_config(name="muon", warmup="0", lr=1.0, weight_decay=0.0), 1)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    matrices = [u for name, u in separate_matrices(updates).items() if is_hidden(name)]
    matrices.append(np.reshape(updates["stage"]["conv"]["kernel"], (18, 30)))
    assert len(matrices) == 6 * DEPTH + 1
    for matrix in matrices:
        inputs, outputs = matrix.shape
        values = np.linalg.svd(matrix, compute_uv=False) / max(1, outputs / inputs) ** 0.5
        assert 0.65 < values.min() and values.max() < 1.25


def reference(c, schedule, params, grads, decays, scales):
    """Run PyTorch's AdamW or SGD, LAMB or Lion per tensor in float64.

    All trees are flat dicts of arrays.
    """
    first = {k: 0.0 for k in params}
    second = {k: 0.0 for k in params}
    for t, grad in enumerate(grads):
        global_norm = np.sqrt(sum(np.sum(g**2) for g in grad.values()))
        for k, g in grad.items():
            if c.clip_by == "tensor":
                g = g * min(c.clip / (np.sqrt(np.sum(g**2)) + 1e-6), 1)
            elif global_norm > c.clip:
                g = g * c.clip / global_norm
            lr = schedule(t) * scales[k]
            decay = c.weight_decay * decays[k]
            p = params[k]
            if c.name == "sgd":
                first[k] = c.momentum * first[k] + g + decay * p
                params[k] = p - lr * first[k]
                continue
            if c.name == "lion":
                update = np.sign(c.b1 * first[k] + (1 - c.b1) * g) + decay * p
                first[k] = c.b2 * first[k] + (1 - c.b2) * g
                params[k] = p - lr * update
                continue
            first[k] = c.b1 * first[k] + (1 - c.b1) * g
            second[k] = c.b2 * second[k] + (1 - c.b2) * g**2
            root = np.sqrt(second[k] / (1 - c.b2 ** (t + 1)))
            update = first[k] / (1 - c.b1 ** (t + 1)) / (root + c.eps) + decay * p
            if c.name == "lamb" and decay:
                update *= np.sqrt(np.sum(p**2) / np.sum(update**2))
            params[k] = p - lr * update
    return params


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion"])
@pytest.mark.parametrize("clip_by", ["tensor", "global"])
def test_stacked_blocks_match_separate_tensors(name, clip_by):
    config = make_config(name=name, clip_by=clip_by, clip=0.7, layer_decay=0.6, lr_batch=4)
    tx, schedule = optim.make(config, 1)
    assert schedule(2) == pytest.approx(1e-4 + (0.02 - 1e-4) * 0.75)
    rng = np.random.default_rng(0)
    params = tree(lambda _, shape: rng.normal(size=shape))
    # Gradients of different magnitude per block, so that clipping them jointly would fail.
    magnitudes = np.array([0.05, 2.0])
    grads = []
    for _ in range(5):
        grads.append(tree(lambda _, shape: rng.normal(size=shape)))
        grads[-1]["blocks"] = jax.tree.map(
            lambda g: g * magnitudes.reshape(-1, *[1] * (g.ndim - 1)), grads[-1]["blocks"]
        )
    decays = {}
    scales = {}
    for path in SHAPES:
        for i in range(DEPTH) if path.startswith("blocks") else [None]:
            decays[path, i] = path.endswith("kernel")
            embedding = path.split("/")[0] in optim.EMBEDDINGS
            scales[path, i] = 0.6 ** (3 - (0 if embedding else 3 if i is None else i + 1))

    def separate(nested):
        flat = flatten_by_path(nested)
        return {(k, i): np.asarray(flat[k] if i is None else flat[k][i]) for k, i in decays}

    with np.errstate(all="raise"):
        expected = reference(
            config.optim, schedule, separate(params), [separate(g) for g in grads], decays, scales
        )
    params = jax.tree.map(lambda p: np.float32(p), params)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(jax.tree.map(np.float32, g), state, params)
        params = jax.tree.map(np.add, params, updates)
    for key, actual in separate(params).items():
        np.testing.assert_allclose(actual, expected[key], rtol=2e-5, atol=2e-6, err_msg=str(key))


def test_durations_in_steps_and_epochs():
    config = make_config(warmup="2ep", warmup_start=0.0, warmup_prefix=True)
    config.total_steps = "10ep"
    _, schedule = optim.make(config, 12.5)
    assert np.argmax(schedule(np.arange(126))) == 25 and schedule(125) == pytest.approx(1e-4)
    # A run shorter than the warmup ends before the peak.
    config.total_steps = "10"
    for config.optim.warmup_prefix in (False, True):
        _, schedule = optim.make(config, 12.5)
        assert [schedule(t) for t in range(10)] == pytest.approx([1e-2 * t / 25 for t in range(10)])


@pytest.mark.parametrize(
    ("arg", "case"),
    [
        ("S", "S_800ep_4e3"),
        ("B", "BLH_800ep_3e3"),
        ("B,224", "finetune_20ep_1e5"),
        ("B,21k", "in21k_240ep_1e3"),
        ("H,21k", "in21k_H_90ep_1e3"),
        ("B,21k_1k", "in21k_to_1k_50ep_3e4"),
    ],
)
def test_schedules_match_deit3(arg, case):
    golden = np.load(GOLDEN / "deit3/schedule.npz")
    _, schedule = optim.make(deit3.get_config(arg), 625)
    epochs = golden[f"{case}/epoch"].astype(int)
    assert epochs[-1] + 1 == golden[f"{case}/epochs"]
    for offset in (0, 624):
        np.testing.assert_allclose(schedule(epochs * 625 + offset), golden[case], rtol=1e-9)


@pytest.mark.parametrize("batch", [1024, 4096])
def test_schedule_matches_deit(batch):
    """The learning rate is constant within an epoch, and one epoch late."""
    c = defaults()
    c.batch_size = batch
    c.total_steps = "300ep"
    c.optim.lr = 5e-4
    c.optim.lr_batch = 512
    c.optim.warmup = "5ep"
    c.optim.warmup_start = 1e-6
    c.optim.end = 1e-5
    c.optim.schedule_by = "epoch"
    steps_per_epoch = 1251
    _, schedule = optim.make(c, steps_per_epoch)
    first_steps = np.arange(300) * steps_per_epoch
    expected = np.load(GOLDEN / "schedule/lr.npz")[f"deit_300ep_b{batch}_used_in_epoch"]
    for offset in (0, steps_per_epoch // 2, steps_per_epoch - 1):
        np.testing.assert_allclose(schedule(first_steps + offset), expected, rtol=1e-9)
    traced = jax.jit(schedule)(jax.numpy.asarray(first_steps))
    np.testing.assert_allclose(traced, expected, rtol=1e-5)
