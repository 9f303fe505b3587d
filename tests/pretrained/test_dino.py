"""DINO's training checkpoints give DINO's numbers: features, attention, projections."""

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
NAME = "vit_tiny_patch16_224"  # its 3 heads; the file tells the rest


def golden(name):
    return np.load(GOLDEN / f"backbone/{name}.npy")


def images(size):
    return golden(f"input_{size}_nchw").transpose(0, 2, 3, 1)


def compute(model, x, **options):
    apply, params = vit.functional(model)
    return jax.jit(lambda p, x: apply(p, x, **options))(params, jnp.asarray(x))


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def test_the_backbone():
    model = pretrained.load(TEACHER, NAME, scan="on")
    c = model.config
    assert (c.num_classes, c.pool, c.image, c.patch) == (0, "cls", 32, 4)
    out = compute(model, images("global"), attention=True, blocks=True)
    close(out["pooled"], golden("cls_global"))
    close(out["attention"][-1], golden("last_selfattention"), atol=2e-6)
    close(model.norm(out["blocks"][-4:]), golden("intermediate_last4"))
    close(out["tokens"], golden("intermediate_last4")[-1])


def test_small_crops_of_the_student_and_of_a_bare_backbone(tmp_path):
    """A quarter of the patches: positions are resized by DINO's rule."""
    tensors, path = load_file(TEACHER), tmp_path / "w.safetensors"
    forms = [({f"module.{k}": v for k, v in tensors.items()}, {})]
    forms += [(dino.part(tensors, "backbone."), {"pos_resize": "dino"})]
    for form, options in forms:
        save_file(form, path)
        model = pretrained.load(path, "S/16", num_heads=3, scan="on", **options)
        close(compute(model, images("local"))["pooled"], golden("cls_local"))
    timms = compute(pretrained.load(path, NAME, scan="on"), images("local"))["pooled"]
    assert np.abs(timms - golden("cls_local")).max() > 1e-3


def head_of(params):
    """DinoHead with these parameters, from features to logits."""
    width, hidden = params["fc1"]["kernel"].shape
    bottleneck, out = params["last_layer"]["kernel"].shape
    fixed = "scale" not in params["last_layer"]
    sizes = dict(hidden_dim=hidden, bottleneck_dim=bottleneck, out_dim=out, norm_last_layer=fixed)
    model = models.pure(lambda rngs: heads.DinoHead(width, **sizes, dtype=jnp.float32, rngs=rngs))
    return jax.jit(lambda x: model.apply(params, x))


def test_the_head_on_several_crops():
    model = pretrained.load(TEACHER, NAME, scan="on")
    large, small = images("global"), images("local")
    groups = [[large, large[:, :, ::-1]], [small, small[:, :, ::-1], 0.5 * small]]
    groups = [jnp.stack(group, axis=1) for group in groups]  # b v h w c
    features = jax.jit(model.views)(groups).swapaxes(0, 1).reshape(10, -1)
    params = dino.head_params(pretrained.read(TEACHER))
    assert params["last_layer"]["kernel"].shape == (16, 64)
    close(head_of(params)(features), golden("multicrop_head_out"))


@pytest.mark.parametrize("case", ["norm_last", "free_last"])
def test_a_head_alone(case):
    tensors = load_file(GOLDEN / f"head/{case}/state_dict.safetensors")
    params = dino.head_params(tensors)
    assert ("scale" in params["last_layer"]) == (case == "free_last")
    x = np.load(GOLDEN / f"head/{case}/input.npy")
    close(head_of(params)(x), np.load(GOLDEN / f"head/{case}/output.npy"))


def test_a_head_that_does_not_fit_is_named():
    tensors = load_file(GOLDEN / "head/free_last/state_dict.safetensors")
    with pytest.raises(ValueError, match="norms are not 1"):
        dino.head_params(tensors, norm_last_layer=True)
    ones = tensors | {"last_layer.weight_g": np.ones((200, 1), np.float32)}
    assert "scale" not in dino.head_params(ones)["last_layer"]
    assert dino.head_params(ones, norm_last_layer=False)["last_layer"]["scale"].shape == (200,)
    with pytest.raises(ValueError, match=r"unexpected tensor 'mlp.1.running_mean'"):
        dino.head_params(tensors | {"mlp.1.running_mean": tensors["mlp.0.bias"]})
    with pytest.raises(ValueError, match=r"missing tensor 'mlp.0.bias'"):
        dino.head_params({k: v for k, v in tensors.items() if k != "mlp.0.bias"})
