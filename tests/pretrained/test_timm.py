"""Other projects' weights give other projects' numbers, or a plain word about what is wrong."""

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
NAME = "vit_tiny_patch16_224"  # its 3 heads; the file tells the rest
MODELS = ["vit_cls", "vit_gap_fcnorm", "vit_gap_nocls"]
# Absolute, float32: the reference itself is 0.4e-6 to 4e-6 off its float64 self.
OUTPUTS = {  # ours: timm's, tolerance
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
def test_timms_weights_give_timms_numbers(name):
    model = pretrained.load(weights(name), NAME)
    out = compute(model, images(name), attention=True, blocks=True)
    expected = {"tokens": (golden(name, "features"), 1e-5)}
    if model.norm is None:  # timm's "features" come after a norm, where it has one there
        expected = {"tokens": (golden(name, "block_out")[-1], 1e-5)}
    expected |= {ours: (golden(name, theirs), atol) for ours, (theirs, atol) in OUTPUTS.items()}
    if name == "vit_cls":  # of the others, whose blocks are the same, the maps are not kept here
        expected["attention"] = (golden(name, "attn_probs"), 2e-6)
    else:
        np.testing.assert_allclose(out.pop("attention").sum(-1), 1, rtol=1e-6)
    assert set(out) == set(expected)
    for key, (value, atol) in expected.items():
        np.testing.assert_allclose(out[key], value, rtol=1e-5, atol=atol, err_msg=key)


@pytest.mark.parametrize("layout", ["deit3", "timm"])
def test_deit3s_weights_give_deit3s_numbers(layout, tmp_path):
    """LayerScale, and positions for the patches alone; timm has other names for the gains."""
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
    found = {"block_out": out["blocks"], "features": out["tokens"], "logits": out["logits"]}
    found["tokens_in"] = model.embed(jnp.asarray(x))
    for name, array in found.items():
        expected = np.load(folder / f"{name}.npy")
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("module", "attribute", "value"),
    [(None, "", 0), ("norm1", "eps", 1e-5), ("mlp", "act", "gelu_tanh")],
)
def test_eps_and_gelu_are_told_apart(module, attribute, value):
    """Against float64, because eps 1e-5 in place of 1e-6 moves the logits by 2e-5 only."""
    model = pretrained.load(weights("vit_cls"), NAME)
    if module:
        setattr(getattr(model.blocks, module), attribute, value)
    difference = compute(model, images("vit_cls"))["logits"] - golden("vit_cls", "logits_f64")
    assert (np.abs(difference).max() < 3e-6) == (module is None)


def test_what_the_file_tells_overrules_the_name():
    named = pretrained.load(
        weights("vit_cls"), f"{NAME},depth=2,width=48,num_heads=3,patch=4,image=32"
    )
    plain = pretrained.load(weights("vit_cls"), "L/16", num_heads=3)
    for model in (named, plain):
        c = model.config
        assert (c.image, c.patch, c.num_classes) == (32, 4, 10)
    logits = [compute(model, images("vit_cls"))["logits"] for model in (named, plain)]
    np.testing.assert_array_equal(*logits)


def without(key):
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("norm.bias"), "missing tensor 'norm.bias'"),
        (without("blocks.1.mlp.fc2.weight"), "missing tensor 'blocks.1.mlp.fc2.weight'"),
        (without("blocks.0.mlp.fc1.weight"), "missing tensor 'blocks.0.mlp.fc1.weight'"),
        (without("patch_embed.proj.weight"), "no known layout"),
        (
            lambda t: t | {"head_dist.bias": t["head.bias"]},
            "unexpected tensor 'head_dist.bias'",
        ),
        (lambda t: t | {"norm.bias": t["head.bias"]}, r"'norm.bias' has shape \[10\]"),
        (lambda t: t | {"patch_embed.proj.weight": t["norm.bias"]}, "shapes of a ViT"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(change(load_file(weights("vit_cls"))), path)
    with pytest.raises(ValueError, match=message):
        pretrained.load(path, NAME)


def test_a_file_that_is_no_weights_is_named(tmp_path):
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
        with pytest.raises(ValueError, match=r"no safetensors file, or it was cut off"):
            pretrained.load(path, NAME)
    with pytest.raises(ValueError, match="no weights at"):
        pretrained.load(tmp_path / "none.safetensors", NAME)
    with pytest.raises(ValueError, match="name the model"):
        pretrained.load(weights("vit_cls"))


def features(*words):
    command = [sys.executable, "-m", "vit_jax.tools.features", f"--model={NAME}", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_features_command(tmp_path):
    x, out = np.concatenate([images("vit_cls")] * 3)[:5], tmp_path / "out.npz"
    np.save(tmp_path / "x.npy", x)
    words = [f"--weights={weights('vit_cls')}", f"--output={out}", "--batch_size=2"]
    done = features(*words, f"--input={tmp_path / 'x.npy'}", "--attention", "--blocks")
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
    done = features(*words, f"--input={tmp_path / 'x.npy'}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "channels first: transpose them by (0, 2, 3, 1)" in done.stderr
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "x.npy"]


def test_meta_says_what_the_golden_models_are():
    for name in MODELS:
        config = json.loads((GOLDEN / name / "meta.json").read_text())["config"]
        c = pretrained.load(weights(name), NAME).config
        assert (c.width, c.patch) == (config["embed_dim"], config["patch_size"])
        assert c.pool == ("gap" if config.get("global_pool") == "avg" else "cls")
        assert c.prefix == config.get("class_token", True)


def test_a_run_begins_with_the_weights_of_another(tmp_path):
    """Fine-tuning: another image size, other classes; the copies in `extra` begin there too."""
    one = jax.devices()[:1]
    c = tiny(deit.get_config("Ti"))
    train.claim(tmp_path, c)
    train.train(c, tmp_path, devices=one)
    source = vit.functional(pretrained.load(tmp_path))[1]
    c.model_init, c.model.image, c.data.synthetic.classes = str(tmp_path), 48, 7
    c.objective.ema, lines = 0.9, []
    state = Run(c, one).init(lines.append)
    assert lines == [f"beginning with the weights of {tmp_path}; new: head"]
    jax.tree.map(np.testing.assert_array_equal, state.params, state.extra["ema"])
    table = resize_positions(source.pop("pos_embed"), (2, 2), (3, 3), 1)
    np.testing.assert_allclose(state.params["pos_embed"], table, atol=1e-6)
    assert state.params["head"]["bias"].shape == (7,) and source.pop("head")
    for name, part in source.items():
        jax.tree.map(np.testing.assert_array_equal, part, state.params[name])
    c.model.width = 64
    with pytest.raises(UserError, match=r"does not fit config.model: blocks/attn/proj/bias has"):
        Run(c, one).init()
