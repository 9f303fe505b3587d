"""Multi-process runs: detection, preemption and resuming."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import ROOT
from vit_jax.devices import distributed
from vit_jax.errors import UserError
from vit_jax.workdir import log

SLURM = dict.fromkeys(distributed.SLURM_VARIABLES, "1") | {"SLURM_NTASKS": "4"}


def test_options_from_environment():
    cpu = {"JAX_PLATFORMS": "cpu"}
    assert distributed.initialize_args(cpu) is None
    assert distributed.initialize_args(cpu | SLURM) == {}  # JAX reads the SLURM variables
    assert distributed.initialize_args(cpu | SLURM | {"SLURM_NTASKS": "1"}) is None
    assert distributed.initialize_args(cpu | SLURM | {distributed.ENV_VARIABLE: "off"}) is None
    explicit = distributed.initialize_args({distributed.ENV_VARIABLE: "10.0.0.2:1234,4,3"})
    assert list(explicit.values()) == ["10.0.0.2:1234", 4, 3]
    for invalid in ("10.0.0.2:1234,4,4", "10.0.0.2,4,0", "on"):
        with pytest.raises(UserError, match="VIT_JAX_DISTRIBUTED=.* must be auto, off or HOST"):
            distributed.initialize_args({distributed.ENV_VARIABLE: invalid})


def start(workdir, count):
    """Start the `count` processes of a run."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "vit_jax.train", "--config=configs/digits.py"]
    command += [f"--workdir={workdir}", "--config.total_steps=60", "--config.log_every=5"]
    command += ["--config.optim.warmup=5"]
    command += ["--config.checkpoint_every=10", "--config.model.depth=1"]
    command += [f"--config.compilation_cache={workdir}-cache"]
    environment = os.environ | {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {distributed.ENV_VARIABLE: f"localhost:{port},{count},{i}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


def test_two_processes_stop_together_and_resume(tmp_path):
    """A SIGTERM to one process stops both at the same step; losses match a single process."""
    processes = start(tmp_path / "two", 2)
    deadline = time.time() + 240
    while not any(p.name.isdigit() for p in (tmp_path / "two/checkpoints").glob("*")):
        assert processes[0].poll() is None and time.time() < deadline, processes[0].communicate()[0]
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    processes = start(tmp_path / "two", 2)
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "resuming from step" in outputs[0] and not outputs[1].count("step 60/60")
    (single,) = start(tmp_path / "one", 1)
    assert single.communicate(timeout=240) and single.returncode == 0
    losses = []
    for name in ("one", "two"):
        rows = log.read_metrics(tmp_path / name)
        losses.append({r["step"]: r["train/loss"] for r in rows if "train/loss" in r})
    assert list(losses[1]) == list(range(5, 61, 5))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
