"""Tests of vit_jax.tools.attend: figures, animations, text and arrays."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests import GOLDEN, ROOT, command
from vit_jax import augment, data, inference, pretrained, vit
from vit_jax.analysis import attention, attention_maps
from vit_jax.config import defaults, load_config
from vit_jax.data.pictures import Picture
from vit_jax.errors import UserError
from vit_jax.figures.attention import describe_grid, query_name
from vit_jax.pretrained import runs
from vit_jax.tools import attend

WEIGHTS = GOLDEN / "vit/vit_cls/state_dict.safetensors"  # 2 layers, 3 heads, 32/4
NAME = "num_heads=3"


def run(images, **options):
    """Run the tool with images and flags; return its exit code."""
    flags = [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()
    ]
    return command.run(attend, *flags, *images)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, train_digits):
    """A run of one step on digits, with a class token, 4 x 4 patches and 4 heads."""
    sizes = dict(depth=1, width=16, mlp_dim=32, pool="cls")
    return train_digits(tmp_path_factory.mktemp("run"), 1, **sizes)


@pytest.fixture
def photos(tmp_path):
    """A directory with three images, whose natural order differs from the alphabetical order."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in (2, 10, 1):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def figure_texts(monkeypatch):
    """A function that returns the set of texts in each figure that was created."""
    figures = []
    init = Figure.__init__

    def record(self, *args, **options):
        init(self, *args, **options)
        figures.append(self)

    monkeypatch.setattr(Figure, "__init__", record)
    return lambda: [{t.get_text() for t in figure.findobj(match=has_text)} for figure in figures]


def has_text(artist):
    return hasattr(artist, "get_text")


def test_run_arrays_match_the_model(workdir, tmp_path, capsys):
    image = data.make(load_config(workdir), "test")[0]["image"]
    Image.fromarray(image[..., 0]).save(tmp_path / "x.png")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    output = tmp_path / "attention.png"
    images = ["test:0", str(tmp_path / "page.jpg"), str(tmp_path / "x.png"), "val:3"]
    assert run(images, workdir=workdir, against=workdir, output=output) == 2
    out, err = capsys.readouterr()
    assert out.split() == [str(output), str(tmp_path / "attention.npz")]
    errors = [line for line in err.splitlines() if not line.startswith("attend: running")]
    assert len(errors) == 1 and "page.jpg" in errors[0]
    with Image.open(output) as picture:
        assert min(picture.size) > 600
    arrays = np.load(tmp_path / "attention.npz")
    assert arrays["names"].tolist() == [images[0], *images[2:]]
    c = load_config(workdir)
    model = runs.load_model(workdir)
    x = augment.normalize(arrays["images"][:1], c.data.mean, c.data.std)
    maps = model(x, attention=True)["attention"][-1][0, :, 0, 1:].reshape(4, 4, 4)
    np.testing.assert_allclose(arrays["maps"][0, 0], maps, atol=2e-6)
    for name in ("maps", "colors", "mask"):
        values = arrays[name]
        np.testing.assert_array_equal(values[0], values[1])  # the same image, from a file
        np.testing.assert_array_equal(values, arrays[f"against_{name}"])
    mask = attention.mass_mask(arrays["maps"].mean(2), 0.6)
    np.testing.assert_array_equal(arrays["mask"], mask)
    assert "step 1: attention of [CLS]; image 8x8, 4x4 patches of 2x2" in str(arrays["note"])


