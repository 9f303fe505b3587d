"""A study as a user runs it: killed, gone on with, its trials pruned, and its table."""

import csv
import json
import signal
import subprocess
import sys
import time
import types

import pytest

from experiments import runs, study
from tests import ROOT
from vit_jax import cli
from vit_jax.errors import UserError

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: make install EXTRA=sweep")
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
RECIPE = """
from configs import digits
from tests.tiny import tiny

def get_config():
    c = tiny(digits.get_config())
    c.data.synthetic.images, c.total_steps, c.log_every = 32, "8", "4"
    c.eval_every, c.checkpoint_every = "4", "1"
    return c
"""


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


def run(command, **options):
    options |= dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, **options)


def test_a_study_is_killed_and_goes_on(command, spec, tmp_path):
    """The trial that ran goes on in its folder; the table has it, and the second one."""
    output = tmp_path / "out"
    first, deadline = run([*command, "--trials=2"]), time.time() + 240
    while not list(output.glob("*/checkpoints/*")):
        assert first.poll() is None and time.time() < deadline, first.communicate()[0]
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=120)[0]
    assert first.returncode == 75 and "the same command goes on" in said, said
    second = run([*command, "--trials=2"])
    said = second.communicate(timeout=240)[0]
    assert second.returncode == 0 and "1 of 2 trials are there" in said, said
    starts = [json.loads((output / f"000{i}/run.json").read_text())["starts"] for i in (0, 1)]
    assert [len(each) for each in starts] == [2, 1] and starts[0][1]["step"] > 0
    with open(output / "study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done"]
    assert float(rows[0]["val"]) >= float(rows[1]["val"]) > 0
    assert rows[0]["optim.lr"] != rows[1]["optim.lr"]
    assert (output / "study.png").read_bytes()[:4] == b"\x89PNG"
    again = types.SimpleNamespace(storage=None, prune="none", config=cli.load_recipe(spec))
    again.config.batch_size = 16
    with pytest.raises(UserError, match="another config: batch_size: 8 -> 16"):
        study.open_study(optuna, again, output, {"optim.lr": ()})


@pytest.mark.slow
def test_a_trial_that_does_worse_than_the_others_did_is_pruned(command, tmp_path):
    """Five trials that were as good as none can be, then a real one: it saves and ends."""
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
    said = run([*command, *words]).communicate(timeout=240)[0]
    assert "trial 5  optim.lr=" in said and "pruned, eval/val/acc1" in said, said
    assert found.trials[-1].state == optuna.trial.TrialState.PRUNED
    assert "| pruned | 0005 |" in (output / "study.md").read_text()
    assert list((output / "0005/checkpoints").iterdir())


def test_what_becomes_of_a_trial(spec, tmp_path):
    """By its exit code; and who goes on with it."""

    def trials(space):
        return study.Trials(optuna, found, space, lambda v, n: runs.one(spec, v, tmp_path / n))

    def end(code):
        run = mine.new(99)
        run.log.parent.mkdir()
        run.log.write_text("error: what it says\n")
        return mine.end(run, code)

    found, space = optuna.create_study(direction="maximize"), {"optim.lr": (1e-4, 1e-2)}
    mine = trials(space)
    assert [end(code) for code in (3, 1, 75)] == [0, 1, 75]
    with pytest.raises(UserError, match="^what it says"):
        end(2)
    with pytest.raises(OSError, match="No space"):
        end(4)
    states = [trial.state.name for trial in found.trials]
    assert states == ["PRUNED", "FAIL", "RUNNING", "FAIL", "RUNNING"]
    assert len({str(trial.params) for trial in found.trials}) == 5
    assert mine.left_over() is None  # not by who had it already
    run = trials(space).left_over()
    assert run.name == "0002" and run.changes.keys() == space.keys()
    run.command = [sys.executable, "-c", "import time; time.sleep(100)"]
    process = runs.start(run)
    assert trials(space).left_over().name == "0004"
    process.kill()
    process.wait()
    # Values that were tried are not trained again.
    found = optuna.create_study(direction="maximize")
    mine = trials({"seed": ["0"]})
    found.tell(mine.trials[mine.new(3)], 0.5)
    assert mine.new(3) is None
    assert [trial.value for trial in found.trials] == [0.5] * 3
    mine = trials({"seed": ["0", "1"]})
    with pytest.raises(UserError, match="dynamic value space"):
        mine.new(4)
