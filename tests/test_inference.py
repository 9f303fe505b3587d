"""Tests of what is known, assumed and refused when weights are loaded for inference."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests import GOLDEN, command
from vit_jax import inference, pretrained
from vit_jax.errors import UserError
from vit_jax.layers import kernels
from vit_jax.layers.patch_embed import cubic_matrix, resize_positions
from vit_jax.tools import features, model_flags, predict
from vit_jax.workdir import storage

WEIGHTS = GOLDEN / "vit/vit_cls/state_dict.safetensors"
NAME = "num_heads=3"
SIZES = "num_heads=3,width=48,depth=2,patch=4"
IMAGENET = "mean 0.485,0.456,0.406, std 0.229,0.224,0.225"
HALF = "mean 0.5,0.5,0.5, std 0.5,0.5,0.5, crop 0.9"


def flags(**values):
    """Return parsed flags with these values."""
    unset = dict.fromkeys(("model", "class_names", "workdir", "mean", "std", "crop", "image"))
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
            {"model": f"vit_small_patch16_224.dino,{SIZES}"},
            f" ({IMAGENET}; assumed crop 0.9; image size 32 as in the file, not 224; set with "
            "--mean, --std, --crop)",
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


def weights_of_channels(path, indices):
    """Write weights whose channel i is channel indices[i] of `WEIGHTS`; return the path."""
    tensors = load_file(WEIGHTS)
    kernel = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = np.ascontiguousarray(kernel[:, indices])
    save_file(tensors, path)
    return path


def test_weights_of_four_channels_see_the_alpha_channel(tmp_path, capsys):
    file = weights_of_channels(tmp_path / "four.safetensors", [0, 1, 2, 0])
    rgba = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    opaque = rgba | np.uint8([0, 0, 0, 255])
    Image.fromarray(opaque[..., :3]).save(tmp_path / "b.png")
    Image.fromarray(opaque[..., :3]).save(tmp_path / "c.jpg", quality=100, subsampling=0)
    args = [f"--weights={file}", "--model=num_heads=3", "--crop=1", "--json", "--topk=10"]
    assert command.run(predict, *args, tmp_path) == 0
    rows = [json.loads(line)["top"] for line in capsys.readouterr().out.splitlines()]
    found = [[x["probability"] for x in sorted(top, key=lambda x: x["class"])] for top in rows]
    x = np.float32([rgba, opaque]) / 127.5 - 1
    expected = jax.nn.softmax(pretrained.load(file, "num_heads=3")(x)["logits"])
    np.testing.assert_allclose(found[:2], expected, atol=1e-5)
    assert np.abs(np.subtract(found[2], found[1])).max() < 0.05
    assert np.abs(np.subtract(found[0], found[1])).max() > 0.1


def test_images_of_five_channels_are_refused(tmp_path, capsys):
    file = weights_of_channels(tmp_path / "five.safetensors", [0, 1, 2, 0, 1])
    Image.fromarray(np.zeros((40, 40, 4), np.uint8)).save(tmp_path / "x.png")
    args = [f"--weights={file}", "--model=num_heads=3", tmp_path / "x.png"]
    assert command.run(predict, *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the weights expect 5 channels, but images are decoded to 1 (gray), 3 (RGB)" in line
    model = inference.load(file, "num_heads=3")
    with pytest.raises(UserError, match="the weights expect 5 channels"):
        model.view(np.zeros((40, 40, 4), np.uint8))
    assert model.run(np.zeros((1, 32, 32, 5), np.float32))["logits"].shape == (1, 10)


def test_gray_weights_accept_a_color_image(tmp_path, capsys):
    """The image is converted to gray, as Pillow does."""
    file = weights_of_channels(tmp_path / "gray.safetensors", [0])
    color = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    color.save(tmp_path / "color.png")
    color.convert("L").save(tmp_path / "gray.png")
    args = [f"--weights={file}", "--model=num_heads=3", "--crop=1", "--json"]
    assert command.run(predict, *args, tmp_path / "color.png", tmp_path / "gray.png") == 0
    rows = [json.loads(line)["top"] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == rows[1]


def test_views_of_rectangular_models():
    """A wide picture is cut to the size, or only to a multiple of the patch, not to a square."""
    model = inference.load(WEIGHTS, NAME)
    x = np.random.default_rng(0).integers(0, 256, (40, 133, 3), np.uint8)
    pil = Image.fromarray(x)
    wide = model.replace(image=(16, 48), crop=0.5)
    # Resized to 32 x 106, then cropped to the center.
    expected = np.asarray(pil.resize((106, 32), Image.Resampling.BICUBIC))[8:24, 29:77]
    np.testing.assert_array_equal(wide.view(x), expected)
    assert wide.grid == (4, 12) and wide.view(x.swapaxes(0, 1)).shape == (16, 48, 3)
    kept = model.replace(keep_shape=True)
    expected = np.asarray(pil.resize((106, 32), Image.Resampling.BICUBIC))[:, 1:105]
    np.testing.assert_array_equal(kept.view(x), expected)
    views = [kept.view(image) for image in (x, x.swapaxes(0, 1), x[:, :45], x[:, 3:])]
    assert [view.shape[:2] for view in views] == [(32, 104), (104, 32), (32, 36), (32, 104)]
    outputs = list(kept.stream(views, batch_size=2))
    assert len(outputs) == 4
    for view, output in zip(views, outputs, strict=True):
        logits = model.module(view[None] / np.float32(127.5) - 1)["logits"]
        np.testing.assert_allclose(output["logits"], logits, atol=1e-5)
    with pytest.raises(UserError, match="600 x 20 pixels are too long"):
        kept.view(np.zeros((20, 600, 3), np.uint8))
    with pytest.raises(UserError, match="must be divisible by the patch size, 4"):
        model.replace(image=(16, 50))


def test_attention_kernel_of_a_device_is_proved(capsys, monkeypatch):
    """The choice for a device is replaced here; cuDNN does not run on CPU."""
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    expected = inference.load(WEIGHTS, NAME).run(x)["logits"]
    assert not capsys.readouterr().err
    auto = {"scan": "off", "attn": "cudnn", "patch_embed": "conv"}
    monkeypatch.setattr(kernels, "resolve_auto", lambda *_: auto)
    model = inference.load(WEIGHTS, NAME)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("attention: xla, because cudnn fails: ")
    assert model.model.module.config.attn == "xla"
    np.testing.assert_allclose(model.run(x)["logits"], expected, atol=1e-5)


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


def test_a_stated_patch_size_resizes_the_patch_embedding():
    """FlexiViT, section 3.4: a patch and its upsampled copy have the same embedding."""
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    upsample = np.kron(np.eye(8), cubic_matrix(4, 8, "timm"))  # [64, 32], each patch by itself
    large = np.einsum("Yy,Xx,byxc->bYXc", upsample, upsample, images)
    original = inference.load(WEIGHTS, NAME)
    resized = inference.load(WEIGHTS, f"{NAME},patch=8,image=64")
    assert resized.notes == ("patch embedding resized from 4 to 8 pixels, as in FlexiViT",)
    expected = original.run(images)["tokens"]
    np.testing.assert_allclose(resized.run(large.astype(np.float32))["tokens"], expected, atol=1e-5)
    same_image = inference.load(WEIGHTS, f"{NAME},patch=8x4")
    assert (same_image.size, same_image.grid) == ((32, 32), (4, 8))
    table = resize_positions(original.params["pos_embed"], (8, 8), (4, 8), 1, "timm")
    np.testing.assert_allclose(same_image.params["pos_embed"], table, atol=1e-6)
    with pytest.raises(UserError, match="image = 32 must be a multiple of patch = 5"):
        inference.load(WEIGHTS, f"{NAME},patch=5")


def test_mean_and_std_of_adapted_channels(tmp_path):
    """Averaged for gray images, repeated for others, as the channels of the patch embedding."""
    name = f"vit_small_patch16_224.dino,{SIZES}"
    gray = inference.load(WEIGHTS, f"{name},channels=1")
    np.testing.assert_allclose((gray.mean, gray.std), [[0.449], [0.226]], atol=1e-12)
    rgba = inference.load(WEIGHTS, f"{name},channels=4")
    assert rgba.mean == (0.485, 0.456, 0.406, 0.485) and rgba.std == (0.229, 0.224, 0.225, 0.229)
    # With equal means, the gray model is the same function of gray images.
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 1), np.uint8)
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4}
    card = {"architecture": "vit_small_patch16_224", "model_args": sizes, "crop_pct": 0.9}
    card |= {"mean": [0.4] * 3, "std": [0.2] * 3}
    (tmp_path / "config.json").write_text(json.dumps(card))
    save_file(load_file(WEIGHTS), tmp_path / "file.safetensors")
    models = [
        inference.load(tmp_path / "file.safetensors", f"vit_small_patch16_224,{SIZES}{channels}")
        for channels in ("", ",channels=1")
    ]
    color, gray = (model.run([model.view(image)])["logits"] for model in models)
    assert models[1].mean == pytest.approx([0.4])
    np.testing.assert_allclose(gray, color, atol=1e-5)
