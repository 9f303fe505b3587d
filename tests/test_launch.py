"""The launcher, with a gcloud that notes what it is asked, and the real script of a worker."""

import functools
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from experiments import launch

ROOT = Path(__file__).parents[1]
# Answers `describe` and `cat job.exit` by what is left in plan.json; notes every call.
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


@pytest.fixture
def call(tmp_path):
    """-> call(*flags, states, codes) -> the process, and gcloud's verbs in order"""
    path = tmp_path / "gcloud"
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(0o755)

    def call(*words, states=(), codes=()):
        (tmp_path / "plan.json").write_text(json.dumps({"states": states, "codes": codes}))
        command = [sys.executable, "-m", "experiments.launch", "--config=configs/deit.py:S"]
        command += ["--workdir=/shared/deit_s", "--zone=z", *words]
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        options = dict(cwd=ROOT, env=environment, capture_output=True, text=True)
        process, calls = subprocess.run(command, **options), tmp_path / "calls.jsonl"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return process, [json.loads(line) for line in lines]

    yield call
    calls = tmp_path / "calls.jsonl"
    for words in map(json.loads, calls.read_text().splitlines() if calls.exists() else []):
        for word in words:
            if word.endswith(".tar.gz"):  # what was to be sent lies in this checkout
                Path(word).unlink(missing_ok=True)


def verbs(calls):
    known = ("describe", "create", "scp", "ssh", "delete")
    return [next(word for word in words if word in known) for words in calls]


def test_a_slice_is_made_again_until_training_is_done(call):
    """Saved and stopped (75), then lost to preemption, then done."""
    states = [None, "READY", "READY", "READY", "PREEMPTED", "PREEMPTED", "READY"]
    process, calls = call(
        "--target=tpu-vm", "--spot", states=states, codes=["75\n75", None, "0\n0"]
    )
    assert process.returncode == 0, process.stderr
    once = ["scp", "ssh", "ssh"]
    assert verbs(calls) == (
        ["describe", "create", "describe", *once]
        + ["describe", "describe", *once, "describe"]
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


def test_a_mistake_is_not_tried_again(call):
    process, calls = call("--target=queued", states=["ACTIVE", "ACTIVE"], codes=["2\n143"])
    assert process.returncode == 2
    assert verbs(calls) == ["describe", "describe", "scp", "ssh", "ssh", "delete"]
    assert calls[-1][2:5] == ["queued-resources", "delete", "deit-s"] and "--force" in calls[-1]


def test_a_dry_run_prints_and_does_nothing(call):
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
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --requeue",
        "#SBATCH --signal=TERM@120",
    ):
        assert line in process.stdout.splitlines()
    assert "scontrol requeue" in process.stdout
    process, _ = call("--target=tpu-vm", "--workdir=gs://bucket/run")
    assert process.returncode == 2 and "is no folder: a bucket has to be mounted" in process.stderr


def test_what_is_started_again():
    for codes, last, left in [([75, -9, 1, 0, 9], 0, 1), ([2, 9], 2, 1), ([1, 1, 1, 9], 1, 1)]:
        restarts = 2 if codes[0] == 1 else 9
        assert launch.again(functools.partial(codes.pop, 0), restarts, wait=0) == last
        assert len(codes) == left


def test_the_job_on_a_worker_runs_once_and_leaves_its_code(tmp_path):
    """The real script, with a small program in the place of training."""
    (tmp_path / "Makefile").write_text("install:\n\techo installed $$PIP_CONSTRAINT\n")
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "Makefile", "Makefile")
    job = launch.JOB.format(
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
