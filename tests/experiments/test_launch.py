"""Test experiments.launch with a fake gcloud, and the script that runs on a worker."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import launch, tpu
from tests import ROOT, command

# A fake gcloud: replies to `describe` and `cat job.exit` from replies.json, and records all calls.
SCRIPTED_GCLOUD = """#!{python}
import json, sys
from pathlib import Path
from types import SimpleNamespace
folder = Path(__file__).parent
args = sys.argv[1:]
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps(args) + "\\n")
replies = json.loads((folder / "replies.json").read_text())
kind = "states" if "describe" in args else "codes" if "job.exit" in args[-1][-20:] else None
if kind:
    reply = replies[kind].pop(0)
    (folder / "replies.json").write_text(json.dumps(replies))
    if reply is None:
        sys.exit(1)
    print(reply)
"""
# A fake gcloud that keeps a file per existing slice. The job on NAME-1 is preempted once, after
# saving a checkpoint.
STATEFUL_GCLOUD = """#!{python}
import sys, time
from pathlib import Path
from types import SimpleNamespace
folder = Path(__file__).parent
args = sys.argv[1:]
verb = next(arg for arg in args if arg in ("describe", "create", "scp", "ssh", "delete"))
name = args[args.index(verb) + (2 if verb == "scp" else 1)].rstrip(":")
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
elif "job.exit" in args[-1][-20:]:
    first = name.endswith("-1") and not saved.exists()
    print(75 if first else 0)
    if first:
        saved.touch()
with open(folder / "calls", "a") as file:
    file.write(f"{{verb}} {{name}} {{len(list((folder / 'slices').iterdir()))}}\\n")
