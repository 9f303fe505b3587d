"""Test experiments.sweep: planning, resuming, locking, the states, the table and the figure."""

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from experiments import runs, sweep, sweep_figure, sweep_results, sweep_status
from experiments.sweep_results import Result, group
from tests import ROOT
from vit_jax.config import schema
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
    assert table.returncode == 0 and "0 of 3 runs finished; 3 missing" in table.stdout, table.stdout
    assert "interrupted (step " in table.stdout and not (output / "sweep.png").exists()
    second = subprocess.run(command, **options)
    assert second.returncode == 3, second.stdout  # the largest exit code of the runs
    with open(output / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["finished"] for row in rows] == ["1", "1", "0"]
    assert float(rows[0]["val_mean"]) >= float(rows[1]["val_mean"]) > 0
    assert rows[2]["optim.lr"] == "1e+30" and rows[2]["val_mean"] == ""
    table = (output / "sweep.md").read_text()
    assert "| failed (diverged) |" in table and "2 of 3 runs finished; 1 missing: 1 failed" in table
    assert table.splitlines()[0] in second.stdout
    with open(output / "sweep_runs.csv", newline="") as file:
        states = {row["folder"]: row["state"] for row in csv.DictReader(file)}
    assert list(states.values()) == ["done", "done", "failed"]
    assert all((output / folder / "config.json").exists() for folder in states)
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


METRIC = "eval/val/acc1"


@pytest.mark.parametrize(
    ("script", "state", "reason"),
    [
        ("exit 3", "failed", "diverged"),
        ("echo error: no such file; exit 2", "failed", "no such file"),
        ("kill -9 $$", "failed", "killed by SIGKILL"),
        ("printf 'a line without an end'; exit 4", "failed", "disk full"),
        ("exit 75", "interrupted", ""),
        ("sleep 100", "running", ""),
    ],
)
def test_state_of_a_run_is_read_from_its_workdir(tmp_path, monkeypatch, script, state, reason):
    """Another process, such as --table, sees the same states as the sweep."""
    monkeypatch.setattr(runs, "MAX_RETRIES", 0)
    job = make_job(tmp_path, "run", f"exec 2>/dev/null; {script}")
    job.config.total_steps = "2ep"
    assert sweep_results.read(job).state == "waiting"
    job.workdir.mkdir()
    row = {"step": 40, METRIC: 0.5}
    (job.workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    facts = {"steps_per_epoch": 30, "data": {"num_classes": 2, "class_names": ["a", "b"]}}
    (job.workdir / "run.json").write_text(json.dumps(facts))
    if state == "running":
        process = runs.start(job)
    else:
        list(runs.as_completed([job], 1, lambda: False))
    try:
        result = sweep_results.read(job)
    finally:
        if state == "running":
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert (result.state, result.reason) == (state, reason)
    assert (result.step, result.total, result.latest) == (40, 60, 0.5)


def make_results(grid, scores, **facts):
    """Return a done Result per combination; scores has a list of one score per seed for each."""
    results = []
    for values, found in zip(itertools.product(*grid.values()), scores, strict=True):
        for seed, val in enumerate(found):
            changes = dict(zip(grid, values, strict=True)) | {"seed": str(seed)}
            state = "waiting" if val is None else "done"
            results.append(Result(changes, str(changes), state, val=val, test=val, **facts))
    return results


def test_rows_are_settings_with_mean_and_spread_over_seeds():
    scores = [[0.90, 0.92], [0.95], [0.97, None, 0.99]]
    results = make_results({"optim.lr": ["1e-4", "1e-3", "1e-2"]}, scores)
    failed = Result({"optim.lr": "1e-4", "seed": "2"}, "x", "failed", "diverged", val=0.1)
    running = Result(
        {"optim.lr": "1e-3", "seed": "1"}, "y", "running", step=40, total=60, latest=0.944, val=0.99
    )
    settings = sweep_results.best_first(group([*results, failed, running]))
    lines = sweep_results.format_table(settings, METRIC, live=True).splitlines()
    assert lines[0] == "| optim.lr | val acc1 (%) | test acc1 (%) | images/s | runs |"
    assert lines[2:5] == [
        "| 1e-2 | 98.0 ± 1.4 (2) | 98.0 ± 1.4 (2) | - | 2 of 3 done, 1 waiting |",
        "| 1e-3 | 95.0 (1) | 95.0 (1) | - | "
        "1 of 2 done, 1 running (seed 1, step 40/60, val 94.4%) |",
        "| 1e-4 | 91.0 ± 1.4 (2) | 91.0 ± 1.4 (2) | - | "
        "2 of 3 done, 1 failed (seed 2, diverged, step 0) |",
    ]
    text = sweep_results.format_table(settings, METRIC)
    assert "40/60" not in text and "1 failed (diverged)" in text
    assert "5 of 8 runs finished; 3 missing: 1 running, 1 failed, 1 waiting." in text
    row = sweep_results.csv_rows(settings, METRIC)[1]
    assert (row["val_mean"], row["val_std"], row["finished"], row["missing"]) == (95, None, 1, 1)
    assert "0.1234 (1)" in sweep_results.format_mean([0.1234], "eval/val/auc")


def test_display_prints_lines_without_a_terminal_and_a_table_on_one(monkeypatch):
    settings = group(make_results({"optim.lr": ["1e-3", "1e-2"]}, [[0.9], [None]]))
    monkeypatch.setattr(sweep_status, "REFRESH_SECONDS", 0)

    def show(terminal):
        stream = io.StringIO()
        stream.isatty = lambda: terminal
        monkeypatch.setenv("TERM", "xterm")
        with sweep_status.Display(lambda: settings, METRIC, stream) as display:
            display.update()
            display.update()
        return stream.getvalue()

    assert show(False) == "1 of 2 runs finished; 1 missing: 1 waiting\n"  # not twice a minute
    shown = show(True)
    assert "90.0 (1)" in shown and "waiting" in shown


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ("1e-4 3e-4 1e-3 1e-2 1e-1", "log"),
        ("64 128 256", "log"),
        ("0 0.01 0.1", "symlog"),
        ("0 0.1 0.2", "linear"),
        ("0.1 0.2 0.3 0.4", "linear"),
        ("-1 1 100", "linear"),
        ("adamw sgd", "text"),
        ("1 nan", "text"),
    ],
)
def test_axis_scale_follows_from_the_values(values, scale):
    settings = [sweep_results.Setting({"key": value}, []) for value in values.split()]
    assert sweep_figure.Axis("key", settings).scale == scale
    assert sweep_figure.choose_scale([1e-3, 2e-3], "optim.lr") == "log"


