"""Tests of vit_jax.tools.export."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from tests import command
from vit_jax import inference, resnet, vit
from vit_jax.errors import UserError
from vit_jax.tools import convert, export

TINY = "mu/8,depth=2,image=32,num_classes=5"
RUN = """
import sys
import jax
import numpy as np
with open(sys.argv[1], "rb") as file:
    model = jax.export.deserialize(file.read())
images = np.load(sys.argv[2])
np.savez(sys.argv[3], one=model.call(images[:1]), all=model.call(images))
sys.exit("vit_jax" in sys.modules or "flax" in sys.modules)
"""


def random_model(spec):
    """Return a `LoadedModel` with random weights, also where the initialization has zeros."""
    create = resnet.create if spec.startswith("resnet") else vit.create
    model = inference.from_module(create(spec), spec)
    rng = np.random.default_rng(0)

    def draw(path, x):
        scale = "var" in jax.tree_util.keystr(path)  # variances are positive
        return np.float32(rng.uniform(0.5, 2, x.shape) if scale else rng.normal(0, 0.2, x.shape))

    return model.replace(params=jax.tree_util.tree_map_with_path(draw, model.params))


def images_of(model, count):
    shape = (count, *model.size, model.channels)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_program_runs_without_the_package(tmp_path, capsys):
    view = dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop=0.875, interpolation="bilinear")
    names = ["a", "b", "c", "d", "e"]
    model = random_model(TINY).replace(class_names=names, **view)
    convert.convert(model, "vit_jax", tmp_path / "model.safetensors")
    output = tmp_path / "model.stablehlo"
    args = (f"--weights={tmp_path / 'model.safetensors'}", f"--output={output}")
    assert command.run(export, *args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output}: {output.stat().st_size:,} bytes"

    stated = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert stated["image_size"] == [32, 32] and stated["class_names"] == names
    assert stated["output"] == "logits" and stated["platforms"] == ["cpu", "cuda", "tpu"]
    assert stated["jax"] == jax.__version__
    assert {key: stated[key] for key in view} == json.loads(json.dumps(view))

    images = images_of(model, 3)
    np.save(tmp_path / "images.npy", images)
    paths = (output, tmp_path / "images.npy", tmp_path / "logits.npz")
    process = subprocess.run(
        [sys.executable, "-c", RUN, *paths], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    logits = np.load(tmp_path / "logits.npz")
    expected = model.run(images)["logits"]
    np.testing.assert_allclose(logits["all"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits["one"], expected[:1], rtol=1e-5, atol=1e-6)

    for wrong, message in (
        (args, "model.stablehlo already exists; remove it or pass another --output"),
        ((args[0], f"--output={tmp_path / 'missing/x'}"), "must be a file in an existing dir"),
        ((args[0], "--output=x", "--platforms=npu"), "--platforms=npu must be any of cpu, cuda,"),
    ):
        assert command.run(export, *wrong) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error


@pytest.mark.parametrize(
    "spec",
    [
        f"{TINY},pool=map,layer_scale_init=0.1,mlp=swiglu",
        f"{TINY},dist_token=True,act=gelu_tanh,qk_norm=True",
        f"{TINY},pool=gap,pos_embed=sincos2d,scan=on",
        f"{TINY},reg_tokens=4,rope=dinov3,pos_embed=none,k_bias=False,num_classes=0",
        f"{TINY},attn=xla,patch_embed=linear,rope=mixed,class_token=True,pool=gap",
        "resnet20,num_classes=7,image=16",
    ],
)
def test_programs_are_portable_and_agree(spec):
    model = random_model(spec)
    exported = jax.export.deserialize(export.export(model, export.PLATFORMS))
    images = images_of(model, 2)
    expected = model.run(images)[export.output_name(model)]
    np.testing.assert_allclose(exported.call(images), expected, rtol=1e-5, atol=1e-6)
    # The only call checks the shape of the images; JAX carries it out.
    calls = re.findall(r"custom_call(?: @|.*call_target_name = \")(\w+)", exported.mlir_module())
    assert set(calls) == {"shape_assertion"}
    assert exported.mlir_module().count("custom_call") == len(calls)


def test_weights_that_are_too_large_are_refused():
    module = nnx.eval_shape(lambda: vit.create("H/14"))  # allocates no weights
    with pytest.raises(UserError, match="the weights have 2,5.* bytes, but a StableHLO file is"):
        export.export(inference.from_module(module, "H/14"), ["cpu"])