"""
SWEEP = ["--grid=optim.lr=1e-3,3e-3,1e-2", "--jobs=2", "--config.seed=3"]


@pytest.fixture
def run_launch(tmp_path):
    """Return run_launch(*flags, states, codes) -> (process, calls of gcloud)."""
    path = tmp_path / "gcloud"
    path.write_text(SCRIPTED_GCLOUD.format(python=sys.executable))
    path.chmod(0o755)

    def run(*flags, states=(), codes=(), wait=True):
        (tmp_path / "replies.json").write_text(json.dumps({"states": states, "codes": codes}))
        command = [sys.executable, "-m", "experiments.launch", "--config=configs/deit.py:S"]
        command += ["--workdir=/shared/deit_s", "--zone=z", *flags]
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        options = dict(cwd=ROOT, env=environment, text=True)
        if not wait:
            pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            return subprocess.Popen(command, **options, **pipes)
        process = subprocess.run(command, capture_output=True, **options)
        calls = tmp_path / "calls.jsonl"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return process, [json.loads(line) for line in lines]

    yield run
    calls = tmp_path / "calls.jsonl"
    for args in map(json.loads, calls.read_text().splitlines() if calls.exists() else []):
        for arg in args:
            if arg.endswith(".tar.gz"):  # the archive is written to this checkout
                Path(arg).unlink(missing_ok=True)


def verbs(calls):
    known = ("describe", "create", "scp", "ssh", "delete")
    return [next(arg for arg in args if arg in known) for args in calls]


def test_slice_is_recreated_until_training_is_done(run_launch):
    """Training is preempted and saved (75), then lost with its slice, then done."""
    states = [None, "READY", "READY", "PREEMPTED", "PREEMPTED", "READY"]
    process, calls = run_launch(
        "--target=tpu-vm", "--spot", states=states, codes=["75\n75", None, "0\n0"]
    )
    assert process.returncode == 0, process.stderr
    attempt = ["scp", "ssh", "ssh"]
    assert verbs(calls) == (
        ["describe", "create", "describe", *attempt]
        + ["describe", *attempt, "describe"]
        + ["describe", "delete", "create", "describe", *attempt, "delete"]
    )
    create = calls[1]
    assert create[:5] == ["compute", "tpus", "tpu-vm", "create", "deit-s"]
    assert {"--zone=z", "--spot", "--version=v2-alpha-tpuv5-lite"} <= set(create)
    script = next(args[-1] for args in calls if "ssh" in args)
    assert "-m vit_jax.train --config=configs/deit.py:S --workdir=/shared/deit_s" in script
    assert "--worker=all" in calls[3]
    archive = next(arg for arg in calls[3] if arg.endswith(".tar.gz"))
    with tarfile.open(archive) as tar:
        assert {"vit_jax/train.py", "Makefile", "constraints.txt"} <= set(tar.getnames())


def test_user_error_is_not_retried(run_launch):
    process, calls = run_launch("--target=queued", states=["ACTIVE"], codes=["2\n143"])
    assert process.returncode == 2
    assert verbs(calls) == ["describe", "scp", "ssh", "ssh", "delete"]
    assert calls[-1][2:5] == ["queued-resources", "delete", "deit-s"] and "--force" in calls[-1]


def test_stages_are_launched_as_one_command(run_launch):
    stage = "--then=configs/deit3.py:B,224"
    process, _ = run_launch("--target=slurm", "--dry_run", stage)
    assert process.returncode == 0 and f"{stage}\n" in process.stdout
    process, _ = run_launch("--target=slurm", "--dry_run", "--then=configs/deit3.py:none")
    assert process.returncode == 2 and "unknown size 'none'" in process.stderr
    process, _ = run_launch("--target=slurm", "--dry_run", stage, *SWEEP)
    assert process.returncode == 2 and "leave out --then" in process.stderr


def test_dry_run_only_prints_the_commands(run_launch):
    process, calls = run_launch(
        "--target=queued", "--dry_run", "--config.optim.lr=1e-4", "--name=n"
    )
    assert process.returncode == 0 and not calls
    lines = [line for line in process.stdout.splitlines() if line.startswith("gcloud")]
    assert lines[1] == (
        "gcloud compute tpus queued-resources create n --node-id=n "
        "--runtime-version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-8 --zone=z"
    )
    assert "--config.optim.lr=1e-4" in process.stdout
    process, _ = run_launch("--target=slurm", "--dry_run", "--nodes=2")
    assert process.stdout.startswith("sbatch <<'EOF'\n#!/bin/bash\n#SBATCH --job-name=deit-s\n")
    for line in ("--nodes=2", "--ntasks-per-node=8", "--requeue", "--signal=TERM@120"):
        assert f"#SBATCH {line}" in process.stdout.splitlines()
    assert "scontrol requeue" in process.stdout
    process, calls = run_launch("--target=tpu-vm", "--workdir=gs://bucket/run", "--dry_run")
    assert process.returncode == 0 and not calls
    assert "--workdir=gs://bucket/run" in process.stdout
    assert "make install EXTRA=tpu,gcs " in process.stdout
    assert "gcloud storage cp job.log gs://bucket/run/launch/run-$(hostname).log" in process.stdout
    process, _ = run_launch("--target=slurm", "--workdir=gs://bucket/run", "--dry_run")
    assert process.returncode == 2 and "must be a local directory" in process.stderr
    process, _ = run_launch("--target=tpu-vm", "--workdir=s3://bucket/run", "--dry_run")
    assert process.returncode == 2 and "gs://BUCKET/RUN" in process.stderr


def test_slurm_sweep_is_a_job_array(run_launch, tmp_path):
    """A task of the array starts one run, and is requeued if the run exits with 75."""
    process, _ = run_launch("--target=slurm", "--gpus=1", "--dry_run", *SWEEP)
    assert process.returncode == 0, process.stderr
    script = process.stdout.partition("<<'EOF'\n")[2].removesuffix("EOF\n")
    for line in ("--array=0-2%2", "--output=/shared/deit_s/slurm-%A_%a.log", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}" in script.splitlines()
    for name, code in (("srun", 75), ("scontrol", 0)):
        fake = f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\nexit {code}\n'
        (tmp_path / name).write_text(fake)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    variables = {"SLURM_JOB_ID": "90", "SLURM_ARRAY_JOB_ID": "90", "SLURM_ARRAY_TASK_ID": "1"}
    script = script.replace(f"{ROOT}/.venv/bin", str(Path(sys.executable).parent))
    task = subprocess.run(["bash", "-c", script], env=os.environ | variables | {"PATH": path})
    assert task.returncode == 75
    assert (tmp_path / "calls").read_text() == (
        "srun --kill-on-bad-exit=1 python -m vit_jax.train --config=configs/deit.py:S "
        "--workdir=/shared/deit_s/optim.lr=3e-3 --config.seed=3 --config.optim.lr=3e-3\n"
        "scontrol requeue 90_1\n"
    )


HOSTILE = "'; touch canary; $(touch canary) `touch canary` \" && touch canary #"


@pytest.fixture
def run_hostile(tmp_path):
    """Return run(*flags) -> arguments of the training command, started by fake tools.

    sbatch and `gcloud ssh` run the real scripts; srun, or python on the worker, records arguments.
    """
    record = f'#!/bin/bash\nprintf "%s\\0" "$@" > {tmp_path}/arguments\n'
    run = f'bash -n "$0.script" && cd {tmp_path} && exec bash "$0.script"\n'
    fakes = {
        "srun": record,
        "sbatch": f'#!/bin/bash\ncat > "$0.script"\n{run}',
        "gcloud": "#!/bin/bash\n"
        'if [ "$4" = describe ]; then echo READY; fi\n'
        'if [ "$4" != ssh ]; then exit; fi\n'
        f'printf "%s\\n" "${{@: -1}}" | sed "1s/^--command=//" > "$0.script"; {run}',
        "python3.13": "#!/bin/bash\n",
        "python": record,
        "Makefile": "install:\n",
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "Makefile", "Makefile")
        tar.add(tmp_path / "Makefile", HOSTILE)  # the data
        tar.add(tmp_path / "python", ".venv/bin/python")
    (tmp_path / "python").unlink()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "9"}

    def run_launch(*flags):
        command = [sys.executable, "-m", "experiments.launch", "--config=configs/digits.py"]
        command += [f"--config.data.dir={HOSTILE}", f"--code={tmp_path}/code.tar.gz", "--zone=z"]
        options = dict(cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        process = subprocess.run([*command, "--restarts=0", "--name=n", *flags], **options)
        assert process.returncode == 0, process.stdout + process.stderr
        assert not [*tmp_path.rglob("canary"), *ROOT.glob("canary")]
        return (tmp_path / "arguments").read_text().split("\0")[:-1]

    return run_launch


@pytest.mark.parametrize(
    ("target", "sweep_args"), [("slurm", []), ("slurm", ["--grid=seed=1,2"]), ("tpu-vm", [])]
)
def test_hostile_values_reach_training_unchanged(run_hostile, tmp_path, target, sweep_args):
    workdir = f"{tmp_path}/w;$(touch${{IFS}}canary)`id`&"
    args = run_hostile(f"--target={target}", f"--workdir={workdir}", *sweep_args)
    assert f"--config.data.dir={HOSTILE}" in args
    assert f"--workdir={workdir}" + ("/seed=2" if sweep_args else "") in args


@pytest.mark.parametrize(
    "args",
    [
        ["--name=a\n#SBATCH --uid=0"],
        ["--name=-x"],
        ["--name=a b"],
        ["--name=%j"],
        ["--workdir=/tmp/a\n#SBATCH --wrap=x"],
        ["--workdir=/tmp/%j"],
        ["--workdir=/tmp/a b"],
        ["--workdir=/tmp/a\nEOF\ntouch canary"],
        ["--config.data.dir=a\nEOF\ntouch canary"],
        ["--grid=data.dir=a\nEND\ntouch canary"],
        ["--target=tpu-vm", "--name=--project=x"],
        ["--target=tpu-vm", "--name=Upper"],
        ["--target=tpu-vm", "--zone=z --flags-file=x"],
        ["--target=tpu-vm", "--zone=z;id"],
        ["--target=queued", "--project=$(id)"],
        ["--target=tpu-vm", "--accelerator=v5 "],
        ["--target=tpu-vm", "--runtime=-x"],
        ["--target=tpu-vm", "--code=/tmp/$(touch canary).tar.gz"],
        ["--target=tpu-vm", "--code=host:code.tar.gz"],
    ],
)
def test_values_that_cannot_be_quoted_are_refused(args, capsys):
    defaults = ["--target=slurm", "--zone=z", "--workdir=/tmp/w", "--config=configs/digits.py"]
    code = command.run(launch, *defaults, "--dry_run", *args)
    out, err = capsys.readouterr()
    assert code == 2 and not out
    assert err.startswith("error: --") and err.count("\n") == 1 and err[:-1].isprintable()


@pytest.fixture
def sweep_flags(tmp_path):
    """Yield the flags that launch a sweep, and remove the logs of its slices."""
    (tmp_path / "slices").mkdir()
    name = f"test-{os.getpid()}"
    archive = tmp_path / "vit_jax-0.tar.gz"
    archive.touch()
    yield [f"--name={name}", f"--code={archive}", f"--workdir={tmp_path}/lr"]
    for path in (ROOT / "runs/launch").glob(f"{name}-*.log"):
        path.unlink()


def test_tpu_sweep_uses_one_slice_per_run(run_launch, sweep_flags, tmp_path):
    """Three runs on two slices at a time; one run is preempted and resumed."""
    process, calls = run_launch("--target=queued", "--dry_run", *SWEEP)
    assert process.returncode == 0 and not calls, process.stderr
    calls = [line.split() for line in process.stdout.splitlines() if line.startswith("gcloud")]
    assert [call[5] for call in calls if call[4] == "create"] == [f"deit-s-{i}" for i in range(3)]
    for value in ("1e-3", "3e-3", "1e-2"):
        args = f"--workdir=/shared/deit_s/optim.lr={value} --config.seed=3"
        assert f"{args} --config.optim.lr={value}" in process.stdout
    (tmp_path / "gcloud").write_text(STATEFUL_GCLOUD.format(python=sys.executable))
    process, _ = run_launch("--target=tpu-vm", *sweep_flags, *SWEEP)
    assert process.returncode == 0, process.stdout + process.stderr
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert all(int(count) <= 2 for _, _, count in calls)
    for index in range(3):
        restart = ["describe", "scp", "ssh", "ssh"] if index == 1 else []
        expected = ["create", "describe", "scp", "ssh", "ssh", *restart, "delete"]
        assert [verb for verb, name, _ in calls if name[-2:] == f"-{index}"] == expected


def test_interrupted_sweep_deletes_its_slices(run_launch, sweep_flags, tmp_path):
    (tmp_path / "gcloud").write_text(STATEFUL_GCLOUD.format(python=sys.executable))
    (tmp_path / "hang").touch()
    with run_launch("--target=tpu-vm", *sweep_flags, *SWEEP, wait=False) as process:
        deadline = time.time() + 60
        while not (tmp_path / "calls").exists() or "scp" not in (tmp_path / "calls").read_text():
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75 and "0 of 3 runs" in stderr, stdout + stderr
    assert not list((tmp_path / "slices").iterdir())


@pytest.mark.parametrize(
    ("codes", "restarts", "last_code"),
    [
        ([75, -9, 1, 0, 9], 9, 0),
        ([2, 9], 9, 2),
        ([1, 75, 1, 1, 9], 9, 1),  # the third crash
        ([75, 75, 1, 75, 9], 2, 75),  # the third preemption
        ([124, 9], 9, 124),
    ],
)
def test_retry_until_final_exit_code(codes, restarts, last_code):
    codes = list(codes)
    flags = SimpleNamespace(restarts=restarts, crashes=2, hours=1)
    assert launch.retry(functools.partial(codes.pop, 0), flags, wait=0) == last_code
    assert codes == [9]  # not called after the final code or the last restart


@pytest.fixture
def run_worker(tmp_path):
    """Return run(train, makefile=, **flags) -> process of the script of a worker.

    A shell command is run in place of training.
    """
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python3.13").symlink_to("/bin/true")
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def run(train, makefile="install:\n\techo installed $$PIP_CONSTRAINT\n", data=None, **flags):
        (tmp_path / "Makefile").write_text(makefile)
        with tarfile.open(tmp_path / "run.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "Makefile", "Makefile")
        settings = dict(target="tpu-vm", hours=None, accelerator="v5litepod-8", runtime=None)
        settings |= dict(zone="z", project=None, slices=1, keep=True, existing=None)
        settings |= dict(workdir=str(tmp_path / "work dir")) | flags
        slice_ = tpu.TpuSlice(
            None,
            "n",
            SimpleNamespace(**settings),
            tmp_path / "run.tar.gz",
            ["sh", "-c", train],
            data,
        )
        script = slice_.script(1 if flags.get("hours") else None)
        return subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_worker_script_trains_once_and_writes_the_exit_code(run_worker, tmp_path):
    for count in (1, 2):
        process = run_worker("echo trained >> ../trained; exit 75")
        assert process.returncode == 0, process.stderr
        assert (tmp_path / "run/job.exit").read_text() == "75\n"
        assert (tmp_path / "trained").read_text() == "trained\n" * count
    assert "installed" in process.stdout and "constraints.txt" in process.stdout
    (copy,) = (tmp_path / "work dir/launch").glob("n-*.log")
    assert copy.read_text() == (tmp_path / "run/job.log").read_text()


def test_worker_script_stops_before_training_without_data_or_packages(run_worker, tmp_path):
    for _ in range(3):  # each time, the loop that copies the log is killed as soon as it starts
        process = run_worker("touch ../trained", data="~/no data")
        assert "error: this worker has no ~/no data" in process.stdout
        assert (tmp_path / "run/job.exit").read_text() == "2\n"
        assert "installed" not in process.stdout
    (tmp_path / "no data").mkdir()
    pinned = 'install:\n\t[ -z "$$PIP_CONSTRAINT" ]\n'  # the pinned versions do not exist here
    shutil.rmtree(tmp_path / "run")
    process = run_worker("touch ../trained", makefile=pinned, data="~/no data")
    assert "installing others" in process.stdout and (tmp_path / "trained").exists()
    shutil.rmtree(tmp_path / "run")
    process = run_worker("touch ../twice", makefile="install:\n\tfalse\n")
    assert "error: the installation failed on this worker" in process.stdout
    assert (tmp_path / "run/job.exit").read_text() == "2\n" and not (tmp_path / "twice").exists()


def test_worker_script_ends_at_the_time_limit(run_worker, tmp_path):
    process = run_worker("trap 'touch ../saved; exit 75' TERM; sleep 30 & wait", hours=1)
    assert process.returncode == 0 and (tmp_path / "saved").exists()
    assert (tmp_path / "run/job.exit").read_text() == "124\n"


def test_failed_copy_ends_the_launch(run_launch, tmp_path):
    text = SCRIPTED_GCLOUD.format(python=sys.executable)
    (tmp_path / "gcloud").write_text(text + 'sys.exit("scp" in args)\n')
    process, calls = run_launch("--target=tpu-vm", states=["READY", "READY"])
    assert process.returncode == 2, process.stderr
    assert "error: the code could not be copied to deit-s" in process.stderr
    assert verbs(calls) == ["describe", "scp", "describe", "delete"]


def test_existing_slice_is_neither_created_nor_deleted(run_launch):
    flags = ["--target=tpu-vm", "--existing=mine"]
    process, calls = run_launch(*flags, states=["READY"], codes=["0"])
    assert process.returncode == 0, process.stderr
    assert verbs(calls) == ["describe", "scp", "ssh", "ssh"] and "mine" in calls[0]
    process, _ = run_launch(*flags, states=[None])
    assert process.returncode == 2 and "--existing=mine does not exist in z" in process.stderr


def test_other_options_are_passed_to_gcloud_and_sbatch(run_launch):
    process, _ = run_launch(
        "--target=queued",
        "--slices=2",
        "--accelerator=v6e-16",
        "--gcloud_args=--reserved --labels='team=a b' --data-disk=source=d,mode=read-only",
        "--dry_run",
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("gcloud")]
    assert lines[1] == (
        "gcloud compute tpus queued-resources create deit-s --node-count=2 --node-prefix=deit-s "
        "--runtime-version=v2-alpha-tpuv6e --accelerator-type=v6e-16 --zone=z --reserved "
        "'--labels=team=a b' --data-disk=source=d,mode=read-only"
    )
    assert lines[2].startswith("gcloud alpha compute tpus queued-resources scp ")
    assert lines[2].endswith(" deit-s: --zone=z --worker=all --node=all")
    assert "data: each worker must have ~/tensorflow_datasets" in process.stdout
    process, _ = run_launch("--target=slurm", "--sbatch_args=--account=a --exclusive", "--dry_run")
    lines = process.stdout.splitlines()
    assert {"#SBATCH --account=a", "#SBATCH --exclusive", "#SBATCH --time=24:00:00"} <= set(lines)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--accelerator=v5e-8"], "v5e is called v5litepod"),
        (["--accelerator=v9-8"], "must be one of v2, v3, v4, v5litepod, v5p, v6e"),
        (["--accelerator=v6e-12"], "the size of a v6e must be 1, 4, 8, 16, 32, 64, 128, 256"),
        (["--accelerator=v5p-12"], "must be a multiple of 8, 8-12288"),
        (["--runtime=v2-alpha-tpuv6e"], "is not for v5litepod; pass --runtime=v2-alpha-tpuv5-lite"),
        (["--slices=2"], "requires --target=queued"),
        (["--gcloud_args=reserved"], "reserved must be --NAME or --NAME=VALUE"),
        (["--target=slurm", "--sbatch_args=-p gpu"], "-p must be --NAME or --NAME=VALUE"),
    ],
)
def test_unknown_machines_and_options_are_refused(args, message, capsys):
    defaults = ["--target=tpu-vm", "--zone=z", "--workdir=/tmp/w", "--config=configs/digits.py"]
    assert command.run(launch, *defaults, "--dry_run", *args) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


def test_several_workers_need_an_ssh_agent(run_launch, tmp_path):
    (tmp_path / "ssh-add").write_text("#!/bin/sh\nexit 2\n")
    (tmp_path / "ssh-add").chmod(0o755)
    process, calls = run_launch("--target=tpu-vm", "--accelerator=v5litepod-16")
    assert process.returncode == 2 and "run eval $(ssh-agent) && ssh-add" in process.stderr
    assert not calls


def test_data_in_a_bucket_are_checked_first(run_launch, tmp_path):
    (tmp_path / "gcloud").write_text("#!/bin/sh\n[ $1 != storage ]\n")
    process, _ = run_launch("--target=tpu-vm", "--config.data.dir=gs://b/data")
    assert process.returncode == 2
    assert "--config.data.dir=gs://b/data cannot be listed" in process.stderr
