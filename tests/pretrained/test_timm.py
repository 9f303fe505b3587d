"""Tests of loading timm's and DeiT's weights, the features tool and fine-tuning."""

import json
import re
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tests
from configs import deit
from tests import ROOT
from tests.tiny import tiny
from vit_jax import pretrained, train, vit
from vit_jax.errors import UserError
from vit_jax.layers.patch_embed import resize_positions
from vit_jax.run import Run

GOLDEN = tests.GOLDEN / "vit"
NAME = "num_heads=3"  # the file determines the rest
MODELS = ["vit_cls", "vit_gap_fcnorm", "vit_gap_nocls"]
# Absolute tolerances in float32. The reference itself deviates by 0.4e-6 to 4e-6 from float64.
OUTPUTS = {  # our output -> (timm's output, tolerance)
    "logits": ("logits", 1e-5),
    "pooled": ("prelogits", 1e-5),
    "blocks": ("block_out", 1e-5),
}


def golden(model, name):
    return np.load(GOLDEN / model / f"{name}.npy")


def images(model):
    return golden(model, "input_nchw").transpose(0, 2, 3, 1)


def weights(model):
    return GOLDEN / model / "state_dict.safetensors"


def compute(model, x, **options):
    apply, params = vit.functional(model)
    return jax.jit(lambda p, x: apply(p, x, **options))(params, jnp.asarray(x))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_match_timm(name):
    model = pretrained.load(weights(name), NAME)
    out = compute(model, images(name), attention=True, blocks=True)
    expected = {"tokens": (golden(name, "features"), 1e-5)}
    if model.norm is None:  # timm's "features" are taken after the final norm if there is one
        expected = {"tokens": (golden(name, "block_out")[-1], 1e-5)}
    expected |= {ours: (golden(name, theirs), atol) for ours, (theirs, atol) in OUTPUTS.items()}
    if name == "vit_cls":  # the golden files of the other models have no attention weights
        expected["attention"] = (golden(name, "attn_probs"), 2e-6)
    else:
        np.testing.assert_allclose(out.pop("attention").sum(-1), 1, rtol=1e-6)
    assert set(out) == set(expected)
    for key, (value, atol) in expected.items():
        np.testing.assert_allclose(out[key], value, rtol=1e-5, atol=atol, err_msg=key)


@pytest.mark.parametrize("layout", ["deit3", "timm"])
def test_outputs_match_deit3(layout, tmp_path):
    """DeiT III has LayerScale and no position embedding for [CLS]; timm renames the gains."""
    folder = tests.GOLDEN / "deit3/model_layerscale"
    file = folder / "state_dict.safetensors"
    if layout == "timm":
        tensors = {re.sub(r"gamma_(\d)", r"ls\1.gamma", n): x for n, x in load_file(file).items()}
        file = tmp_path / "timm.safetensors"
        save_file(tensors, file)
    model = pretrained.load(file, NAME)
    config = model.config
    assert config.no_embed_class and config.layer_scale_init and config.prefix == 1
    x = np.load(folder / "input_nchw.npy").transpose(0, 2, 3, 1)
    out = compute(model, x, blocks=True)
    outputs = {"block_out": out["blocks"], "features": out["tokens"], "logits": out["logits"]}
    outputs["tokens_in"] = model.embed(jnp.asarray(x))
    for name, array in outputs.items():
        expected = np.load(folder / f"{name}.npy")
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("module", "attribute", "value"),
    [(None, "", 0), ("norm1", "eps", 1e-5), ("mlp", "act", "gelu_tanh")],
)
def test_eps_and_gelu_variant_affect_logits(module, attribute, value):
    """The reference is float64, because changing eps from 1e-6 to 1e-5 moves the logits by 2e-5."""
    model = pretrained.load(weights("vit_cls"), NAME)
    if module:
        setattr(getattr(model.blocks, module), attribute, value)
    difference = compute(model, images("vit_cls"))["logits"] - golden("vit_cls", "logits_f64")
    assert (np.abs(difference).max() < 3e-6) == (module is None)


def test_name_may_repeat_what_the_file_determines():
    name = "vit_tiny_patch16_224,depth=2,width=48,num_heads=3,patch=4,image=32"
    named, plain = (pretrained.load(weights("vit_cls"), x) for x in (name, "num_heads=3"))
    assert named.config == plain.config
    assert (plain.config.image, plain.config.patch, plain.config.num_classes) == (32, 4, 10)


