"""Tests of wrappers around tensor names, and of files with several sets of weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tests
from vit_jax import pretrained
from vit_jax.errors import UserError
from vit_jax.pretrained import _names

GOLDEN = tests.GOLDEN / "vit/vit_cls"
NAME = "num_heads=3,norm=pre,act=gelu"


def wrapped(prefix, tensors=None, scale=1.0):
    tensors = tensors or load_file(GOLDEN / "state_dict.safetensors")
    return {prefix + name: scale * x for name, x in tensors.items()}


def logits(spec):
    images = np.load(GOLDEN / "input_nchw.npy").transpose(0, 2, 3, 1)
    return pretrained.load(spec, NAME)(jnp.asarray(images))["logits"]


def write(path, tensors):
    if path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        save_file(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "state_dict.", "model_ema.", "teacher.", "student."),
        *("backbone.", "encoder.", "module._orig_mod.model.", "state_dict.model.backbone."),
        *("teacher.module.backbone.", "student._orig_mod.encoder.module.", "params/"),
    ],
)
def test_wrappers_are_removed_in_any_order(prefix, suffix, tmp_path):
    path = write(tmp_path / f"w{suffix}", wrapped(prefix))
    assert pretrained.describe(path, NAME).num_classes == 10
    names, note = _names.unwrap(pretrained.read(path))
    assert names.keys() == load_file(GOLDEN / "state_dict.safetensors").keys() and not note


def test_a_wrapped_file_has_the_logits_of_the_bare_one(tmp_path):
    tensors = load_file(GOLDEN / "state_dict.safetensors")
    # As in Lightning: the classifier is beside the backbone.
    head = {f"state_dict.model.{k}": x for k, x in tensors.items() if k.startswith("head")}
    body = {k: x for k, x in tensors.items() if not k.startswith("head")}
    file = head | wrapped("state_dict.model.backbone.", body) | {"optimizer.0.mu": np.ones(3)}
    path = write(tmp_path / "w.safetensors", file)
    np.testing.assert_allclose(logits(path), np.load(GOLDEN / "logits.npy"), rtol=1e-5, atol=1e-5)


def test_one_of_several_sets_is_chosen(tmp_path):
    path = tmp_path / "w.safetensors"
    expected = np.load(GOLDEN / "logits.npy")
    write(path, wrapped("teacher.backbone.") | wrapped("student.module.backbone.", scale=0.5))
    np.testing.assert_allclose(logits(path), expected, rtol=1e-5, atol=1e-5)
    note = "weights of the teacher; for others, append #student"
    assert pretrained.describe(path, NAME).notes == (note,)
    assert not pretrained.describe(f"{path}#student", NAME).notes
    assert np.abs(logits(f"{path}#student") - expected).max() > 0.1
    with pytest.raises(UserError, match="no weights 'ema'; sets of weights: #student, #teacher"):
        pretrained.describe(f"{path}#ema", NAME)

    write(path, wrapped("model.") | wrapped("model_ema.", scale=0.5) | wrapped("optimizer."))
    for read in (pretrained.describe, pretrained.load):
        with pytest.raises(UserError, match="2 sets of weights, .*: #model or #model_ema$"):
            read(path, NAME)
    np.testing.assert_allclose(logits(f"{path}#model"), expected, rtol=1e-5, atol=1e-5)

    write(path, wrapped("") | wrapped("state_dict_ema.", scale=0.5))
    with pytest.raises(UserError, match="#state_dict_ema or #unwrapped$"):
        pretrained.describe(path, NAME)
    np.testing.assert_allclose(logits(f"{path}#unwrapped"), expected, rtol=1e-5, atol=1e-5)

    write(path, wrapped("module.") | wrapped("encoder.", scale=0.5))
    with pytest.raises(UserError, match="'module.blocks.0.*' are both 'blocks.0"):
        pretrained.describe(path, NAME)


def test_a_file_may_have_a_number_sign(tmp_path):
    path = write(tmp_path / "w#1.safetensors", wrapped("module."))
    assert pretrained.describe(path, NAME).num_classes == 10
    with pytest.raises(UserError, match="no file at"):
        pretrained.describe(tmp_path / "x#1.safetensors", NAME)
