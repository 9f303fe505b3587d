"""A sweep as a user runs it: planned, interrupted, resumed, and its table."""

import csv
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from experiments import runs, sweep
from tests import ROOT
from vit_jax.errors import Preempted, UserError

RECIPE = """
from configs import digits
from tests.tiny import tiny

def get_config():
    c = tiny(digits.get_config())
    c.data.synthetic.images = 32
    c.total_steps = "4"
    c.log_every = "2"
    c.checkpoint_every = "1"
    return c

def sweep():
    yield {"optim.lr": 1e-3}
    yield {"optim.lr": 1e-2}
    yield {"optim.lr": 1e30, "optim.name": "sgd"}  # diverges
"""


class Flags:
    grid = ()
    draw = ()
    draws = 3

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
    assert drawn == sweep.choices(spec, flags)  # reproducible
    assert len(sweep.choices(spec, Flags())) == 3
    planned = runs.plan(spec, {"batch_size": "4"}, grid, tmp_path)
    assert planned[0].config.batch_size == 4 and planned[3].config.augment.scale == (0.1, 1.0)
    assert len({run.workdir for run in planned}) == 4
    for bad, words in [
        ("optim.lrr=1", "optim.lr?"),
        ("seed=x", "a whole number"),
        ("seed", "must be"),
    ]:
        with pytest.raises(UserError, match=words):
            runs.plan(spec, {}, sweep.choices(spec, Flags(grid=[bad])), tmp_path)
    with pytest.raises(UserError, match="also swept"):
        runs.plan(spec, {"optim.lr": "1"}, grid, tmp_path)


def test_an_interrupted_sweep_resumes(spec, tmp_path):
    """Two good runs and one that diverges; the second call trains the unfinished ones."""
    output = tmp_path / "sweep"
    command = [sys.executable, "-m", "experiments.sweep", f"--config={spec}", f"--output={output}"]
    command += [f"--config.compilation_cache={tmp_path}/cache"]
    options = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = subprocess.Popen(command, **options)
    deadline = time.time() + 240
    while not list(output.glob("*/checkpoints/*")):
        assert first.poll() is None and time.time() < deadline, first.communicate()[0]
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    printed = first.communicate(timeout=120)[0]
    assert first.returncode == 75 and "of 3 runs" in printed, printed
    table = subprocess.run([*command, "--table"], **options)
    assert table.returncode == 0 and table.stdout.count("| not finished |") == 3, table.stdout
    second = subprocess.run(command, **options)
    assert second.returncode == 3, second.stdout  # the largest of the runs' exit codes
    with open(output / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done", "not finished"]
    assert float(rows[0]["val"]) >= float(rows[1]["val"]) and rows[2]["optim.lr"] == "1e+30"
    assert (output / "sweep.md").read_text() in second.stdout
    assert (output / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    # The third call trains only the run that failed.
    third = subprocess.run(command, **options)
    assert "3 runs, 2 already finished" in third.stdout


def run_of(tmp_path, name, script):
    config = types.SimpleNamespace(best_metric="eval/val/acc1")
    return runs.Job(name, tmp_path / name, config, {}, ["bash", "-c", script])


def test_which_runs_are_restarted(tmp_path):
    """Preempted runs, a few times, but not pruned ones, whether they save or are killed."""
    scripts = {"once": "[ -f tried ] && exit 0; touch tried; exit 75", "always": "exit 75"}
    scripts |= {"bad": "exit 2", "killed": "kill -9 $$", "deaf": "sleep 100"}
    scripts["polite"] = "trap 'exit 75' USR1; touch there; while true; do sleep 0.05; done"
    planned = [run_of(tmp_path, name, f"cd {tmp_path}; {text}") for name, text in scripts.items()]

    def prune(run):
        return run.name == "deaf" or run.name == "polite" and (tmp_path / "there").exists()

    codes = {run.name: code for run, code in runs.follow(planned, 3, lambda: False, prune)}
    expected = {"once": 0, "always": 75, "bad": 2, "killed": 1, "deaf": 75, "polite": 75}
    assert codes == expected


def test_a_run_is_trained_by_one_process(tmp_path):
    """Even if the sweep that started it is killed; it ignores the other processes of SLURM."""
    run = run_of(tmp_path, "run", "echo $VIT_JAX_DISTRIBUTED; sleep 100")
    process = runs.start(run)
    try:
        assert runs.busy(run) and runs.start(run) is None
        assert [code for _, code in runs.follow([run], 1, lambda: False)] == [None]
        polls = iter([False, False, False, True])
        with pytest.raises(Preempted, match="0 of 1"):  # waits until it is stopped
            runs.make([run], 1, lambda: next(polls, True))
        while not run.log.read_text():
            assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not runs.busy(run) and run.log.read_text() == "off\n"
