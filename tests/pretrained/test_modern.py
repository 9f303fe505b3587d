"""Weights with registers, SwiGLU, RoPE, a distillation token and the norms of EVA and CLIP.

Each case is the output of a reference implementation for random weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tests
from vit_jax import pretrained, vit
from vit_jax.errors import UserError
from vit_jax.layers.rope import Rope, coordinates

GOLDEN = tests.GOLDEN / "vit"
DINOV3 = GOLDEN / "dinov3_swiglu/state_dict_facebook_layout.safetensors"
INPUTS = np.load(GOLDEN / "timm_tiny/inputs.npz")
# What neither names nor shapes determine.
EVA = dict(rope="axial", rope_temperature=1e4, rope_grid=2)
TIMM = {
    "eva02": EVA,
    "rope_axial": dict(rope="axial", rope_order="xy", pos_embed="none", pool="cls"),
    "rope_mixed_ape": dict(rope_order="xy", pool="cls"),
    "clip": dict(act="quick_gelu", norm_eps=1e-5, pool="cls"),
    "qk_norm_reg": {},
    "distilled": {},
}
DETERMINED = {
    "eva02": dict(mlp="swiglu", mlp_dim=42, mlp_norm=True, attn_norm=True, k_bias=False),
    "rope_mixed_ape": dict(rope="mixed", no_embed_class=True, layer_scale_init=1.0),
    "clip": dict(embed_norm=True, patch_bias=False),
    "qk_norm_reg": dict(qk_norm=True, reg_tokens=3, embed_reg=True, pool="map", class_token=False),
    "distilled": dict(dist_token=True, pool="cls", no_embed_class=False),
}


def compute(model, images, **options):
    """Apply a model to images in the layout of PyTorch, [b, c, h, w]."""
    apply, params = vit.functional(model)
    compiled = jax.jit(lambda params, x: apply(params, x, **options))
    return compiled(params, jnp.asarray(images.transpose(0, 2, 3, 1)))


def assert_close(actual, expected, atol=1e-5):
    """Compare with an absolute tolerance for values of order 1."""
    scale = max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol * scale)


def weights(name, tmp_path):
    """Write the weights of a case as a safetensors file; return the path and the outputs."""
    arrays = dict(np.load(GOLDEN / f"timm_tiny/{name}.npz"))
    path = tmp_path / f"{name}.safetensors"
    params = {key.removeprefix("params/"): x for key, x in arrays.items() if "params/" in key}
    save_file(params, path)
    return path, arrays


@pytest.mark.parametrize("name", TIMM)
def test_outputs_match_timm(name, tmp_path):
    path, expected = weights(name, tmp_path)
    options = dict(num_heads=2, norm="pre") | TIMM[name]
    model = pretrained.load(path, **{"act": "gelu"} | options)
    for key, value in DETERMINED.get(name, {}).items():
        assert getattr(model.config, key) == value, key
    out = compute(model, INPUTS["input_nchw"], blocks=True)
    assert_close(out["logits"], expected["logits"])
    assert_close(out["blocks"], expected["block_out"])
    if "logits2" in expected:  # 24 x 12 pixels
        assert_close(compute(model, INPUTS["input2_nchw"])["logits"], expected["logits2"])


def test_both_heads_match_timm(tmp_path):
    path, expected = weights("distilled", tmp_path)
    model = pretrained.load(path, num_heads=2, norm="pre", act="gelu")
    out = compute(model, INPUTS["input_nchw"], train=True, rng=jax.random.key(0))
    assert_close(out["logits"], expected["logits_cls"])
    assert_close(out["logits_dist"], expected["logits_dist"])


def test_outputs_match_dinov2(tmp_path):
    """84 x 70 pixels, where positions are resized; also in chunks of blocks, as for training."""
    folder = GOLDEN / "dinov2_reg4"
    path = folder / "state_dict.safetensors"
    chunked = {}
    for name, x in load_file(path).items():
        chunked[name.replace("blocks.", "blocks.0.") if "blocks.0" in name else name] = x
    chunked = {k.replace("blocks.1.", "blocks.1.1."): x for k, x in chunked.items()}
    save_file(chunked, tmp_path / "chunked.safetensors")
    for file in (path, tmp_path / "chunked.safetensors"):
        model = pretrained.load(file, num_heads=3)
        c = model.config
        assert (c.reg_tokens, c.prefix, c.pos_resize, c.image) == (4, 5, "timm", 56)
        out = compute(model, np.load(folder / "input_big_nchw.npy"), blocks=True)
        outputs = {
            "x_prenorm": out["blocks"][-1],
            "x_norm_clstoken": out["pooled"],
            "x_norm_regtokens": out["tokens"][:, 1:5],
            "x_norm_patchtokens": out["tokens"][:, 5:],
        }
        for name, array in outputs.items():
            assert_close(array, np.load(folder / f"{name}_big.npy"))


@pytest.fixture(scope="module")
def dinov3():
    return pretrained.load(
        GOLDEN / "dinov3_swiglu/state_dict_facebook_layout.safetensors", num_heads=3
    )


def test_outputs_match_dinov3(dinov3):
    """The file has values in place of the biases of keys, which a mask of the reference zeroes."""
    folder = GOLDEN / "dinov3_swiglu"
    out = compute(dinov3, np.load(folder / "input_nchw.npy"), attention=True, blocks=True)
    assert_close(out["blocks"], np.load(folder / "block_out.npy"))
    assert_close(out["attention"], np.load(folder / "attn_probs.npy"), atol=2e-6)
    out = compute(dinov3, np.load(folder / "input2_nchw.npy"))  # 40 x 28 pixels
    assert_close(out["tokens"], np.load(folder / "features2.npy"))


def test_rotations_match_dinov3(dinov3):
    c = dinov3.config
    cos, sin = Rope(c, rngs=None)(coordinates(c, (8, 8)))
    table = np.load(GOLDEN / "dinov3_swiglu/rope_embed.npy")  # sin, sin, cos, cos
    ours = np.concatenate([sin, sin, cos, cos], axis=-1)[:, 0]
    np.testing.assert_allclose(ours[c.prefix :], table, atol=1e-6)


def test_packed_swiglu_is_the_same_model(dinov3, tmp_path):
    """DINOv2 has the gate and the values in one layer, w12."""
    packed = load_file(DINOV3)
    for name in [name for name in packed if ".w1." in name]:
        parts = [packed.pop(name), packed.pop(name.replace(".w1.", ".w2."))]
        packed[name.replace(".w1.", ".w12.")] = np.concatenate(parts)
    save_file(packed, tmp_path / "packed.safetensors")
    model = pretrained.load(tmp_path / "packed.safetensors", num_heads=3)
    ours, theirs = (vit.functional(m)[1] for m in (model, dinov3))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_rotary_positions_are_not_guessed(tmp_path):
    path, _ = weights("eva02", tmp_path)
    with pytest.raises(UserError, match="does not determine num_heads, norm, act, rope"):
        pretrained.load(path)
    path, _ = weights("rope_axial", tmp_path)
    with pytest.raises(UserError, match="no position embeddings.*pass pos_embed=none and rope="):
        pretrained.load(path, num_heads=2, norm="pre", act="gelu")


def test_color_weights_load_as_a_model_of_gray_images(tmp_path):
    path, _ = weights("qk_norm_reg", tmp_path)
    options = dict(num_heads=2, norm="pre", act="gelu")
    gray = INPUTS["input_nchw"][:, :1]
    expected = compute(pretrained.load(path, **options), np.repeat(gray, 3, axis=1))["logits"]
    model = pretrained.load(path, channels=1, **options)
    assert model.config.channels == 1
    assert_close(compute(model, gray)["logits"], expected)
