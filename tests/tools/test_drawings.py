"""Tests of vit_jax.tools.drawings: ten drawings and a page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests import command
from vit_jax import data, inference
from vit_jax.tools import drawings

VIT = ["01_model", "02_self_attention", "03_heads", "03_heads_2", "04_patches", "04_patches_2"]
VIT += ["05_positions", "05_positions_2", "06_dino", "07_vit_and_cnn", "08_shades", "09_sizes"]
VIT += ["10_way"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, train_digits):
    """A run of two steps on digits with 4 x 4 patches and 4 heads."""
    sizes = dict(depth=2, width=16, mlp_dim=32, pool="cls")
    return train_digits(tmp_path_factory.mktemp("run"), 2, **sizes)


def texts(path):
    return [x.text for x in ElementTree.parse(path).iter() if x.text and x.text.strip()]


def test_a_run_is_drawn_with_its_own_numbers(workdir, tmp_path, capsys):
    assert command.run(drawings, f"--workdir={workdir}", f"--output={tmp_path / 'new'}") == 0
    folder = tmp_path / "new"
    assert sorted(path.stem for path in folder.glob("*.svg")) == VIT
    assert len(capsys.readouterr().out.splitlines()) == len(VIT) + 1
    model = inference.load(workdir)
    view = model.view(data.make(model.config, "test")[0]["image"])
    out = model.run([view], attention=True)
    shares = np.exp(out["logits"][0]) / np.exp(out["logits"][0]).sum()
    best = (-shares).argsort()[:5]
    way = texts(folder / "10_way.svg")
    for k in best:
        assert model.class_names[k] in way and f"{shares[k]:.1%}" in way
    maximum = 100 * out["attention"][-1][0].mean(0)[0, 1:].max()
    assert f"max {maximum:.3g}%, uniform 5.88%" in texts(folder / "08_shades.svg")
    assert "17 × 16" in " ".join(texts(folder / "01_model.svg"))
    html = (folder / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!#|data:)', html)  # loads nothing
    assert '<svg lang="ko"' in html and "셀프 어텐션" in html and "10 One image" in html
    heads = ElementTree.parse(folder / "03_heads_2.svg")
    images = [x for x in heads.iter() if x.tag.endswith("image")]
    assert len(images) == 1 + model.num_heads


def test_a_name_has_random_weights_and_a_resnet_fewer_drawings(tmp_path, capsys):
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "x.png")
    args = [f"--output={tmp_path / 'cnn'}", "--lang=en", str(tmp_path / "x.png")]
    assert command.run(drawings, "--model=resnet8,image=32,num_classes=10", *args) == 0
    expected = ["01_model", "07_vit_and_cnn", "08_gradcam", "09_sizes", "10_way"]
    assert sorted(path.stem for path in (tmp_path / "cnn").glob("*.svg")) == expected
    html = (tmp_path / "cnn/index.html").read_text()
    assert "randomly initialized weights" in html and '<svg lang="ko"' not in html
    networks = texts(tmp_path / "cnn/07_vit_and_cnn.svg")
    assert "8 × 8 × 64" in networks and "sees the whole image" in networks
    assert command.run(drawings, "--model=resnet8", f"--output={tmp_path}") == 2
    assert command.run(drawings, "--model=resnet9", *args) == 2
    (tmp_path / "file").touch()
    assert command.run(drawings, "--model=resnet8", f"--output={tmp_path / 'file'}", "x.png") == 2
    errors = capsys.readouterr().err.splitlines()
    errors = [line for line in errors if line.startswith("error: ")]
    assert "got 0 images" in errors[0] and "resnet9" in errors[1] and "file" in errors[2]
