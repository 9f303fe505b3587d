"""The launcher with a fake gcloud that records its calls, and the real script of a worker."""

import functools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from experiments import launch, tpu
from tests import ROOT

# Answers `describe` and `cat job.exit` from plan.json, and records every call.
FAKE = """#!{python}
import json, sys
from pathlib import Path
folder = Path(__file__).parent
words = sys.argv[1:]
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps(words) + "\\n")
plan = json.loads((folder / "plan.json").read_text())
kind = "states" if "describe" in words else "codes" if "job.exit" in words[-1][-20:] else None
if kind:
    answer = plan[kind].pop(0)
    (folder / "plan.json").write_text(json.dumps(plan))
    if answer is None:
        sys.exit(1)
    print(answer)
"""
# Keeps a file for each existing slice. The job on NAME-1 is preempted once, after saving.
SLICES = """#!{python}
import sys, time
from pathlib import Path
folder = Path(__file__).parent
words = sys.argv[1:]
verb = next(word for word in words if word in ("describe", "create", "scp", "ssh", "delete"))
name = words[words.index(verb) + (2 if verb == "scp" else 1)].rstrip(":")
slice_, saved = folder / "slices" / name, folder / "saved"
if verb == "describe" and not slice_.exists():
    sys.exit(1)
elif verb == "describe":
    print("READY")
elif verb == "create":
    slice_.touch()
elif verb == "delete":
    slice_.unlink()
elif verb == "ssh" and (folder / "hang").exists():
    time.sleep(100)
elif "job.exit" in words[-1][-20:]:
    first = name.endswith("-1") and not saved.exists()
    print(75 if first else 0)
    if first:
        saved.touch()
with open(folder / "calls", "a") as file:
    file.write(f"{{verb}} {{name}} {{len(list((folder / 'slices').iterdir()))}}\\n")
"""
SWEEP = ["--grid=optim.lr=1e-3,3e-3,1e-2", "--jobs=2", "--config.seed=3"]


@pytest.fixture
def call(tmp_path):
    """Return call(*flags, states, codes) -> (process, calls of gcloud)."""
    path = tmp_path / "gcloud"
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(0o755)

    def call(*words, states=(), codes=(), wait=True):
        (tmp_path / "plan.json").write_text(json.dumps({"states": states, "codes": codes}))
        command = [sys.executable, "-m", "experiments.launch", "--config=configs/deit.py:S"]
        command += ["--workdir=/shared/deit_s", "--zone=z", *words]
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        options = dict(cwd=ROOT, env=environment, text=True)
        if not wait:
            pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            return subprocess.Popen(command, **options, **pipes)
        process = subprocess.run(command, capture_output=True, **options)
        calls = tmp_path / "calls.jsonl"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return process, [json.loads(line) for line in lines]

    yield call
    calls = tmp_path / "calls.jsonl"
    for words in map(json.loads, calls.read_text().splitlines() if calls.exists() else []):
        for word in words:
            if word.endswith(".tar.gz"):  # the archive is written to this checkout
                Path(word).unlink(missing_ok=True)


def verbs(calls):
    known = ("describe", "create", "scp", "ssh", "delete")
    return [next(word for word in words if word in known) for words in calls]


def test_a_slice_is_recreated_until_training_is_done(call):
    """Preempted and saved (75), then lost with its slice, then done."""
    states = [None, "READY", "READY", "PREEMPTED", "PREEMPTED", "READY"]
    process, calls = call(
        "--target=tpu-vm", "--spot", states=states, codes=["75\n75", None, "0\n0"]
    )
    assert process.returncode == 0, process.stderr
    once = ["scp", "ssh", "ssh"]
    assert verbs(calls) == (
        ["describe", "create", "describe", *once]
        + ["describe", *once, "describe"]
        + ["describe", "delete", "create", "describe", *once, "delete"]
    )
    create = calls[1]
    assert create[:5] == ["compute", "tpus", "tpu-vm", "create", "deit-s"]
    assert {"--zone=z", "--spot", "--version=v2-alpha-tpuv5-lite"} <= set(create)
    job = next(words[-1] for words in calls if "ssh" in words)
    assert "-m vit_jax.train --config=configs/deit.py:S --workdir=/shared/deit_s" in job
    assert "--worker=all" in calls[3]
    archive = next(word for word in calls[3] if word.endswith(".tar.gz"))
    with tarfile.open(archive) as tar:
        assert {"vit_jax/train.py", "Makefile", "constraints.txt"} <= set(tar.getnames())


def test_a_user_error_is_not_retried(call):
    process, calls = call("--target=queued", states=["ACTIVE"], codes=["2\n143"])
    assert process.returncode == 2
    assert verbs(calls) == ["describe", "scp", "ssh", "ssh", "delete"]
    assert calls[-1][2:5] == ["queued-resources", "delete", "deit-s"] and "--force" in calls[-1]


def test_a_dry_run_only_prints_the_commands(call):
    process, calls = call("--target=queued", "--dry_run", "--config.optim.lr=1e-4", "--name=n")
    assert process.returncode == 0 and not calls
    lines = [line for line in process.stdout.splitlines() if line.startswith("gcloud")]
    assert lines[1] == (
        "gcloud compute tpus queued-resources create n --node-id=n "
        "--runtime-version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-8 --zone=z"
    )
    assert "--config.optim.lr=1e-4" in process.stdout
    process, _ = call("--target=slurm", "--dry_run", "--nodes=2")
    assert process.stdout.startswith("sbatch <<'EOF'\n#!/bin/bash\n#SBATCH --job-name=deit-s\n")
    for line in ("--nodes=2", "--ntasks-per-node=8", "--requeue", "--signal=TERM@120"):
        assert f"#SBATCH {line}" in process.stdout.splitlines()
    assert "scontrol requeue" in process.stdout
    process, calls = call("--target=tpu-vm", "--workdir=gs://bucket/run", "--dry_run")
    assert process.returncode == 0 and not calls
    assert "--workdir=gs://bucket/run" in process.stdout
    assert "make install EXTRA=tpu,gcs\n" in process.stdout
    process, _ = call("--target=slurm", "--workdir=gs://bucket/run", "--dry_run")
    assert process.returncode == 2 and "must be a folder of this machine" in process.stderr
    process, _ = call("--target=tpu-vm", "--workdir=s3://bucket/run", "--dry_run")
    assert process.returncode == 2 and "gs://BUCKET/RUN" in process.stderr