def test_weight_file_arrays_match_the_model(photos, figure_texts):
    """Selected layers, heads and image size of a weight file."""
    output = photos.parent / "new" / "attention.svg"
    options = dict(weights=WEIGHTS, model=NAME, image=48, layers="2,1", keep=0.5)
    assert run([photos], **options, heads="2,max,rollout", output=output) == 0
    arrays = np.load(output.with_suffix(".npz"))
    names = [Path(name).name for name in arrays["names"]]
    assert names == ["1.png", "2.png", "10.png"]
    assert arrays["layers"].tolist() == [2, 1] and arrays["heads"].tolist() == [0, 1, 2]
    x = arrays["images"] / 255 * 2 - 1  # AugReg's normalization: a timm name without a suffix
    assert x.shape == (3, 48, 48, 3)
    weights = np.asarray(pretrained.load(WEIGHTS, NAME)(x, attention=True)["attention"])
    assert weights.shape == (2, 3, 3, 145, 145)
    maps = weights[[1, 0], ..., 0, 1:].reshape(2, 3, 3, 12, 12).swapaxes(0, 1)
    np.testing.assert_allclose(arrays["maps"], maps, atol=2e-6)
    rollout = attention.rollout(weights)[[1, 0], :, 0, 1:].reshape(2, 3, 12, 12).swapaxes(0, 1)
    np.testing.assert_allclose(arrays["rollout"], rollout, atol=2e-6)
    np.testing.assert_array_equal(arrays["mask"], attention.mass_mask(maps.mean(2), 0.5))
    (texts,) = figure_texts()
    size = "image 48x48, 12x12 patches of 4x4, positions resized from 8x8"
    assert any(size in text for text in texts)
    assert f"state_dict.safetensors, {NAME}" in texts
    assert {"layer 1 of 2", "layer 2 of 2", "head 2", "max of 3 heads", "rollout"} < texts
    assert any("holds 50%" in text for text in texts)


