"""Training end to end: bit-exact resume, preemption, checkpoints and divergence."""

import json
import os
import shutil
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
from vit_jax.config import load_config
from vit_jax.errors import Diverged, Preempted, UserError
from vit_jax.run import Run
from vit_jax.workdir import checkpoint, log


def recipe(**overrides):
    c = tiny(digits.get_config())
    c.data.name = "digits"
    c.model.image = 8
    c.model.drop_path = 0.2
    c.augment.erase = 0.25
    c.augment.mixup = 0.2
    c.total_steps = "12"
    c.log_every = "2"
    c.eval_every = "4"
    c.checkpoint_every = "4"
    c.compilation_cache = ""
    for key, value in overrides.items():
        group, _, leaf = key.rpartition("__")
        (c[group] if group else c)[leaf] = value
    return c


def train_on_one_device(config, workdir, stop=lambda: False):
    """Train on one device: compiling for all eight simulated devices takes a minute."""
    return train.train(config, workdir, stop, jax.devices()[:1])


def rows(workdir):
    """Return the rows of metrics.jsonl without timings."""
    result = []
    for row in log.read_metrics(workdir):
        result.append({k: v for k, v in row.items() if not k.startswith(("perf/", "time"))})
    return result


def restore(workdir, config):
    """Return the step and the state of the latest checkpoint."""
    run = Run(config, jax.devices()[:1])
    with checkpoint.Checkpoints(workdir) as checkpoints:
        return checkpoints.latest(), jax.device_get(checkpoints.restore(run.abstract))


class StopAfter:
    """Stop signal that becomes True after `steps` calls. Training calls it once per step."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self):
        self.steps -= 1
        return self.steps < 0


def test_resume_is_bit_exact(tmp_path):
    """Parameters, optimizer state, EMA and metrics; preempted at a step without a checkpoint."""
    config = recipe()
    train_on_one_device(config, tmp_path / "uninterrupted")
    with pytest.raises(Preempted, match="step"):
        train_on_one_device(config, tmp_path / "resumed", StopAfter(6))
    assert log.read_metrics(tmp_path / "resumed")[-1]["step"] == 6
    # Rows after the checkpoint, as a crash leaves them.
    with open(tmp_path / "resumed" / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "train/loss": 9.9}\n{"step": 12, "tra')
    train_on_one_device(config, tmp_path / "resumed")
    assert rows(tmp_path / "resumed") == rows(tmp_path / "uninterrupted")
    step, expected = restore(tmp_path / "uninterrupted", config)
    resumed_step, resumed = restore(tmp_path / "resumed", config)
    assert step == resumed_step == 12
    jax.tree.map(np.testing.assert_array_equal, expected, resumed)
    starts = json.loads((tmp_path / "resumed/run.json").read_text())["starts"]
    assert len(starts) == 2 and starts[1]["step"] > 0


def test_rerunning_a_finished_run_does_nothing(tmp_path, capsys):
    config = recipe(total_steps="4")
    first = train_on_one_device(config, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train_on_one_device(config, tmp_path) == first
    assert "done" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    # With more total_steps, training continues.
    longer = recipe(total_steps="6")
    assert train_on_one_device(longer, tmp_path)["eval/test/images"] == 360
    assert restore(tmp_path, longer)[0] == 6


def test_latest_and_best_checkpoints_are_kept(tmp_path):
    config = recipe(keep_checkpoints=1, checkpoint_every="1", eval_every="1", total_steps="8")
    result = train_on_one_device(config, tmp_path)
    scores = {r["step"]: r["eval/val/acc1"] for r in rows(tmp_path) if "eval/val/acc1" in r}
    best = max(scores, key=lambda step: (scores[step], step))
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {best, 8}
    assert result["eval/test/step"] == best


def test_a_run_with_checkpoints_keeps_its_config(tmp_path):
    config = recipe(total_steps="2")
    train_on_one_device(config, tmp_path)
    saved = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match="optim.lr: .* -> .*"):
        train.prepare(recipe(total_steps="2", optim__lr=0.5), tmp_path)
    train.prepare(recipe(total_steps="20", data__workers=2), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == saved
    # Without a checkpoint, the run starts again with any config.
    shutil.rmtree(tmp_path / "checkpoints")
    other = recipe(total_steps="2", optim__lr=0.5)
    train_on_one_device(other, tmp_path)
    assert load_config(tmp_path).optim.lr == 0.5


def test_divergence_raises(tmp_path):
    config = recipe(optim__name="sgd", optim__lr=1e25, optim__warmup="5")
    with pytest.raises(Diverged, match="optim.lr"):
        train_on_one_device(config, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_resume_after_a_signal(tmp_path, number):
    """The command resumes after SIGTERM, which saves and exits with 75, and after SIGKILL."""
    command = [sys.executable, "-m", "vit_jax.train", "--config=configs/digits.py"]
    command += [f"--workdir={tmp_path}", "--config.total_steps=60", "--config.log_every=5"]
    command += ["--config.checkpoint_every=10", "--config.model.depth=1", "--config.optim.warmup=5"]
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
