"""Test experiments.cnn_vs_vit on two small runs, and vit_jax.figures.receptive_field."""

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
from vit_jax.analysis import receptive_field
from vit_jax.config import load_config, save_config
from vit_jax.figures import receptive_field as figures
from vit_jax.pretrained import runs
from vit_jax.workdir import log


def run(output, **workdirs):
    """Run the command on two workdirs and return its exit code."""
    flags = [f"--{kind}={workdir}" for kind, workdir in workdirs.items()]
    options = ["--max_images=16", "--pairs=1", "--seconds=0"]
    return command.run(cnn_vs_vit, *flags, *options, f"--output={output}")


@pytest.mark.slow
def test_comparison_of_two_runs(tmp_path, capsys, train_digits):
    vit = tmp_path / "small"
    cnn = tmp_path / "net"
    train_digits(vit, 2, variant="mu/2", depth=2, width=16, mlp_dim=32, pool="cls")
    train_digits(cnn, 2, variant="resnet8", depth=None, width=4, pool="cls", init="deit")
    workdirs = {"cnn": str(cnn), "vit": str(vit)}
    assert run(tmp_path / "out", **workdirs) == 0
    output = tmp_path / "out"
    assert f"wrote {output}" in capsys.readouterr().out
    with open(output / "models.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for row, kind in zip(table, ("cnn", "vit"), strict=True):
        last = log.read_metrics(Path(workdirs[kind]))[-1]
        assert float(row["test_acc1"]) == pytest.approx(last["eval/test/acc1"])
        assert float(row["forward_images_per_s"]) > 0 and row["run"] == Path(workdirs[kind]).name
    rows = {
        name: [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]
        for name in ("layers", "heads")
    }
    stages = [row for row in rows["layers"] if "side95" in row]
    # resnet8: a 3 x 3 stem, then two convolutions per stage; stages 2 and 3 start with stride 2.
    expected = [("stem", 3), ("layer1", 7), ("layer2", 13), ("layer3", 25)]
    assert [(row["layer"], row["field"]) for row in stages[:4]] == expected
    assert [row["inside"] for row in stages[:4]] == [[3, 6], [1, 8], [0, 8], [0, 8]]
    assert [row["layer"] for row in stages[4:]] == ["block 1", "block 2"]
    assert all(0 < row["share95"] <= 1 and row["side95"] <= 8 for row in stages)

    model = runs.load_model(workdirs["vit"])
    c = load_config(workdirs["vit"])
    maps = np.load(output / "maps.npz")
    assert [(row["layer"], row["head"]) for row in rows["heads"]] == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    uniform = receptive_field.uniform_distance((4, 4), 2)
    assert all(
        0 < row["distance"] < 6 and row["even_distance"] == round(uniform, 3)
        for row in rows["heads"]
    )
    images = (maps["images"] / np.float32(255) - np.float32(c.data.mean)) / np.float32(c.data.std)
    attention = jax.jit(lambda images: model(images, attention=True)["attention"])(images)
    expected = np.asarray(attention)[1, :, :, 0, 1:].mean(1)
    np.testing.assert_allclose(maps["attention/block 2"].reshape(6, 16), expected, atol=1e-3)
    assert maps["gradcam/layer3"].shape == (6, 2, 2) and maps["field/layer3"].shape == (8, 8)
    for name in ("distances", "fields", "saliency"):
        with Image.open(output / f"{name}.png") as picture:
            assert min(picture.size) > 400


def test_incompatible_runs_are_rejected(tmp_path, capsys):
    def make_run(folder, variant, last, **changes):
        c = digits.get_config()
        c.model.variant, c.model.depth = variant, None
        if variant.startswith("resnet"):
            c.model.pool, c.model.init = "cls", "deit"
        c.data.update(changes)
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        save_config(c, tmp_path / folder / "config.json")
        (tmp_path / folder / "metrics.jsonl").write_text(json.dumps(last) + "\n")
        return str(tmp_path / folder)

    def error_message(**workdirs):
        assert run(tmp_path / "out", **workdirs) == 2
        return capsys.readouterr().err.strip()

    done = {"step": 2, "eval/test/acc1": 0.5, "eval/test/step": 2}
    cnn = make_run("net", "resnet8", done)
    vit = make_run("small", "mu/2", done)
    assert error_message(cnn=vit, vit=vit) == "error: --cnn is a mu/2; pass it with --vit"
    assert "--vit is a resnet8" in error_message(cnn=cnn, vit=cnn)
    unfinished = make_run("half", "mu/2", {"step": 1})
    assert "is not finished" in error_message(cnn=cnn, vit=unfinished)
    other = make_run("other", "mu/2", done, name="synthetic")
    assert "differ in data.name: digits and synthetic" in error_message(cnn=cnn, vit=other)
    assert not (tmp_path / "out").exists()


def test_distances_figure_plots_the_rows():
    cnn = [dict(model="net", layer="stem", convolutions=1, field=3, side95=2.0)]
    cnn += [dict(model="net", layer="layer1/block0/conv1", convolutions=2, field=5)]
    cnn += [dict(model="net", layer="layer1/block0/shortcut", convolutions=2, field=4)]
    cnn += [dict(model="net", layer="layer1", convolutions=2, field=5, side95=3.5)]
    vit = [dict(model="small", layer="block 1", field=8, side95=7.0)]
    heads = [dict(model="small", layer=1, distance=x, even_distance=4.0) for x in (1.0, 2.0)]
    sides = [{"side": 8, "rows": cnn}, {"side": 8, "rows": vit, "heads": heads}]
    left, right = figures.distances(sides).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert drawn["theoretical receptive field"] == [[1, 3], [2, 5]]
    assert drawn["effective receptive field (95% of the gradient)"] == [[1, 2], [2, 3.5]]
    assert right.collections[0].get_offsets().tolist() == [[1, 1], [1, 2]]
    drawn = {line.get_label(): line.get_ydata() for line in right.lines}
    assert drawn["mean over heads"] == [1.5]
    assert drawn["image side (theoretical receptive field)"][0] == 8


def test_outline_of_a_large_field_is_drawn_in_cells():
    """A field of 64 x 64 pixels is outlined in cells of 2 x 2; the printed side is in pixels."""
    gradient = np.zeros((64, 64))
    gradient[16:31, 8:40] = 1
    (axis,) = figures.fields([("net", {"layer1": gradient}, {"layer1": [10, 50]})]).axes
    x, y = np.concatenate(axis.collections[0].get_segments()).T
    assert (x.min(), x.max(), y.min(), y.max()) == (7.5, 39.5, 15.5, 31.5)
    assert axis.get_xlabel() == f"side {np.ceil(0.95 * 15 * 32) ** 0.5:.1f} px"
    box = axis.patches[0].get_bbox()
    assert (box.x0, box.x1, box.y0, box.y1) == (9.5, 49.5, 9.5, 49.5)
