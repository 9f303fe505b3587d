"""Tests of what is known, assumed and refused when weights are loaded for inference."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests import GOLDEN, command
from vit_jax import inference
from vit_jax.errors import UserError
from vit_jax.tools import features, model_flags, predict
from vit_jax.workdir import storage

WEIGHTS = GOLDEN / "vit/vit_cls/state_dict.safetensors"
SIZES = "num_heads=3,width=48,depth=2,patch=4"
IMAGENET = "mean 0.485,0.456,0.406, std 0.229,0.224,0.225, crop 0.9"
HALF = "mean 0.5,0.5,0.5, std 0.5,0.5,0.5, crop 0.9"


def flags(**values):
    """Return parsed flags with these values."""
    unset = dict.fromkeys(("model", "class_names", "workdir", "mean", "std", "crop"))
    return SimpleNamespace(
        **unset | dict(weights=str(WEIGHTS), checkpoint="best", raw=False) | values
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"model": "num_heads=3"},
            f" (assumed pre-norm, GELU (erf), {HALF}; set with --model, --mean, --std, --crop)",
        ),
        (
            {"model": "num_heads=3,norm=post,act=gelu_tanh"},
            f" (assumed {HALF}; set with --mean, --std, --crop)",
        ),
        (
            {"model": "num_heads=3", "mean": ["0"], "std": ["1"], "crop": 1.0},
            " (mean 0,0,0, std 1,1,1, crop 1; assumed pre-norm, GELU (erf); set with --model, "
            "--mean, --std, --crop)",
        ),
        (
            {"model": f"vit_tiny_patch16_224.dino,{SIZES}"},
            f" ({IMAGENET}; image size 32 as in the file, not 224; set with --mean, --std, --crop)",
        ),
    ],
)
def test_tools_say_what_is_assumed(values, expected):
    (model,) = model_flags.load(flags(**values))
    assert model_flags.preprocessing(model) == expected


def test_features_says_which_model_is_assumed(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((1, 32, 32, 3), np.float32))
    args = [f"--weights={WEIGHTS}", f"--input={tmp_path / 'x.npy'}"]
    args += ["--model=num_heads=3", f"--output={tmp_path / 'x.npz'}"]
    assert command.run(features, *args) == 0
    expected = f"{WEIGHTS.name}, num_heads=3 (assumed pre-norm, GELU (erf); set with --model)"
    assert capsys.readouterr().out.splitlines()[0] == expected


def test_config_json_next_to_the_file_is_used(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(WEIGHTS.read_bytes())
    args = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4}
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}
    cfg["label_names"] = list("abcdefghij")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": args, "pretrained_cfg": cfg}
    storage.write_json(tmp_path / "config.json", config)
    model = inference.load(file)
    assert (model.mean, model.std, model.crop) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8)
    assert model.class_names == list("abcdefghij") and model.num_heads == 3 and not model.assumed
    assert inference.load(file, class_names=list("klmnopqrst")).class_names[0] == "k"
    cfg["label_names"].pop()
    storage.write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError, match="got 9 class names for 10 classes"):
        inference.load(file)


def test_images_of_four_channels_are_refused(tmp_path, capsys):
    tensors = load_file(WEIGHTS)
    kernel = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = np.concatenate([kernel, kernel[:, :1]], axis=1)
    file = tmp_path / "four.safetensors"
    save_file(tensors, file)
    Image.fromarray(np.zeros((40, 40, 4), np.uint8)).save(tmp_path / "x.png")
    args = [f"--weights={file}", "--model=num_heads=3", tmp_path / "x.png"]
    assert command.run(predict, *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the weights expect 4 channels, but images are decoded to 1 or 3" in line
    model = inference.load(file, "num_heads=3")
    with pytest.raises(UserError, match="the weights expect 4 channels"):
        model.view(np.zeros((40, 40, 4), np.uint8))
    assert model.run(np.zeros((1, 32, 32, 4), np.float32))["logits"].shape == (1, 10)


def test_gray_weights_accept_a_color_image(tmp_path, capsys):
    """The image is converted to gray, as Pillow does."""
    tensors = load_file(WEIGHTS)
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"][:, :1].copy()
    file = tmp_path / "gray.safetensors"
    save_file(tensors, file)
    color = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    color.save(tmp_path / "color.png")
    color.convert("L").save(tmp_path / "gray.png")
    args = [f"--weights={file}", "--model=num_heads=3", "--crop=1", "--json"]
    assert command.run(predict, *args, tmp_path / "color.png", tmp_path / "gray.png") == 0
    rows = [json.loads(line)["top"] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == rows[1]


def test_class_names_of_a_run_are_checked(tmp_path, train_digits):
    workdir = train_digits(tmp_path / "run", 2, depth=1, width=16, mlp_dim=32)
    path = workdir / "run.json"
    record = json.loads(path.read_text())

    def load(**changes):
        storage.write_json(path, record | {"data": record["data"] | changes})
        return inference.load(str(workdir)).class_names

    for changes, message in (
        ({"class_names": ["a", "b"]}, "other class names than the checkpoint of step 2"),
        ({"class_names": None}, "run.json has no valid value for 'data.class_names'"),
        ({"class_names": [1]}, "run.json has no valid value for 'data.class_names'"),
    ):
        with pytest.raises(UserError, match=message):
            load(**changes)
    path.write_text("{}")
    with pytest.raises(UserError, match="run.json has no valid value for 'data.num_classes'"):
        inference.load(str(workdir))