def test_maps_of_a_wide_picture_have_its_shape(tmp_path, figure_texts, capsys):
    image = np.random.default_rng(0).integers(0, 256, (32, 80, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "wide.png")
    Image.fromarray(image[:, :40]).save(tmp_path / "other.png")
    options = dict(weights=WEIGHTS, model=NAME, image="keep", output=tmp_path / "x.png")
    assert run([tmp_path / "wide.png"], **options, layers="last") == 0
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["colors"].shape == (1, 8, 20, 3)
    x = image[None] / np.float32(127.5) - 1
    weights = pretrained.load(WEIGHTS, NAME)(x, attention=True)["attention"]
    maps = weights[-1, :, :, 0, 1:].reshape(1, 1, 3, 8, 20)
    np.testing.assert_allclose(arrays["maps"], maps, atol=2e-6)
    (texts,) = figure_texts()
    geometry = "image 32x80, 8x20 patches of 4x4, positions resized from 8x8"
    assert any(geometry in text for text in texts)
    assert run([tmp_path / "*.png"], **options) == 2
    assert "have different shapes, 32x40 and 32x80" in capsys.readouterr().err


def test_run_against_weight_file(workdir, tmp_path, figure_texts):
    options = dict(workdir=workdir, against=WEIGHTS, against_model=NAME)
    assert run(["test:1"], **options, output=tmp_path / "both.png") == 0
    arrays = np.load(tmp_path / "both.npz")
    assert arrays["maps"].shape == (1, 1, 4, 4, 4) and arrays["layers"].tolist() == [1]
    assert arrays["against_maps"].shape == (1, 1, 3, 8, 8)
    assert arrays["against_layers"].tolist() == [2]
    (texts,) = figure_texts()
    assert f"state_dict.safetensors, {NAME}" in texts and "layer 2 of 2" in " ".join(texts)


def test_logit_lens_is_drawn_alone_or_with_the_maps(workdir, tmp_path, figure_texts):
    assert run(["test:0", "test:1"], workdir=workdir, lens=tmp_path / "lens.svg") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lens.svg"]
    (texts,) = figure_texts()
    assert "class probabilities by layer" in texts and "layer 1 of 1" in texts
    model = inference.load(workdir)
    view = model.view(data.make(model.config, "test")[0]["image"])
    assert model.class_names[model.run([view])["logits"][0].argmax()] in texts  # in the legend


def test_animation_has_a_frame_per_layer_or_image(photos, tmp_path, figure_texts):
    options = dict(weights=WEIGHTS, model=NAME)
    assert run([photos / "1.png"], **options, animate=tmp_path / "layers.gif") == 0
    assert [{"layer 1 of 2", "layer 2 of 2"} & texts for texts in figure_texts()] == [
        {"layer 1 of 2"},
        {"layer 2 of 2"},
    ]
    assert run([photos], **options, animate=tmp_path / "images.apng", fps=5) == 0
    for name, frames, duration in (("layers.gif", 2, 500), ("images.apng", 3, 200)):
        with Image.open(tmp_path / name) as animation:
            animation.load()
            assert animation.n_frames == frames and animation.info["duration"] == duration
    maps = np.load(tmp_path / "layers.npz")["maps"]
    assert maps.shape == (1, 2, 3, 8, 8)
    np.testing.assert_allclose(maps, np.load(tmp_path / "images.npz")["maps"][:1], atol=1e-6)


def test_terminal_prints_maps(photos, capsys):
    assert run([photos / "1.png"], weights=WEIGHTS, model=NAME, terminal=True, layers=2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "mean 0.5,0.5,0.5" in lines[0] and lines[-1] == attention.LEGEND
    assert any(line.startswith("mean of 3 heads") and "head 1" in line for line in lines)
    maps = [line for line in lines[:-1] if set(line) & set("█▓░")]
    assert len(maps) % 8 == 0 and "█" in "".join(maps) and not list(photos.parent.glob("*.npz"))


def test_layer_and_head_selection():
    layers = attend.pick_layers
    assert layers(None, 12) == [1, 6, 12] and layers(None, 1) == [1] and layers(None, 2) == [1, 2]
    assert layers(["last", "2", "all"], 4) == [4, 2, 1, 3] and layers([2, 1], 4) == [2, 1]
    assert attend.pick_heads(None, 6, 3) == ["mean"]
    assert attend.pick_heads(None, 6, 1) == ["mean", 0, 1, 2]
    assert attend.pick_heads(None, 1, 1) == ["mean"]
    assert attend.pick_heads(["max", "1", "all"], 3, 3) == ["max", 1, 0, 2]
    with pytest.raises(UserError, match="from 1 to 12"):
        layers(["13"], 12)
    with pytest.raises(UserError, match="maps"):
        attend.check_size(16, [range(12)], range(6), True)


def test_invalid_flags_exit_with_one_line(workdir, photos, tmp_path, capsys):
    flags = dict(workdir=workdir, output=tmp_path / "out" / "x.png")
    shutil.copytree(workdir, tmp_path / "cnn")
    config = json.loads((workdir / "config.json").read_text())
    config["model"] = defaults().model.to_dict() | dict(variant="resnet20", channels=1)
    (tmp_path / "cnn/config.json").write_text(json.dumps(config))
    (tmp_path / "empty").mkdir()
    file = dict(output=flags["output"], weights=WEIGHTS, model=NAME)
    cases = [
        (flags | dict(output=tmp_path / "x.svgz"), ["test:0"], "--output="),
        (flags | dict(animate=tmp_path / "x.mp4"), ["test:0"], "--animate=.*gif"),
        (flags | dict(animate=tmp_path / "out" / "x.png"), ["test:0"], "both"),
        (dict(workdir=workdir), ["test:0"], "--terminal"),
        (flags, [], "1 to 16"),
        (flags, ["test:0"] * 17, "1 to 16"),
        (flags, [tmp_path / "empty"], "no images in"),
        (flags | dict(keep=0.0), ["test:0"], "--keep"),
        (flags | dict(style="mask", interpolation="bilinear"), ["test:0"], "does not apply"),
        (flags | dict(heads=4), ["test:0"], "from 0 to 3"),
        (flags | dict(heads="a"), ["test:0"], "heads"),
        (flags | dict(layers=2), ["test:0"], "from 1 to 1"),
        (flags | dict(image=9), ["test:0"], "image = 9 must be a multiple of patch = 2"),
        (flags | dict(image=2**12), ["test:0"], "GB per layer"),
        (flags | dict(against=tmp_path), ["test:0"], "config.json"),
        (flags | dict(against=workdir, against_model=NAME), ["test:0"], "--against_model requires"),
        (flags | dict(workdir=tmp_path / "cnn"), ["test:0"], "resnet20 has no attention"),
        (flags | dict(weights=WEIGHTS), ["test:0"], "either"),
        (dict(workdir=workdir, lens=tmp_path / "x.txt"), ["test:0"], "--lens=.*must be a .png"),
        (
            dict(workdir=workdir, lens="x.png", against=WEIGHTS, against_model=NAME),
            ["test:0"],
            "one",
        ),
        (file | dict(model="resnet50"), [photos], "file holds a ViT .* --model says resnet50"),
        (file | dict(raw=True), [photos], "--raw"),
    ]
    for options, images, message in cases:
        assert run(images, **options) == 2
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("\n") == 1, error
    assert run(["test:999"], **flags) == 2
    assert run(["test:0"], **file) == 2  # a weight file has no dataset
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".npz", ".svg", ".mp4")]
    args = [sys.executable, "-m", "vit_jax.tools.attend", "--workdir=nowhere", "test:0"]
    done = subprocess.run([*args, "--output=x.png"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout


def test_attend_from_python_without_files(workdir, capsys):
    models = [inference.load(str(workdir)), inference.load(str(WEIGHTS), NAME)]
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), np.uint8)
    pictures = [Picture(f"picture {i}", image) for i, image in enumerate(images)]
    arrays = attend.attend(models, pictures, layers=["last"], heads=["all"], terminal=True)
    assert arrays["maps"].shape == (2, 1, 4, 4, 4)
    assert arrays["against_maps"].shape == (2, 1, 3, 8, 8)
    assert "█" in capsys.readouterr().out


