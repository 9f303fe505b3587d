"""Training as a user runs it: it resumes to the same bits, stops when asked, says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import digits
from tests import ROOT
from tests.tiny import tiny
from vit_jax import train
from vit_jax.errors import Diverged, Preempted, UserError
from vit_jax.run import Run
from vit_jax.workdir import checkpoint, log


def recipe(**over):
    c = tiny(digits.get_config())
    c.data.name = "digits"
    c.model.image, c.total_steps = 8, "12"
    c.log_every, c.eval_every, c.checkpoint_every = "2", "4", "4"
    c.model.drop_path, c.augment.erase, c.augment.mixup = 0.2, 0.25, 0.2
    c.compilation_cache = ""
    for key, value in over.items():
        group, _, leaf = key.rpartition("__")
        (c[group] if group else c)[leaf] = value
    return c


def train_on_one(config, workdir, stop=lambda: False):
    """Eight simulated devices cost a minute of compilation; what is tested here needs one."""
    return train.train(config, workdir, stop, jax.devices()[:1])


def rows(workdir):
    kept = []
    for row in log.read_metrics(workdir):
        kept.append({k: v for k, v in row.items() if not k.startswith("perf/")})
    return kept


def state(workdir, config):
    run = Run(config, jax.devices()[:1])
    with checkpoint.Checkpoints(workdir) as saved:
        return saved.latest(), jax.device_get(saved.restore(run.abstract))


class StopAfter:
    """Asks to stop once it was polled so often, which is once a step."""

    def __init__(self, polls):
        self.polls = polls

    def __call__(self):
        self.polls -= 1
        return self.polls < 0


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    """Parameters, optimizer, EMA and rows; stopped at a step where nothing was due."""
    config = recipe()
    for name in ("whole", "parts"):
        train.claim(tmp_path / name, config)
    train_on_one(config, tmp_path / "whole")
    with pytest.raises(Preempted, match="step"):
        train_on_one(config, tmp_path / "parts", StopAfter(6))
    stopped = log.read_metrics(tmp_path / "parts")[-1]["step"]
    assert stopped == 6
    # A crash after that left rows that no checkpoint stands for.
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "train/loss": 9.9}\n{"step": 12, "tra')
    train_on_one(config, tmp_path / "parts")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    (step, whole), (other, parts) = (state(tmp_path / n, config) for n in ("whole", "parts"))
    assert step == other == 12
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    starts = json.loads((tmp_path / "parts/run.json").read_text())["starts"]
    assert len(starts) == 2 and starts[1]["step"] > 0


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
    config = recipe(total_steps="4")
    train.claim(tmp_path, config)
    first = train_on_one(config, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train_on_one(config, tmp_path) == first
    assert "done" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    # A longer run goes on from there.
    longer = recipe(total_steps="6")
    train.claim(tmp_path, longer)
    assert train_on_one(longer, tmp_path)["eval/test/images"] == 360
    assert state(tmp_path, longer)[0] == 6


def test_newest_and_best_checkpoints_stay(tmp_path):
    config = recipe(keep_checkpoints=1, checkpoint_every="1", eval_every="1", total_steps="8")
    train.claim(tmp_path, config)
    result = train_on_one(config, tmp_path)
    scores = {r["step"]: r["eval/val/acc1"] for r in rows(tmp_path) if "eval/val/acc1" in r}
    best = max(scores, key=lambda step: (scores[step], step))
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {best, 8}
    assert result["eval/test/step"] == best


def test_another_config_is_refused_in_a_used_workdir(tmp_path):
    train.claim(tmp_path, recipe())
    train.claim(tmp_path, recipe(total_steps="20", data__workers=2))
    with pytest.raises(UserError, match="optim.lr: .* -> .*"):
        train.claim(tmp_path, recipe(optim__lr=0.5))


def test_divergence_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    config = recipe(optim__name="sgd", optim__lr=1e25, optim__warmup="5")
    train.claim(tmp_path, config)
    with pytest.raises(Diverged, match="optim.lr"):
        train_on_one(config, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_goes_on(tmp_path, number):
    """The real command, killed in the middle: SIGTERM saves and exits 75, SIGKILL loses steps."""
    command = [sys.executable, "-m", "vit_jax.train", "--config=configs/digits.py"]
    command += [f"--workdir={tmp_path}", "--config.total_steps=60", "--config.log_every=5"]
    command += ["--config.checkpoint_every=10", "--config.model.depth=1"]
    command += [f"--config.compilation_cache={tmp_path}/cache"]
    options = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = subprocess.Popen(command, **options)
    deadline = time.time() + 240
    while not any(p.name.isdigit() for p in (tmp_path / "checkpoints").glob("*")):
        assert first.poll() is None and time.time() < deadline, first.communicate()[0]
        time.sleep(0.02)
    os.kill(first.pid, number)
    output = first.communicate()[0]
    assert first.returncode == (75 if number == signal.SIGTERM else -9), output
    second = subprocess.run(command, **options)
    assert second.returncode == 0, second.stdout
    assert "resuming from step" in second.stdout and "Traceback" not in second.stdout
    steps = [r["step"] for r in rows(tmp_path) if "train/loss" in r]
    assert steps == list(range(5, 61, 5))
