"""Multi-process runs: detection, preemption and resuming."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from tests import ROOT
from vit_jax.config import load_config
from vit_jax.devices import distributed
from vit_jax.errors import UserError
from vit_jax.run import Run
from vit_jax.workdir import checkpoint, log, manifest

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


def start(workdir, count, *flags, flags_of_last=()):
    """Start the `count` processes of a run."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "vit_jax.train", "--config=configs/digits.py"]
    command += [f"--workdir={workdir}", "--config.total_steps=60", "--config.log_every=5"]
    command += ["--config.optim.warmup=5"]
    command += ["--config.checkpoint_every=10", "--config.model.depth=1"]
    command += [f"--config.compilation_cache={workdir}-cache", *flags]
    environment = os.environ | {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    return [
        subprocess.Popen(
            [*command, *(flags_of_last if i == count - 1 else ())],
            cwd=ROOT,
            env=environment | {distributed.ENV_VARIABLE: f"localhost:{port},{count},{i}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


def wait_for_checkpoint(workdir, process):
    deadline = time.time() + 240
    while not any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*")):
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.02)


def test_two_processes_stop_together_and_resume(tmp_path):
    """A SIGTERM to one process stops both at the same step; losses match a single process."""
    processes = start(tmp_path / "two", 2)
    wait_for_checkpoint(tmp_path / "two", processes[0])
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


def test_shards_of_two_processes_are_verified_and_restored_by_one(tmp_path):
    """Each process checks the shards that it wrote; the checksums are those of one process."""
    processes = start(tmp_path / "run", 2, "--config.mesh.data=1", "--config.mesh.fsdp=2")
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = manifest.check(tmp_path / "run/checkpoints/60", 60)
    owners = {name.partition("ocdbt.process_")[2].partition("/")[0] for name in found["files"]}
    assert {"0", "1"} <= owners
    config = load_config(tmp_path / "run")
    config.mesh.fsdp = 1
    run = Run(config, jax.devices()[:1])
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        step, state = checkpoints.restore_latest(run.abstract)
    assert step == 60 and int(state.step) == 60


def test_different_configs_are_refused_by_all_processes(tmp_path):
    processes = start(tmp_path / "run", 2, flags_of_last=["--config.seed=1"])
    for process in processes:
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 2, output
        last = output.strip().splitlines()[-1]
        assert last.startswith("error: the processes have different configs: process 0 has seed")
    assert not (tmp_path / "run").exists()


def test_a_lost_process_ends_the_others(tmp_path):
    """SIGKILL to one process; the other says so in one line, and a rerun resumes."""
    processes = start(tmp_path / "run", 2, "--config.total_steps=2000")
    wait_for_checkpoint(tmp_path / "run", processes[0])
    processes[1].kill()
    begin = time.monotonic()
    output = processes[0].communicate(timeout=120)[0]
    assert time.monotonic() - begin < 60, output
    assert processes[0].returncode == 1
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: lost ") and "Traceback" not in output


ARRANGE = """
import jax
import numpy as np
from jax import numpy as jnp
from vit_jax.devices import distributed, sharding
from vit_jax.errors import UserError

distributed.initialize()
devices = jax.devices()
for shape in ((2, 4, 1), (4, 1, 2), (1, 8, 1), (2, 2, 2)):
    array = sharding.arrange(shape, devices, process_is_granule=True)
    assert array.shape == shape and len(set(array.flat)) == 8
    processes = np.vectorize(lambda device: device.process_index)(array)
    axis = 0 if shape[0] > 1 else 1  # the outer axis spans the processes
    halves = np.split(processes, 2, axis)
    assert (halves[0] == 0).all() and (halves[1] == 1).all(), processes
try:
    sharding.arrange((1, 1, 8), devices, process_is_granule=True)
except UserError as error:
    assert "reduce mesh.tensor" in str(error)
else:
    raise AssertionError("tensor spans two slices")
array = sharding.arrange((2, 4, 1), devices, process_is_granule=True)
mesh = jax.sharding.Mesh(array, sharding.AXES)
rows = np.arange(16.0).reshape(2, 8)[jax.process_index()]
batch = jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), rows)
total = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))(batch)
print("sum", float(total))
"""


def test_slices_are_connected_by_the_outer_part_of_an_axis():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    flags = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_PLATFORMS": "cpu"}
    flags["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ARRANGE],
            cwd=ROOT,
            env=os.environ | flags | {distributed.ENV_VARIABLE: f"localhost:{port},2,{i}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("sum 120.0" in output for output in outputs), outputs


def test_a_signal_in_a_notebook_does_not_end_the_process():
    before = signal.getsignal(signal.SIGINT)
    with distributed.StopSignal(ends_process=False) as stop:
        with stop.react(lambda: os._exit(1)):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