def extract(name, views, layers=(2,), **options):
    module = vit.create(name, num_classes=0, **options)
    return attention_maps.extract(
        inference.from_module(module, name), views, layers, with_rollout=True
    )


def test_models_with_and_without_a_class_token():
    views = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 1), np.uint8)
    a, b = (
        extract("mu/4", views, image=28, channels=1, depth=2, pool=pool) for pool in ("cls", "gap")
    )
    assert a.maps.shape == b.maps.shape == (10, 1, 2, 7, 7)
    assert a.colors.shape == (10, 7, 7, 3) and "28x28, 7x7 patches of 4x4" in describe_grid(a)
    assert query_name(a) == "[CLS]" and "no [CLS]" in query_name(b) and a.depth == 2
    assert (a.maps.sum((3, 4)) < 1).all() and (a.rollout.sum((2, 3)) < 1).all()
    np.testing.assert_allclose(b.maps.sum((3, 4)), 1, rtol=1e-5)
    np.testing.assert_allclose(b.rollout.sum((2, 3)), 1, rtol=1e-5)
    c = extract("mu/4", views, image=28, channels=1, depth=2, pool="gap", reg_tokens=2)
    assert c.prefix == 2 and query_name(c) == query_name(b)  # registers are not [CLS]
    assert (c.maps.sum((3, 4)) < 1).all() and c.maps.std() > 0


def test_maps_do_not_depend_on_batch_size(monkeypatch):
    views = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    options = dict(layers=(1, 2), image=28, channels=1, depth=2)
    full = extract("mu/4", views, **options)
    monkeypatch.setattr(
        attention_maps, "MAX_SOFTMAX_BYTES", 2 * 4 * 2 * 2 * 50**2
    )  # the attention weights of two images
    batched = extract("mu/4", views, **options)
    np.testing.assert_allclose(full.maps, batched.maps, atol=1e-6)
    np.testing.assert_allclose(full.rollout, batched.rollout, atol=1e-6)
