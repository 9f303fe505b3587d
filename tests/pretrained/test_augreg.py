"""Tests of the Flax layouts of AugReg and big_vision, against outputs of their own models."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import tests
from vit_jax import pretrained
from vit_jax.errors import UserError

GOLDEN = tests.GOLDEN / "vit"
TOKEN = "augreg_token_rep"
SINCOS = "bv_gap_sincos_rep"
FILES = {TOKEN: "params_published_layout.npz", SINCOS: "params.npz", "bv_map_learn": "params.npz"}
# Published name of a module in a block -> the name that Flax gives it now.
LINEN = {
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
}


def golden(case, name):
    return np.load(GOLDEN / case / f"{name}.npy")


def tensors(case):
    return dict(np.load(GOLDEN / case / FILES[case]))


def linen(arrays):
    """Rename published tensors as in new files."""
    for old, new in LINEN.items():
        arrays = {name.replace(old, new): x for name, x in arrays.items()}
    return arrays


def stacked(arrays):
    """Stack the blocks, as a scanned model does."""
    result, blocks = {}, {}
    for name, x in sorted(arrays.items()):
        if "encoderblock_" in name:
            blocks.setdefault(re.sub(r"encoderblock_\d+", "encoderblock", name), []).append(x)
        else:
            result[name] = x
    return result | {name: np.stack(layers) for name, layers in blocks.items()}


def optimizer_state(arrays):
    """Add the state of an optimizer and a counter, as in a training checkpoint."""
    further = {f"opt/0/mu/{name}": x + 1 for name, x in arrays.items()}
    return (
        {f"params/{name}": x for name, x in arrays.items()} | further | {"opt/count": np.array(3)}
    )


def check(model, case):
    """Compare the outputs of a model with the golden ones."""
    out = model(jnp.asarray(golden(case, "input_nhwc")), blocks=True)
    tokens = "encoder_norm" if case.startswith("augreg") else "encoded"
    for ours, theirs in (("blocks", "block_out"), ("tokens", tokens), ("logits", "logits")):
        np.testing.assert_allclose(out[ours], golden(case, theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FILES)
def test_outputs_match_the_reference(case):
    """The file determines everything, the number of heads and the kind of GELU included."""
    model = pretrained.load(GOLDEN / case / FILES[case])
    c = model.config
    meta = json.loads((GOLDEN / case / "meta.json").read_text())["config"]
    assert (c.num_heads, c.depth, c.patch) == (meta["heads"], meta["layers"], meta["patch"])
    assert (c.act, c.norm, c.pos_embed) == (
        "gelu_tanh",
        "pre",
        "sincos2d" if meta.get("posemb") == "sincos2d" else "learned",
    )
    check(model, case)


@pytest.mark.parametrize("change", [linen, stacked, optimizer_state])
def test_forms_of_a_file_give_the_same_model(change, tmp_path):
    np.savez(tmp_path / "w.npz", **change(tensors(TOKEN)))
    check(pretrained.load(tmp_path / "w.npz"), TOKEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {k: x for k, x in t.items() if "1/key/bias" not in k},
            "missing tensor 'Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/bias'",
        ),
        (lambda t: t | {"extra/kernel2": t["cls"]}, None),
        (lambda t: t | {"Extra_0/bias": t["head/bias"]}, "unexpected tensor 'Extra_0/bias'"),
        (
            lambda t: t | {"pos_embedding": t["cls"]},
            "'pos_embedding' is there twice|tensor 'Transformer/posembed.* is there twice",
        ),
        (
            lambda t: t | {"Transformer/encoderblock/x": np.zeros((1001, 1), np.float32)},
            "has 1,001 blocks",
        ),
        (lambda t: t | {"embedding/kernel": t["cls"]}, "shapes do not match a ViT"),
    ],
)
def test_mismatched_tensors_are_named(change, message, tmp_path):
    np.savez(tmp_path / "w.npz", **change(tensors(TOKEN)))
    if message is None:
        check(pretrained.load(tmp_path / "w.npz"), TOKEN)
        return
    with pytest.raises(UserError, match=message):
        pretrained.load(tmp_path / "w.npz")


def test_a_name_that_contradicts_the_heads_is_refused():
    file = GOLDEN / TOKEN / FILES[TOKEN]
    with pytest.raises(UserError, match="num_heads = 3, but num_heads = 4 was passed"):
        pretrained.describe(file, "num_heads=4")
    with pytest.raises(UserError, match="act = gelu_tanh, but act = gelu was passed"):
        pretrained.describe(file, "act=gelu")