def draw(grid, scores):
    """Return the figure of a sweep, drawn, so that ticks and positions are final."""
    figure = sweep_figure.plot(group(make_results(grid, scores)), METRIC)
    figure.savefig(io.BytesIO(), format="png")
    return figure


def tick_labels(ax):
    low, high = sorted(ax.get_xlim())
    return [t.get_text() for t in ax.get_xticklabels() if low <= t.get_position()[0] <= high]


def test_figure_of_one_key_has_error_bars_seeds_and_the_name_of_a_paper():
    figure = draw({"optim.lr": ["1e-4", "1e-3", "1e-2"]}, [[0.9, 0.92], [0.95], [0.97, None]])
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_xscale()) == ("learning rate", "log")
    assert ax.get_ylabel() == "validation top-1 accuracy (%)"
    assert tick_labels(ax) == ["1e-4", "1e-3", "1e-2"]
    (bars,) = ax.containers
    means = [round(y, 6) for y in bars.lines[0].get_ydata()]
    assert means == [91, 95, 97]
    heights = [s[1][1] - s[0][1] for s in bars.lines[2][0].get_segments() if len(s)]
    assert [round(h, 3) for h in heights if h == h] == [2.828]  # of the setting with two seeds
    seeds = ax.lines[-1].get_ydata()
    assert [round(y, 6) for y in seeds] == [90, 92]
    assert ax.get_ylim()[0] < 90 < 97 < ax.get_ylim()[1]
    title = "mean ± standard deviation, 1 to 2 seeds\n4 of 5 runs finished; 1 missing: 1 waiting"
    assert figure.get_suptitle() == title


def test_figure_of_two_keys_has_a_line_each_and_a_legend_beside_the_axes():
    grid = {"optim.weight_decay": ["0", "0.01", "0.1"], "optim.lr": ["1e-3", "1e-2"]}
    figure = draw(grid, [[0.9, 0.91, None]] * 6)
    (ax,) = figure.axes
    (legend,) = figure.legends
    assert ax.get_xlabel() == "learning rate" and len(ax.containers) == 3
    assert legend.get_title().get_text() == "weight decay"
    assert [text.get_text() for text in legend.get_texts()] == ["0", "0.01", "0.1"]
    assert legend.get_window_extent().x0 >= ax.get_window_extent().x1
    width, height = figure.bbox.size
    box = figure._suptitle.get_window_extent()
    assert box.x0 > 0 and box.x1 < width and box.y1 <= height
    assert not box.overlaps(legend.get_window_extent())


def test_figures_of_three_keys_random_samples_and_more_keys():
    three = {"optim.lr": ["1e-3", "1e-2"], "batch_size": ["64", "128"], "optim.name": ["a", "b"]}
    panels = [ax.get_title() for ax in draw(three, [[0.9]] * 8).axes]
    assert panels == ["optimizer a", "optimizer b"]
    four = three | {"model.variant": ["Ti/16", "S/16"]}
    (ranking,) = draw(four, [[i / 100, i / 100] for i in range(16)]).axes
    best = ranking.get_yticklabels()[0].get_text()
    assert best == "learning rate 1e-2, batch size 128, optimizer b, model S/16"
    samples = [
        Result({"optim.lr": f"{i}e-3", "model.drop_path": f"0.{i % 3}"}, str(i), "done", val=0.9)
        for i in range(1, 10)
    ]
    slices = sweep_figure.plot(group(samples), METRIC)
    assert [ax.get_xlabel() for ax in slices.axes] == ["learning rate", "drop path rate"]
    (only_seeds,) = draw({}, [[0.9, 0.8]]).axes
    assert len(only_seeds.containers) == 1 and only_seeds.get_xlabel() == ""


def test_names_are_those_of_config_keys():
    assert sweep_figure.NAMES.keys() <= schema().keys()


def test_plot_draws_hostile_values_as_they_are():
    values = ["$x$", "$unbalanced", "a\nb", "\x1b[31m", "\u202egpj"]
    results = make_results({"data.name": values}, [[i / 10] for i in range(5)])
    figure = sweep_figure.plot(group(results), "eval/val/$acc")
    figure.savefig(io.BytesIO(), format="png")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["$x$", "$unbalanced", r"a\nb", r"\x1b[31m", r"\u202egpj"]
    assert not any(text.get_parse_math() for text in figure.axes[0].get_xticklabels()[:2])
