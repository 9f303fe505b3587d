"""A sweep as a user runs it: planned, killed, gone on with, and its table."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import sweep
from vit_jax.cli import UserError

ROOT = Path(__file__).parents[1]
RECIPE = """
from configs import common, digits

def get_config():
    c = common.tiny(digits.get_config())
    c.data.synthetic.images, c.total_steps, c.log_every = 32, "4", "2"
    c.checkpoint_every = "1"
    return c

def sweep():
    yield {"optim.lr": 1e-3}
    yield {"optim.lr": 1e-2}
    yield {"optim.lr": 1e30, "optim.name": "sgd"}  # diverges
"""


class Flags:
    grid, draw, draws = (), (), 3

    def __init__(self, **changes):
        vars(self).update(changes)


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "recipes" / "small.py"
    path.parent.mkdir()
    path.write_text(RECIPE)
    return str(path)


def test_what_is_swept(spec, tmp_path):
    grid = sweep.choices(
        spec, Flags(grid=["optim.lr=1e-3,3e-3", "augment.scale=(0.5,1.0),(0.1,1.0)"])
    )
    assert len(grid) == 4 and grid[0] == {"optim.lr": "1e-3", "augment.scale": "(0.5,1.0)"}
    flags = Flags(draw=["optim.lr=1e-4..1e-2", "seed=0,1"])
    drawn = sweep.choices(spec, flags)
    assert len(drawn) == 3 and all(1e-4 <= float(d["optim.lr"]) <= 1e-2 for d in drawn)
    assert drawn == sweep.choices(spec, flags)  # said again, it is the same sweep
    assert len(sweep.choices(spec, Flags())) == 3
    runs = sweep.plan(spec, {"batch_size": "4"}, grid, tmp_path)
    assert runs[0].config.batch_size == 4 and runs[3].config.augment.scale == (0.1, 1.0)
    assert len({run.workdir for run in runs}) == 4
    for bad, words in [
        ("optim.lrr=1", "optim.lr?"),
        ("seed=x", "a whole number"),
        ("seed", "must be"),
    ]:
        with pytest.raises(UserError, match=words):
            sweep.plan(spec, {}, sweep.choices(spec, Flags(grid=[bad])), tmp_path)
    with pytest.raises(UserError, match="fixed by the command line"):
        sweep.plan(spec, {"optim.lr": "1"}, grid, tmp_path)


def test_a_sweep_is_killed_and_goes_on(spec, tmp_path):
    """Two good runs and one that diverges; the second call does only what is left."""
    output = tmp_path / "sweep"
    command = [sys.executable, "-m", "experiments.sweep", f"--config={spec}", f"--output={output}"]
    command += [f"--config.compilation_cache={tmp_path}/cache"]
    options = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first, deadline = subprocess.Popen(command, **options), time.time() + 240
    while not list(output.glob("*/checkpoints/*")):
        assert first.poll() is None and time.time() < deadline, first.communicate()[0]
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=120)[0]
    assert first.returncode == 75 and "of 3 runs done" in said, said
    second = subprocess.run(command, **options)
    assert second.returncode == 3, second.stdout  # the largest of the runs' exit codes
    with open(output / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done", "not finished"]
    assert float(rows[0]["val"]) >= float(rows[1]["val"]) and rows[2]["optim.lr"] == "1e+30"
    assert (output / "sweep.md").read_text() in second.stdout
    assert (output / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    # What is done is not done again: the third call trains only what had failed.
    third = subprocess.run(command, **options)
    assert "3 runs, 2 done already" in third.stdout
