"""Test experiments.study: resuming, pruning, several processes, and the table."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
import types
from concurrent import futures

import pytest

from experiments import runs, study
from tests import ROOT
from vit_jax import cli
from vit_jax.errors import UserError

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: make install EXTRA=sweep")
RECIPE = """
from configs import digits
from tests.tiny import tiny

def get_config():
    c = tiny(digits.get_config())
    c.data.synthetic.images = 32
    c.total_steps = "8"
    c.log_every = "4"
    c.eval_every = "4"
    c.checkpoint_every = "1"
    return c
"""
SPACE = {"optim.lr": (1e-4, 1e-2)}


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "recipes" / "small.py"
    path.parent.mkdir()
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def command(spec, tmp_path):
    command = [sys.executable, "-m", "experiments.study", f"--config={spec}"]
    return [*command, f"--output={tmp_path}/out", "--draw=optim.lr=1e-4..1e-2"]


def start(command):
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, **options)


def open_study(spec, output, space=SPACE, **changes):
    config = cli.load_recipe(spec)
    config.update(changes)
    flags = types.SimpleNamespace(storage=None, prune="none", config=config)
    return study.open_study(flags, output, space)


def test_interrupted_study_resumes_its_trial(command, spec, tmp_path):
    output = tmp_path / "out"
    first = start([*command, "--trials=2"])
    deadline = time.time() + 240
    while not list(output.glob("*/checkpoints/*")):
        assert first.poll() is None and time.time() < deadline, first.communicate()[0]
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    output_text = first.communicate(timeout=120)[0]
    assert first.returncode == 75 and "rerun the same command" in output_text, output_text
    second = start([*command, "--trials=2"])
    output_text = second.communicate(timeout=240)[0]
    assert second.returncode == 0 and "1 of 2 trials exist" in output_text, output_text
    starts = [json.loads((output / f"000{i}/run.json").read_text())["starts"] for i in (0, 1)]
    assert [len(run) for run in starts] == [2, 1] and starts[0][1]["step"] > 0
    with open(output / "study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["finished"] for row in rows] == ["1", "1"]
    assert float(rows[0]["val_mean"]) >= float(rows[1]["val_mean"]) > 0
    assert "| trial | optim.lr | val acc1 (%) |" in (output / "study.md").read_text()
    assert rows[0]["optim.lr"] != rows[1]["optim.lr"]
    assert (output / "study.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="another config: batch_size: 8 -> 16"):
        open_study(spec, output, batch_size=16)


@pytest.mark.slow
def test_trial_worse_than_the_median_is_pruned(command, tmp_path):
    """After five trials with an unreachable score, the sixth saves a checkpoint and exits."""
    output = tmp_path / "out"
    output.mkdir()
    backend = optuna.storages.journal.JournalFileBackend(str(output / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    existing = optuna.create_study(storage=storage, study_name="out", direction="maximize")
    space = {"optim.lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)}
    for _ in range(5):
        values = dict(params={"optim.lr": 1e-3}, value=2.0, intermediate_values={1: 2.0})
        existing.add_trial(optuna.trial.create_trial(distributions=space, **values))
    flags = ["--trials=6", "--prune=median", "--config.total_steps=100k", "--config.log_every=4"]
    output_text = start([*command, *flags]).communicate(timeout=240)[0]
    assert "trial 5  optim.lr=" in output_text, output_text
    assert "pruned, eval/val/acc1" in output_text, output_text
    assert existing.trials[-1].state == optuna.trial.TrialState.PRUNED
    assert re.search(r"^\| 5 \|.*\| pruned \|$", (output / "study.md").read_text(), re.MULTILINE)
    assert list((output / "0005/checkpoints").iterdir())


@pytest.fixture
def search(spec, tmp_path):
    """Return a function that creates a Search whose training commands are shell scripts."""
    row = json.dumps({"step": 8, "eval/val/acc1": 0.5})

    def make_search(code, trials, space=SPACE, seconds=0, stop=lambda: False):
        output = tmp_path / "out"

        def make_job(values, name):
            job = runs.make_job(spec, values, output / name)
            job.changes = values
            script = f"echo '{row}' > {job.workdir}/metrics.jsonl; sleep {seconds}; exit {code}"
            job.command = ["bash", "-c", f"echo $$ >> {output}/starts; {script}"]
            return job

        return study.Search(open_study(spec, output, space), space, make_job, trials, stop)

    return make_search


def states(search):
    return [trial.state.name for trial in search.study.trials]


@pytest.mark.parametrize(
    ("code", "exit_code", "state", "count"),
    [(0, 0, "COMPLETE", 2), (1, 1, "FAIL", 2), (3, 0, "PRUNED", 2)]
    + [(2, 2, "FAIL", 1), (4, 4, "RUNNING", 1), (75, 75, "RUNNING", 2)],
)
def test_trial_state_and_exit_code(search, monkeypatch, code, exit_code, state, count):
    """Trials that can be resumed stay RUNNING; a user error or a full disk ends the study."""
    monkeypatch.setattr(runs, "MAX_RETRIES", 0)
    first = search(code, 2)
    first.optimize(1)
    assert states(first) == [state] * count
    assert max(first.codes.values()) == exit_code
    shown = [s.results[0] for s in study.make_reader(first.study, 9, first.make_job)()]
    if state in ("FAIL", "PRUNED"):  # diverged trials are pruned for Optuna
        assert [result.state for result in shown] == ["failed"] * count
        assert (shown[0].reason == "diverged") == (code == 3) and shown[0].trial == 0
    search(0, 2).optimize(1)  # does not resume the trial while `first` holds its lock
    assert states(first)[0] == state
    for lock in first.locks.values():
        lock.close()
    search(0, 2).optimize(1)
    assert len(states(first)) == 2
    assert states(first)[0] == ("COMPLETE" if state == "RUNNING" else state)


def test_two_processes_share_one_study(search, tmp_path):
    """Each trial is trained by one process, and the total number of trials is as configured."""
    first = search(0, 5, seconds=1)
    second = search(0, 5, seconds=1)
    with futures.ThreadPoolExecutor() as pool:
        for future in [pool.submit(first.optimize, 2), pool.submit(second.optimize, 2)]:
            future.result()
    assert states(search(0, 5))[:5] == ["COMPLETE"] * 5
    assert len((tmp_path / "out/starts").read_text().split()) == 5
    assert len({str(trial.params) for trial in first.study.trials[:5]}) == 5
    extended = search(0, 9)
    extended.optimize(1)
    assert states(extended)[:9] == ["COMPLETE"] * 9


def test_locked_trial_in_the_queue_is_skipped(search):
    first = search(4, 1)
    second = search(0, 2)
    first.optimize(1)
    trial = first.study.trials[0]
    first.study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.WAITING)
    second.optimize(1)  # finds the queued trial locked by `first`, and creates the next trial
    assert states(first) == ["RUNNING", "COMPLETE"] and second.codes == {1: 0}


def test_stopped_study_interrupts_its_jobs(search):
    start_time = time.time()
    stopped = search(0, 4, seconds=100, stop=lambda: time.time() > start_time + 2)
    stopped.optimize(2)
    assert states(stopped) == ["RUNNING"] * 2 and time.time() < start_time + 60


def test_repeated_values_are_trained_once(search, spec, tmp_path):
    repeated = search(0, 3, {"seed": ["0"]})
    repeated.optimize(1)
    assert [trial.value for trial in repeated.study.trials] == [0.5] * 3
    assert len((tmp_path / "out/starts").read_text().split()) == 1
    with pytest.raises(UserError, match="another config: --draw=seed"):
        open_study(spec, tmp_path / "out", {"seed": ["0", "1"]})
