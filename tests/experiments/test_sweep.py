"""Test experiments.sweep and experiments.runs: planning, resuming, locking, and the table."""

import csv
import io
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
    c.max_bad_steps = 1
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


def test_grid_and_sampled_overrides(spec, tmp_path):
    grid = sweep.sweep_overrides(
        spec, Flags(grid=["optim.lr=1e-3,3e-3", "augment.scale=(0.5,1.0),(0.1,1.0)"])
    )
    assert len(grid) == 4 and grid[0] == {"optim.lr": "1e-3", "augment.scale": "(0.5,1.0)"}
    flags = Flags(draw=["optim.lr=1e-4..1e-2", "seed=0,1"])
    samples = sweep.sweep_overrides(spec, flags)
    assert len(samples) == 3 and all(1e-4 <= float(s["optim.lr"]) <= 1e-2 for s in samples)
    assert samples == sweep.sweep_overrides(spec, flags)  # reproducible
    assert len(sweep.sweep_overrides(spec, Flags())) == 3
    jobs = runs.plan_sweep(spec, {"batch_size": "4"}, grid, tmp_path)
    assert jobs[0].config.batch_size == 4 and jobs[3].config.augment.scale == (0.1, 1.0)
    assert len({job.workdir for job in jobs}) == 4
    for invalid, message in [
        ("optim.lrr=1", "optim.lr?"),
        ("seed=x", "an integer"),
        ("seed", "must be"),
    ]:
        with pytest.raises(UserError, match=message):
            overrides = sweep.sweep_overrides(spec, Flags(grid=[invalid]))
            runs.plan_sweep(spec, {}, overrides, tmp_path)
    with pytest.raises(UserError, match="also swept"):
        runs.plan_sweep(spec, {"optim.lr": "1"}, grid, tmp_path)


def test_interrupted_sweep_resumes(spec, tmp_path):
    """Of three runs, one diverges; the second call trains the unfinished runs."""
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
    output_text = first.communicate(timeout=120)[0]
    assert first.returncode == 75 and "of 3 runs" in output_text, output_text
    table = subprocess.run([*command, "--table"], **options)
    assert table.returncode == 0 and table.stdout.count("| not finished |") == 3, table.stdout
    second = subprocess.run(command, **options)
    assert second.returncode == 3, second.stdout  # the largest exit code of the runs
    with open(output / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done", "not finished"]
    assert float(rows[0]["val"]) >= float(rows[1]["val"]) and rows[2]["optim.lr"] == "1e+30"
    assert (output / "sweep.md").read_text() in second.stdout
    assert (output / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    # The third call trains only the run that diverged.
    third = subprocess.run(command, **options)
    assert "3 runs, 2 already finished" in third.stdout


def make_job(tmp_path, name, script):
    config = types.SimpleNamespace(best_metric="eval/val/acc1")
    return runs.Job(name, tmp_path / name, config, {}, ["bash", "-c", script])


def test_preempted_jobs_are_restarted(tmp_path):
    """Restarts are limited, and pruned jobs are not restarted, whether they save or are killed."""
    scripts = {
        "preempted_once": "[ -f tried ] && exit 0; touch tried; exit 75",
        "always_preempted": "exit 75",
        "user_error": "exit 2",
        "killed": "kill -9 $$",
        "pruned_killed": "sleep 100",
        "pruned_saved": "trap 'exit 75' USR1; touch ready; while true; do sleep 0.05; done",
    }
    jobs = [make_job(tmp_path, name, f"cd {tmp_path}; {text}") for name, text in scripts.items()]

    def prune(job):
        ready = (tmp_path / "ready").exists()
        return job.name == "pruned_killed" or job.name == "pruned_saved" and ready

    codes = {job.name: code for job, code in runs.as_completed(jobs, 3, lambda: False, prune)}
    assert codes == {
        "preempted_once": 0,
        "always_preempted": 75,
        "user_error": 2,
        "killed": 1,
        "pruned_killed": 75,
        "pruned_saved": 75,
    }


def test_job_is_run_by_one_process(tmp_path):
    """The lock outlives a killed sweep, and training is not distributed over SLURM processes."""
    job = make_job(tmp_path, "run", "echo $VIT_JAX_DISTRIBUTED; sleep 100")
    process = runs.start(job)
    try:
        assert runs.is_locked(job) and runs.start(job) is None
        assert [code for _, code in runs.as_completed([job], 1, lambda: False)] == [None]
        polls = iter([False, False, False, True])
        with pytest.raises(Preempted, match="0 of 1"):  # waits until it is stopped
            runs.run_all([job], 1, lambda: next(polls, True))
        while not job.log.read_text():
            assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not runs.is_locked(job) and job.log.read_text() == "off\n"


def test_plot_draws_hostile_values_as_they_are():
    values = ["$x$", "$unbalanced", "a\nb", "\x1b[31m", "\u202egpj"]
    rows = [{"data.name": value, "val": i / 10} for i, value in enumerate(values)]
    figure = sweep.plot(rows, ["data.name"], "eval/val/$acc")
    figure.savefig(io.BytesIO(), format="png")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["$x$", "$unbalanced", "a\nb", r"\x1b[31m", r"\u202egpj"]
    assert not any(text.get_parse_math() for text in figure.axes[0].get_xticklabels()[:2])
