"""Tests of facebookresearch/dino checkpoints: features, attention and projection head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tests
from vit_jax import models, pretrained, vit
from vit_jax.layers import heads
from vit_jax.pretrained import dino

GOLDEN = tests.GOLDEN / "dino"
TEACHER = GOLDEN / "backbone/teacher_unprefixed.safetensors"
NAME = "num_heads=3"  # the file determines the rest


def golden(name):
    return np.load(GOLDEN / f"backbone/{name}.npy")


def images(size):
    return golden(f"input_{size}_nchw").transpose(0, 2, 3, 1)


def compute(model, x, **options):
    apply, params = vit.functional(model)
    return jax.jit(lambda p, x: apply(p, x, **options))(params, jnp.asarray(x))


def assert_close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def test_backbone_matches_reference():
    model = pretrained.load(TEACHER, NAME, scan="on")
    c = model.config
    assert (c.num_classes, c.pool, c.image, c.patch) == (0, "cls", 32, 4)
    out = compute(model, images("global"), attention=True, blocks=True)
    assert_close(out["pooled"], golden("cls_global"))
    assert_close(out["attention"][-1], golden("last_selfattention"), atol=2e-6)
    assert_close(model.norm(out["blocks"][-4:]), golden("intermediate_last4"))
    assert_close(out["tokens"], golden("intermediate_last4")[-1])


def test_local_crops_match_reference(tmp_path):
    """Local crops have a quarter of the patches, so position embeddings are resized as in DINO."""
    tensors = load_file(TEACHER)
    path = tmp_path / "w.safetensors"
    layouts = [({f"module.{k}": v for k, v in tensors.items()}, {})]
    layouts += [(dino.strip_prefix(tensors, "backbone."), {"pos_resize": "dino"})]
    for layout, options in layouts:
        save_file(layout, path)
        model = pretrained.load(path, num_heads=3, scan="on", **options)
        assert_close(compute(model, images("local"))["pooled"], golden("cls_local"))
    # Resizing as in timm gives different features.
    timm_pooled = compute(pretrained.load(path, NAME, scan="on"), images("local"))["pooled"]
    assert np.abs(timm_pooled - golden("cls_local")).max() > 1e-3


def apply_head(params):
    """Return the DinoHead with these parameters as a function of features."""
    width, hidden = params["fc1"]["kernel"].shape
    bottleneck, out = params["last_layer"]["kernel"].shape
    fixed = "scale" not in params["last_layer"]
    sizes = dict(hidden_dim=hidden, bottleneck_dim=bottleneck, out_dim=out, norm_last_layer=fixed)
    sizes |= dict(num_layers=sum("fc" in name for name in params), batch_norm="norm1" in params)
    model = models.pure(lambda rngs: heads.DinoHead(width, **sizes, dtype=jnp.float32, rngs=rngs))
    return jax.jit(lambda x: model.apply(params, x))


def test_multi_crop_head_matches_reference():
    model = pretrained.load(TEACHER, NAME, scan="on")
    large, small = images("global"), images("local")
    groups = [[large, large[:, :, ::-1]], [small, small[:, :, ::-1], 0.5 * small]]
    groups = [jnp.stack(group, axis=1) for group in groups]  # b v h w c
    features = jax.jit(model.views)(groups).swapaxes(0, 1).reshape(10, -1)
    params = dino.head_params(pretrained.read(TEACHER))
    assert params["last_layer"]["kernel"].shape == (16, 64)
    assert_close(apply_head(params)(features), golden("multicrop_head_out"))


@pytest.mark.parametrize(
    "case", ["norm_last", "free_last", "bn", "bn_two_layers", "one_layer", "four_layers"]
)
def test_head_state_dict_matches_reference(case):
    tensors = load_file(GOLDEN / f"head/{case}/state_dict.safetensors")
    params = dino.head_params(tensors)
    assert ("scale" in params["last_layer"]) == (case in ("free_last", "bn", "four_layers"))
    x = np.load(GOLDEN / f"head/{case}/input.npy")
    assert_close(apply_head(params)(x), np.load(GOLDEN / f"head/{case}/output.npy"))


def test_invalid_heads_are_rejected():
    tensors = load_file(GOLDEN / "head/free_last/state_dict.safetensors")
    with pytest.raises(ValueError, match="norms of the prototypes are not 1"):
        dino.head_params(tensors, norm_last_layer=True)
    ones = tensors | {"last_layer.weight_g": np.ones((200, 1), np.float32)}
    assert "scale" not in dino.head_params(ones)["last_layer"]
    assert dino.head_params(ones, norm_last_layer=False)["last_layer"]["scale"].shape == (1, 200)
    with pytest.raises(ValueError, match=r"unexpected tensor 'mlp.1.running_mean'"):
        dino.head_params(tensors | {"mlp.1.running_mean": tensors["mlp.0.bias"]})
    for name, change in (
        ("mlp.0.weight", lambda x: x.reshape(x.shape[1], -1)),
        ("mlp.4.weight", np.transpose),
        ("mlp.2.bias", lambda x: x[None]),
        ("last_layer.weight_v", np.transpose),
        ("last_layer.weight_g", np.transpose),
    ):
        with pytest.raises(ValueError, match=r"shape .*, which does not match"):
            dino.head_params(tensors | {name: change(tensors[name])})
    bn = load_file(GOLDEN / "head/bn/state_dict.safetensors")
    with pytest.raises(ValueError, match=r"'mlp.1.weight' has shape .* expected"):
        dino.head_params(bn | {"mlp.1.weight": bn["mlp.1.weight"][:-1]})
    with pytest.raises(ValueError, match=r"missing tensor 'mlp.4.bias'"):
        dino.head_params({k: v for k, v in bn.items() if k != "mlp.4.bias"})
    with pytest.raises(ValueError, match=r"missing tensor 'mlp.0.bias'"):
        dino.head_params({k: v for k, v in tensors.items() if k != "mlp.0.bias"})
