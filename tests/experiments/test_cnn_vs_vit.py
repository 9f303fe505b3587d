"""A CNN's run and a ViT's side by side, as a user asks for it, and the figures of it."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from experiments.cnn_vs_vit import __main__ as cnn_vs_vit
from tests import command
from vit_jax import train
from vit_jax.analysis import receptive_field
from vit_jax.config import load_config
from vit_jax.figures import receptive_field as figures
from vit_jax.pretrained import runs
from vit_jax.workdir import log


def run(output, **folders):
    """The command on two folders. -> its exit code"""
    flags = [f"--{kind}={folder}" for kind, folder in folders.items()]
    options = ["--max_images=16", "--pairs=1", "--seconds=0"]
    return command.run(cnn_vs_vit, *flags, *options, f"--output={output}")


@pytest.mark.slow
def test_two_runs_side_by_side(tmp_path, capsys, train_digits):
    vit, cnn = tmp_path / "small", tmp_path / "net"
    train_digits(vit, 2, variant="mu/2", depth=2, width=16, mlp_dim=32, pool="cls")
    train_digits(cnn, 2, variant="resnet8", depth=None, width=4, pool="cls", init="deit")
    folders = {"cnn": str(cnn), "vit": str(vit)}
    assert run(tmp_path / "out", **folders) == 0
    output = tmp_path / "out"
    assert f"written: {output}" in capsys.readouterr().out
    with open(output / "models.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for row, kind in zip(table, ("cnn", "vit"), strict=True):
        last = log.read_metrics(Path(folders[kind]))[-1]
        assert float(row["test_acc1"]) == pytest.approx(last["eval/test/acc1"])
        assert float(row["forward_images_per_s"]) > 0 and row["run"] == Path(folders[kind]).name
    read = {
        name: [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]
        for name in ("layers", "heads")
    }
    stages = [row for row in read["layers"] if "side95" in row]
    # resnet8: 3, then two convolutions a stage, of which stages 2 and 3 halve the side first.
    known = [("stem", 3), ("layer1", 7), ("layer2", 13), ("layer3", 25)]
    assert [(row["layer"], row["field"]) for row in stages[:4]] == known
    assert [row["inside"] for row in stages[:4]] == [[3, 6], [1, 8], [0, 8], [0, 8]]
    assert [row["layer"] for row in stages[4:]] == ["block 1", "block 2"]
    assert all(0 < row["share95"] <= 1 and row["side95"] <= 8 for row in stages)

    model, c = runs.load_model(folders["vit"]), load_config(folders["vit"])
    maps = np.load(output / "maps.npz")
    assert [(row["layer"], row["head"]) for row in read["heads"]] == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    even = receptive_field.even_distance((4, 4), 2)
    assert all(
        0 < row["distance"] < 6 and row["even_distance"] == round(even, 3) for row in read["heads"]
    )
    images = (maps["images"] / np.float32(255) - np.float32(c.data.mean)) / np.float32(c.data.std)
    attention = jax.jit(lambda images: model(images, attention=True)["attention"])(images)
    seen = np.asarray(attention)[1, :, :, 0, 1:].mean(1)
    np.testing.assert_allclose(maps["attention/block 2"].reshape(6, 16), seen, atol=1e-3)
    assert maps["gradcam/layer3"].shape == (6, 2, 2) and maps["field/layer3"].shape == (8, 8)
    for name in ("distances", "fields", "saliency"):
        with Image.open(output / f"{name}.png") as picture:
            assert min(picture.size) > 400


def test_what_does_not_go_together_is_one_line(tmp_path, capsys):
    def make(folder, variant, last, **changes):
        c = digits.get_config()
        c.model.variant, c.model.depth = variant, None
        c.data.update(changes)
        train.claim(tmp_path / folder, c)
        (tmp_path / folder / "metrics.jsonl").write_text(json.dumps(last) + "\n")
        return str(tmp_path / folder)

    def said(**folders):
        assert run(tmp_path / "out", **folders) == 2
        return capsys.readouterr().err.strip()

    done = {"step": 2, "eval/test/acc1": 0.5, "eval/test/step": 2}
    cnn, vit = make("net", "resnet8", done), make("small", "mu/2", done)
    assert said(cnn=vit, vit=vit) == "error: --cnn is a mu/2; pass --vit for that one"
    assert "--vit is a resnet8" in said(cnn=cnn, vit=cnn)
    assert "is not finished" in said(cnn=cnn, vit=make("half", "mu/2", {"step": 1}))
    other = make("other", "mu/2", done, name="synthetic")
    assert "differ in data.name: digits and synthetic" in said(cnn=cnn, vit=other)
    assert not (tmp_path / "out").exists()


def test_points_are_where_the_rows_say():
    cnn = [dict(model="net", layer="stem", convolutions=1, field=3, side95=2.0)]
    cnn += [dict(model="net", layer="layer1/block0/conv1", convolutions=2, field=5)]
    cnn += [dict(model="net", layer="layer1/block0/shortcut", convolutions=2, field=4)]
    cnn += [dict(model="net", layer="layer1", convolutions=2, field=5, side95=3.5)]
    vit = [dict(model="small", layer="block 1", field=8, side95=7.0)]
    heads = [dict(model="small", layer=1, distance=x, even_distance=4.0) for x in (1.0, 2.0)]
    sides = [{"side": 8, "rows": cnn}, {"side": 8, "rows": vit, "heads": heads}]
    left, right = figures.distances(sides).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert drawn["theoretical field, side"] == [[1, 3], [2, 5]]
    assert drawn["effective field, side (95% of the gradient)"] == [[1, 2], [2, 3.5]]
    assert right.collections[0].get_offsets().tolist() == [[1, 1], [1, 2]]
    drawn = {line.get_label(): line.get_ydata() for line in right.lines}
    assert drawn["mean of the heads"] == [1.5]
    assert drawn["side of the image: theoretical field"][0] == 8


def test_the_outline_of_a_large_field_follows_squares():
    """64 pixels a side are drawn by squares of 2; the sides that are written are of pixels."""
    gradient = np.zeros((64, 64))
    gradient[16:31, 8:40] = 1
    (axis,) = figures.fields([("net", {"layer1": gradient}, {"layer1": [10, 50]})]).axes
    x, y = np.concatenate(axis.collections[0].get_segments()).T
    assert (x.min(), x.max(), y.min(), y.max()) == (7.5, 39.5, 15.5, 31.5)
    assert axis.get_xlabel() == f"side {np.ceil(0.95 * 15 * 32) ** 0.5:.1f} px"
    box = axis.patches[0].get_bbox()
    assert (box.x0, box.x1, box.y0, box.y1) == (9.5, 49.5, 9.5, 49.5)
