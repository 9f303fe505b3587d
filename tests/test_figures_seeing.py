"""The figure of what models look at, and the command that makes it of a run."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import digits
from vit_jax import attention, augment, checkpoint, cli, data, train, vit
from vit_jax.figures.seeing import outline, seeing
from vit_jax.tools import attend

ROOT = Path(__file__).parents[1]
FLAGS = dict(against=None, heads=None, checkpoint="best", raw=False)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A step of the smallest model with a class token on the digits: 4 x 4 patches, 4 heads."""
    folder = tmp_path_factory.mktemp("run")
    c = digits.get_config()
    c.model.depth, c.model.width, c.model.mlp_dim, c.model.pool = 1, 16, 32, "cls"
    c.total_steps = c.eval_every = c.checkpoint_every = c.log_every = "1"
    c.optim.warmup, c.compilation_cache = "0", ""
    train.claim(folder, c)
    train.train(c, folder)
    return folder


def test_the_command_writes_what_the_model_says(workdir, tmp_path, capsys):
    image = data.make(cli.load_config(workdir), "test")[0]["image"]
    Image.fromarray(image[..., 0]).save(tmp_path / "x.png")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    output = tmp_path / "seen.png"
    flags = dict(workdir=str(workdir), output=str(output), **FLAGS | dict(against=str(workdir)))
    words = ["test:0", str(tmp_path / "page.jpg"), str(tmp_path / "x.png"), "val:3"]
    assert attend.main(SimpleNamespace(**flags), words) == 2
    out, err = capsys.readouterr()
    assert out.split() == [str(output), str(tmp_path / "seen.npz")]
    assert len(err.splitlines()) == 1 and "page.jpg" in err
    with Image.open(output) as picture:
        assert min(picture.size) > 600
    arrays = np.load(tmp_path / "seen.npz")
    assert arrays["names"].tolist() == [words[0], *words[2:]]
    c, model = cli.load_config(workdir), checkpoint.load_model(workdir)
    x = augment.normalise(arrays["images"][:1], c.data.mean, c.data.std)
    maps = model(x, attention=True)["attention"][-1][0, :, 0, 1:].reshape(4, 4, 4)
    np.testing.assert_allclose(arrays["workdir_maps"][0], maps, atol=2e-6)
    for name in ("maps", "colours", "mask"):
        values = arrays[f"workdir_{name}"]
        np.testing.assert_array_equal(values[0], values[1])  # the same image, from a file
        np.testing.assert_array_equal(values, arrays[f"against_{name}"])
    np.testing.assert_array_equal(
        arrays["workdir_mask"][2], attention.mass_mask(arrays["workdir_maps"][2].mean(0))
    )
    assert "step 1: attention of [CLS], layer 1 of 1" in str(arrays["workdir_name"])


def test_mistakes_are_named(workdir, tmp_path):
    flags = dict(workdir=str(workdir), output=str(tmp_path / "x.png"), **FLAGS)
    cases = [(dict(output=str(tmp_path / "x.txt")), ["test:0"], "--output="), ({}, [], "1 to 16")]
    cases += [
        (dict(heads=["4"]), ["test:0"], "from 0 to 3"),
        (dict(heads=["a"]), ["test:0"], "heads"),
    ]
    cases += [(dict(against=str(tmp_path)), ["test:0"], "config.json")]
    for change, words, message in cases:
        with pytest.raises(cli.UserError, match=message):
            attend.main(SimpleNamespace(**flags | change), words)
    assert attend.main(SimpleNamespace(**flags), ["test:999"]) == 2
    assert not list(tmp_path.iterdir())
    command = [
        sys.executable,
        "-m",
        "vit_jax.tools.attend",
        "--workdir=nowhere",
        "test:0",
        "--output=x.png",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout


def see(name, views, **options):
    module = vit.create(name, num_classes=0, **options)
    channels = (0.5,) * module.channels
    model = SimpleNamespace(
        module=module, image=module.image, mean=channels, std=channels, name=name
    )
    return attend.see(model, views)


def test_models_with_and_without_a_class_token():
    views = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), np.uint8)
    a, b = (see("mu/4", views, image=28, channels=1, depth=2, pool=pool) for pool in ("cls", "gap"))
    assert a["maps"].shape == b["maps"].shape == (2, 2, 7, 7)
    assert a["colours"].shape == (2, 7, 7, 3) and "28x28, 7x7 patches of 4x4" in a["note"]
    assert "[CLS], layer 2 of 2" in a["note"] and "(no [CLS])" in b["note"]
    assert (a["maps"].sum((2, 3)) < 1).all()
    np.testing.assert_allclose(b["maps"].sum((2, 3)), 1, rtol=1e-5)


def test_what_is_drawn():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 28, 28, 1), np.uint8)
    maps, colours = rng.uniform(size=(2, 6, 7, 7)), rng.uniform(size=(2, 7, 7, 3))
    model = dict(name="ours", note="layer 2", maps=maps, colours=colours)
    one = model | dict(name="theirs", maps=maps[:, :1])
    figure = seeing(images, [model, one], titles=["a", "b"], heads=(5, 0, 9))
    axes = figure.axes
    titles = [axis.get_title() for axis in axes if axis.get_title()]
    assert titles == [
        "image",
        "mean of 6 heads",
        "head 5",
        "head 0",
        "features",
        "1 head",
        "features",
    ]
    shown = [axis.images[0].get_array() for axis in axes[:7]]
    for array, expected in zip(
        shown,
        (images[0, ..., 0], maps[0].mean(0), maps[0, 5], maps[0, 0], colours[0]),
        strict=False,
    ):
        np.testing.assert_array_equal(array, expected)
    assert [axis.get_xlabel() for axis in axes[:14:7]] == ["a", "b"]
    assert axes[2].get_xlabel() == f"max {maps[0, 5].max():.1%}"
    texts = [text.get_text() for axis in axes for text in axis.texts]
    assert texts == ["layer 2", "ours", "layer 2", "theirs"]
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [artist.get_window_extent() for artist in (*axes, *figure.texts)]
    assert all(0 <= b.x0 and b.x1 <= width and 0 <= b.y0 and b.y1 <= height for b in boxes)


def test_an_outline_surrounds_its_patches():
    lines = outline([[0, 1], [0, 1]])
    assert sorted(lines) == [
        [(0.5, -0.5), (0.5, 0.5)],
        [(0.5, -0.5), (1.5, -0.5)],
        [(0.5, 0.5), (0.5, 1.5)],
        [(0.5, 1.5), (1.5, 1.5)],
        [(1.5, -0.5), (1.5, 0.5)],
        [(1.5, 0.5), (1.5, 1.5)],
    ]