def remove(key):
    """Return a function that removes a tensor."""
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("norm.bias"), "missing tensor 'norm.bias'"),
        (remove("blocks.1.mlp.fc2.weight"), "missing tensor 'blocks.1.mlp.fc2.weight'"),
        (remove("blocks.0.mlp.fc1.weight"), "missing tensor 'blocks.0.mlp.fc1.weight'"),
        (remove("patch_embed.proj.weight"), "unknown weight layout"),
        (
            lambda t: t | {"head_dist.bias": t["head.bias"]},
            "unexpected tensor 'head_dist.bias'; pass other weights",
        ),
        (lambda t: t | {"norm.bias": t["head.bias"]}, r"'norm.bias' has shape \[10\]"),
        (
            lambda t: {k: x for k, x in t.items() if "norm2" not in k} | {"x": t["head.bias"]},
            "4 missing tensors: 'blocks.0.norm2.bias', .*; unexpected tensor 'x'; pass",
        ),
        (lambda t: t | {"patch_embed.proj.weight": t["norm.bias"]}, "shapes do not match a ViT"),
    ],
)
def test_mismatched_tensors_are_rejected(change, message, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(change(load_file(weights("vit_cls"))), path)
    with pytest.raises(ValueError, match=message):
        pretrained.load(path, NAME)


def test_invalid_files_are_rejected(tmp_path):
    data = weights("vit_cls").read_bytes()
    cases = {
        "half": data[: len(data) // 2],
        "header": data[:100],
        "empty": b"",
        "text": b"<html>" * 9,
    }
    cases["bomb"] = struct.pack("<Q", 1 << 60) + b"{}"
    cases["json"] = struct.pack("<Q", 8) + b"notjson!"
    for name, content in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            pretrained.load(path, NAME)
    with pytest.raises(ValueError, match="no file at"):
        pretrained.load(tmp_path / "none.safetensors", NAME)
    with pytest.raises(ValueError, match="does not determine num_heads, norm, act; pass --model=n"):
        pretrained.load(weights("vit_cls"))


def run_features(*args):
    command = [sys.executable, "-m", "vit_jax.tools.features", f"--model={NAME}", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_features_tool_writes_all_outputs(tmp_path):
    x = np.concatenate([images("vit_cls")] * 3)[:5]
    out = tmp_path / "out.npz"
    np.save(tmp_path / "x.npy", x)
    args = [f"--weights={weights('vit_cls')}", f"--output={out}", "--batch_size=2"]
    done = run_features(*args, f"--input={tmp_path / 'x.npy'}", "--attention", "--blocks")
    assert done.returncode == 0, done.stderr
    arrays = np.load(out)
    layers = {f"block_0{i}": golden("vit_cls", "block_out")[i] for i in (0, 1)}
    expected = {"tokens": golden("vit_cls", "features"), "pooled": golden("vit_cls", "prelogits")}
    expected |= {"logits": golden("vit_cls", "logits")} | layers
    assert set(arrays) == {*expected, "attention"}
    for key, value in expected.items():
        assert arrays[key].dtype == np.float32
        np.testing.assert_allclose(arrays[key], value[[0, 1, 0, 1, 0]], rtol=1e-5, atol=1e-5)
    maps = golden("vit_cls", "attn_probs")[:, [0, 1, 0, 1, 0]]
    np.testing.assert_allclose(arrays["attention"], maps, atol=2e-6)

    before = out.read_bytes()
    np.save(tmp_path / "x.npy", x.transpose(0, 3, 1, 2))
    done = run_features(*args, f"--input={tmp_path / 'x.npy'}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "transpose them with axes (0, 2, 3, 1)" in done.stderr
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "x.npy"]


def test_config_matches_golden_metadata():
    for name in MODELS:
        config = json.loads((GOLDEN / name / "meta.json").read_text())["config"]
        c = pretrained.load(weights(name), NAME).config
        assert (c.width, c.patch) == (config["embed_dim"], config["patch_size"])
        assert c.pool == ("gap" if config.get("global_pool") == "avg" else "cls")
        assert c.prefix == config.get("class_token", True)


def test_fine_tuning_starts_from_the_weights_of_a_run(tmp_path):
    """The image size and classes differ; the EMA in `extra` starts from the same weights."""
    devices = jax.devices()[:1]
    c = tiny(deit.get_config("Ti"))
    train.train(c, tmp_path, devices=devices)
    source = vit.functional(pretrained.load(tmp_path))[1]
    c.model_init, c.model.image, c.data.synthetic.classes = str(tmp_path), 48, 7
    c.objective.ema = 0.9
    lines = []
    state = Run(c, devices).init(lines.append)
    assert lines == [f"starting from the weights of {tmp_path}; randomly initialized: head"]
    jax.tree.map(np.testing.assert_array_equal, state.params, state.extra["ema"])
    table = resize_positions(source.pop("pos_embed"), (2, 2), (3, 3), 1)
    np.testing.assert_allclose(state.params["pos_embed"], table, atol=1e-6)
    assert state.params["head"]["bias"].shape == (7,) and source.pop("head")
    for name, part in source.items():
        jax.tree.map(np.testing.assert_array_equal, part, state.params[name])
    c.model.width = 64
    with pytest.raises(UserError, match="has width 32, but config.model has width 64; pass"):
        Run(c, devices).init()
