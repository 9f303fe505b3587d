"""A study as a user runs it: interrupted, resumed, shared by processes, pruned, and its table."""

import csv
import json
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
    words = [sys.executable, "-m", "experiments.study", f"--config={spec}"]
    return [*words, f"--output={tmp_path}/out", "--draw=optim.lr=1e-4..1e-2"]


def popen(command):
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, **options)


def open_study(spec, output, space=SPACE, **changes):
    config = cli.load_recipe(spec)
    config.update(changes)
    flags = types.SimpleNamespace(storage=None, prune="none", config=config)
    return study.open_study(flags, output, space)


def test_an_interrupted_study_resumes_its_trial(command, spec, tmp_path):
    output = tmp_path / "out"
    first = popen([*command, "--trials=2"])
    deadline = time.time() + 240
    while not list(output.glob("*/checkpoints/*")):
        assert first.poll() is None and time.time() < deadline, first.communicate()[0]
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    printed = first.communicate(timeout=120)[0]
    assert first.returncode == 75 and "rerun the same command" in printed, printed
    second = popen([*command, "--trials=2"])
    printed = second.communicate(timeout=240)[0]
    assert second.returncode == 0 and "1 of 2 trials exist" in printed, printed
    starts = [json.loads((output / f"000{i}/run.json").read_text())["starts"] for i in (0, 1)]
    assert [len(each) for each in starts] == [2, 1] and starts[0][1]["step"] > 0
    with open(output / "study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done"]
    assert float(rows[0]["val"]) >= float(rows[1]["val"]) > 0
    assert rows[0]["optim.lr"] != rows[1]["optim.lr"]
    assert (output / "study.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="another config: batch_size: 8 -> 16"):
        open_study(spec, output, batch_size=16)


@pytest.mark.slow
def test_a_trial_that_is_worse_than_the_others_is_pruned(command, tmp_path):
    """Five trials with a score that cannot be reached, then one that saves and ends."""
    output = tmp_path / "out"
    output.mkdir()
    backend = optuna.storages.journal.JournalFileBackend(str(output / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    found = optuna.create_study(storage=storage, study_name="out", direction="maximize")
    space = {"optim.lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)}
    for _ in range(5):
        values = dict(params={"optim.lr": 1e-3}, value=2.0, intermediate_values={1: 2.0})
        found.add_trial(optuna.trial.create_trial(distributions=space, **values))
    words = ["--trials=6", "--prune=median", "--config.total_steps=100k", "--config.log_every=4"]
    printed = popen([*command, *words]).communicate(timeout=240)[0]
    assert "trial 5  optim.lr=" in printed and "pruned, eval/val/acc1" in printed, printed
    assert found.trials[-1].state == optuna.trial.TrialState.PRUNED
    assert "| pruned | 0005 |" in (output / "study.md").read_text()
    assert list((output / "0005/checkpoints").iterdir())


@pytest.fixture
def search(spec, tmp_path):
    """Return search(code, trials, ...) -> Search whose runs are shell commands."""
    row = json.dumps({"step": 8, "eval/val/acc1": 0.5})

    def make(code, trials, space=SPACE, seconds=0, stop=lambda: False):
        output = tmp_path / "out"

        def run_of(values, name):
            run = runs.one(spec, values, output / name)
            run.changes = values
            script = f"echo '{row}' > {run.workdir}/metrics.jsonl; sleep {seconds}; exit {code}"
            run.command = ["bash", "-c", f"echo $$ >> {output}/starts; {script}"]
            return run

        found = open_study(spec, output, space)
        return study.Search(found, space, run_of, trials, stop)

    return make


def states(search):
    return [trial.state.name for trial in search.study.trials]


@pytest.mark.parametrize(
    ("code", "exit_code", "state", "count"),
    [(0, 0, "COMPLETE", 2), (1, 1, "FAIL", 2), (3, 0, "PRUNED", 2)]
    + [(2, 2, "FAIL", 1), (4, 4, "RUNNING", 1), (75, 75, "RUNNING", 2)],
)
def test_the_result_of_a_trial(search, monkeypatch, code, exit_code, state, count):
    """Trials that can be resumed stay RUNNING; a user error or a full disk ends the study."""
    monkeypatch.setattr(runs, "MAX_RETRIES", 0)
    mine = search(code, 2)
    mine.optimize(1)
    assert states(mine) == [state] * count
    assert max(mine.codes.values()) == exit_code
    search(0, 2).optimize(1)  # no other process takes the trial as long as this one lives
    assert states(mine)[0] == state
    for lock in mine.locks.values():
        lock.close()
    search(0, 2).optimize(1)
    assert len(states(mine)) == 2
    assert states(mine)[0] == ("COMPLETE" if state == "RUNNING" else state)


def test_two_processes_work_on_one_study(search, tmp_path):
    """A trial is trained by one of them, and both together train as many as one alone would."""
    mine, other = search(0, 5, seconds=1), search(0, 5, seconds=1)
    with futures.ThreadPoolExecutor() as pool:
        for each in [pool.submit(mine.optimize, 2), pool.submit(other.optimize, 2)]:
            each.result()
    assert states(search(0, 5))[:5] == ["COMPLETE"] * 5
    assert len((tmp_path / "out/starts").read_text().split()) == 5
    assert len({str(trial.params) for trial in mine.study.trials[:5]}) == 5
    more = search(0, 9)
    more.optimize(1)
    assert states(more)[:9] == ["COMPLETE"] * 9


def test_a_trial_that_two_processes_queue_is_trained_by_one(search):
    mine, other = search(4, 1), search(0, 2)
    mine.optimize(1)
    trial = mine.study.trials[0]
    mine.study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.WAITING)
    other.optimize(1)  # takes the trial, whose run is locked, and goes on with the next one
    assert states(mine) == ["RUNNING", "COMPLETE"] and other.codes == {1: 0}


def test_a_stopped_study_asks_its_runs_to_end(search):
    began = time.time()
    mine = search(0, 4, seconds=100, stop=lambda: time.time() > began + 2)
    mine.optimize(2)
    assert states(mine) == ["RUNNING"] * 2 and time.time() < began + 60


def test_values_are_trained_once(search, spec, tmp_path):
    mine = search(0, 3, {"seed": ["0"]})
    mine.optimize(1)
    assert [trial.value for trial in mine.study.trials] == [0.5] * 3
    assert len((tmp_path / "out/starts").read_text().split()) == 1
    with pytest.raises(UserError, match="another config: --draw=seed"):
        open_study(spec, tmp_path / "out", {"seed": ["0", "1"]})
