"""Schedules, parameter groups and optimizer steps against reference implementations."""

import json
import re

import jax
import numpy as np
import pytest

from tests import GOLDEN
from vit_jax import optim
from vit_jax.config import defaults
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


def reference(c, schedule, params, grads, decays, scales):
    """Run PyTorch's AdamW or SGD per tensor in float64; all trees are flat dicts of arrays."""
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
            first[k] = c.b1 * first[k] + (1 - c.b1) * g
            second[k] = c.b2 * second[k] + (1 - c.b2) * g**2
            root = np.sqrt(second[k] / (1 - c.b2 ** (t + 1)))
            p = p - lr * decay * p
            params[k] = p - lr * first[k] / (1 - c.b1 ** (t + 1)) / (root + c.eps)
    return params


@pytest.mark.parametrize("name", ["adamw", "sgd"])
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