def test_a_sweep_is_an_array_of_jobs(call, tmp_path):
    """The script for sbatch, and one task of it: it starts its run and is requeued after 75."""
    process, _ = call("--target=slurm", "--gpus=1", "--dry_run", *SWEEP)
    assert process.returncode == 0, process.stderr
    script = process.stdout.partition("<<'EOF'\n")[2].removesuffix("EOF\n")
    for line in ("--array=0-2%2", "--output=/shared/deit_s/slurm-%A_%a.log", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}" in script.splitlines()
    for name, code in (("srun", 75), ("scontrol", 0)):
        fake = f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/did\nexit {code}\n'
        (tmp_path / name).write_text(fake)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    numbers = {"SLURM_JOB_ID": "90", "SLURM_ARRAY_JOB_ID": "90", "SLURM_ARRAY_TASK_ID": "1"}
    script = script.replace(f"{ROOT}/.venv/bin", str(Path(sys.executable).parent))
    task = subprocess.run(["bash", "-c", script], env=os.environ | numbers | {"PATH": path})
    assert task.returncode == 75
    assert (tmp_path / "did").read_text() == (
        "srun --kill-on-bad-exit=1 python -m vit_jax.train --config=configs/deit.py:S "
        "--workdir=/shared/deit_s/optim.lr=3e-3 --config.seed=3 --config.optim.lr=3e-3\n"
        "scontrol requeue 90_1\n"
    )


@pytest.fixture
def slices(tmp_path):
    """The flags to launch a sweep; the logs of its slices are removed."""
    (tmp_path / "slices").mkdir()
    name = f"test-{os.getpid()}"
    archive = tmp_path / "vit_jax-0.tar.gz"
    archive.touch()
    yield [f"--name={name}", f"--code={archive}", f"--workdir={tmp_path}/lr"]
    for path in (ROOT / "runs/launch").glob(f"{name}-*.log"):
        path.unlink()


def test_a_sweep_has_a_slice_for_each_run(call, slices, tmp_path):
    """Three runs, two slices at a time; one is preempted and resumed; all are deleted."""
    process, calls = call("--target=queued", "--dry_run", *SWEEP)
    assert process.returncode == 0 and not calls, process.stderr
    words = [line.split() for line in process.stdout.splitlines() if line.startswith("gcloud")]
    assert [w[5] for w in words if w[4] == "create"] == ["deit-s-0", "deit-s-1", "deit-s-2"]
    for value in ("1e-3", "3e-3", "1e-2"):
        job = f"--workdir=/shared/deit_s/optim.lr={value} --config.seed=3 --config.optim.lr={value}"
        assert job in process.stdout
    (tmp_path / "gcloud").write_text(SLICES.format(python=sys.executable))
    process, _ = call("--target=tpu-vm", *slices, *SWEEP)
    assert process.returncode == 0, process.stdout + process.stderr
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert all(int(count) <= 2 for _, _, count in calls)
    for index in range(3):
        again = ["describe", "scp", "ssh", "ssh"] if index == 1 else []
        expected = ["create", "describe", "scp", "ssh", "ssh", *again, "delete"]
        assert [verb for verb, name, _ in calls if name[-2:] == f"-{index}"] == expected


def test_an_interrupted_sweep_deletes_its_slices(call, slices, tmp_path):
    (tmp_path / "gcloud").write_text(SLICES.format(python=sys.executable))
    (tmp_path / "hang").touch()
    with call("--target=tpu-vm", *slices, *SWEEP, wait=False) as process:
        deadline = time.time() + 60
        while not (tmp_path / "calls").exists() or "scp" not in (tmp_path / "calls").read_text():
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=60)
    assert process.returncode == 75 and "0 of 3 runs" in printed[1], printed
    assert not list((tmp_path / "slices").iterdir())


def test_which_exit_codes_lead_to_a_restart():
    for codes, last, left in [([75, -9, 1, 0, 9], 0, 1), ([2, 9], 2, 1), ([1, 1, 1, 9], 1, 1)]:
        restarts = 2 if codes[0] == 1 else 9
        assert launch.again(functools.partial(codes.pop, 0), restarts, wait=0) == last
        assert len(codes) == left


def test_the_job_on_a_worker_runs_once_and_leaves_its_code(tmp_path):
    """The real script, with a small program instead of training."""
    (tmp_path / "Makefile").write_text("install:\n\techo installed $$PIP_CONSTRAINT\n")
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "Makefile", "Makefile")
    job = tpu.JOB.format(
        folder="run", archive="code.tar.gz", train="echo trained >> ../trained; exit 75"
    )
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python3.11").symlink_to("/bin/true")
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    options = dict(cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    for count in (1, 2):
        process = subprocess.run(["bash", "-c", job], **options)
        assert process.returncode == 0, process.stderr
        assert (tmp_path / "run/job.exit").read_text() == "75\n"
        assert (tmp_path / "trained").read_text() == "trained\n" * count
    assert "installed" in process.stdout and "constraints.txt" in process.stdout
