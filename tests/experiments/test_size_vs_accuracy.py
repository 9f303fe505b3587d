"""Test experiments.size_vs_accuracy, and the figures of vit_jax.figures.sizes."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from experiments import tables
from experiments.size_vs_accuracy import recipes
from tests import ROOT
from vit_jax import flops, variants
from vit_jax.figures import sizes

RECIPE = """
from configs import digits
from tests.tiny import tiny

SIZES = {"small": "mu/4", "cnn": "resnet8"}
PUBLISHED = {"small": 12.5}

def get_config(size="small"):
    c = tiny(digits.get_config())
    c.model.variant = SIZES[size]
    if size == "cnn":
        c.model.depth, c.model.pool, c.model.init = None, "cls", "deit"
    c.data.synthetic.images, c.total_steps, c.log_every = 32, "6", "2"
    c.checkpoint_every = "1"
    return c
"""
TIMM_COLUMNS = "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation"
ROWS = [
    dict(model="Ti", layers=12, width=192, heads=3, parameters=5.7e6, flops=2.5e9, published=72.2),
    dict(model="S", layers=12, width=384, heads=6, parameters=22e6, flops=9.2e9, published=79.9),
    dict(model="r50", layers=50, width=64, heads=None, parameters=26e6, flops=8e9, published=None),
]


def test_killed_and_rerun_command_gives_the_same_table(tmp_path):
    spec = tmp_path / "recipes" / "family.py"
    spec.parent.mkdir()
    spec.write_text(RECIPE)
    tables = []
    for output in (tmp_path / "killed", tmp_path / "uninterrupted"):
        command = [sys.executable, "-m", "experiments.size_vs_accuracy", f"--config={spec}"]
        command += [f"--output={output}", f"--config.compilation_cache={tmp_path}/cache"]
        command += ["--seeds=1", "--jobs=2"]
        options = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if not tables:
            first = subprocess.Popen(command, **options)
            deadline = time.time() + 240
            while not list(output.glob("*/checkpoints/*")):
                assert first.poll() is None and time.time() < deadline, first.communicate()[0]
                time.sleep(0.02)
            first.send_signal(signal.SIGKILL)  # its training processes survive
            first.wait()
        process = subprocess.run(command, **options)
        assert process.returncode == 0, process.stdout
        with open(output / "results" / "sizes.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            assert float(row.pop("images_per_s")) > 0 and float(row.pop("hours")) >= 0
        tables.append(rows)
        assert (output / "results" / "sizes.md").read_text() in process.stdout
        for name in ("sizes.png", "accuracy.png"):
            assert (output / "results" / name).read_bytes().startswith(b"\x89PNG")
    assert tables[0] == tables[1]
    small, cnn = tables[0]
    assert ",".join(small).startswith(TIMM_COLUMNS) and small["published_top1"] == "12.5"
    assert (cnn["layers"], cnn["heads"], cnn["published_top1"]) == ("8", "", "")
    assert float(small["param_count"]) * 1e6 == flops.count_params(
        variants.parse("mu/4", depth=2, image=4, channels=1, pool="gap", num_classes=10)
    )
    lines = (tmp_path / "uninterrupted/results/runs.jsonl").read_text().splitlines()
    run = json.loads(lines[0])
    assert run["seed"] == 0 and run["steps"] == 6 and run["epochs"] == 1.5 and run["versions"]
    for workdir in (output / "small-0", output / "cnn-0"):
        shutil.rmtree(workdir)
    rerun = subprocess.run(command, **options)  # the rows are enough
    assert "2 of 2 runs have a row in" in rerun.stdout and not (output / "cnn-0").exists()
    assert (output / "results" / "sizes.md").read_text() in rerun.stdout
    for flags, sizes_to_train in (
        ([], []),
        (["--seeds=2"], ["small", "cnn"]),
        (["--config.optim.lr=0.5", "--sizes=cnn"], ["cnn"]),
    ):
        planned = subprocess.run([*command, "--dry_run", *flags], **options)
        assert re.findall(r"family.py:(\w+)", planned.stdout) == sizes_to_train
    invalid = subprocess.run([*command, "--sizes=cnn,none"], **options)
    assert invalid.returncode == 2 and "--sizes=none must be one of small, cnn" in invalid.stdout


@pytest.fixture
def rows():
    return [
        row | {"top1": top1} for row, top1 in zip(ROWS, ([72.0, 72.4], [], [76.0]), strict=True)
    ]


def test_bar_length_is_the_number_of_parameters(rows):
    axis = sizes.bars(rows).axes[0]
    assert [p.get_x() + p.get_width() for p in axis.patches] == pytest.approx([5.7e6, 22e6, 26e6])
    labels = [text.get_text() for text in axis.texts]
    assert labels[0] == "12 layers, width 192, 3 heads  |  5.7 M  |  72.2%"
    assert labels[1].endswith("22 M  |  published on ImageNet: 79.9%") and "heads" not in labels[2]


def test_points_are_means_and_error_bars_are_ranges(rows):
    figure = sizes.accuracy(rows)
    for axis, key in zip(figure.axes, ("parameters", "flops"), strict=True):
        vit, cnn = axis.containers
        assert vit.lines[0].get_xydata().tolist() == [[rows[0][key], 72.2]]
        assert vit.lines[2][0].get_segments()[0][:, 1] == pytest.approx([72.0, 72.4])
        assert cnn.lines[0].get_xydata().tolist() == [[rows[2][key], 76.0]]
        published = [line for line in axis.lines if line.get_label() == "ViT, published"]
        assert published[0].get_ydata() == pytest.approx([72.2, 79.9])


def test_count_has_three_digits_and_a_suffix():
    assert [sizes.count(n) for n in (950, 15_250, 5_717_416, 8.2e9)] == [
        "950",
        "15.2 k",
        "5.72 M",
        "8.2 G",
    ]


def test_table_of_published_recipes_is_that_of_its_sources():
    """results/recipes.md is generated, and README.md has it."""
    rows = [recipes.row(size, recipes.predictions(), []) for size in recipes.SIZES]
    text = tables.markdown(rows)
    assert (recipes.RESULTS / "recipes.md").read_text() == text
    assert text in (ROOT / "README.md").read_text()
    for line in text.splitlines()[2:]:
        assert line in (ROOT / "README.ko.md").read_text().replace("미실행", "not run")


def test_hours_are_those_of_the_images_at_the_predicted_time():
    assert recipes.training_images("configs/deit.py:S") == 300 * 1_281_024  # 1,251 steps of 1,024
    row = {"command": "--config=configs/deit.py:S --x", "batch_size": 1000}
    predicted = [
        row | {"topology": "v5e:2x4", "predicted_ms": 36.0},
        row | {"topology": "h100", "bound_ms": 36.0},
    ]
    hours = partial(recipes.hours, predicted, "configs/deit.py:S")
    assert hours("v5e:2x4", 300e6) == "3.0"
    assert hours("h100", 3e9) == "at least 30"
    assert hours("v6e:2x4", 3e9) is None
