"""Run the training command on a TPU slice, a SLURM cluster or this machine until it finishes.

python -m experiments.launch --target=tpu-vm --name=deit-s --zone=us-west4-a --spot \\
    --accelerator=v5litepod-8 --config=configs/deit.py:S --workdir=gs://bucket/deit_s
python -m experiments.launch --target=slurm --nodes=2 --gpus=8 --config=configs/deit.py:S \\
    --workdir=/shared/deit_s
python -m experiments.launch --target=local --config=configs/digits.py --workdir=runs/digits

--target is tpu-vm (a TPU VM, created with gcloud), queued (a TPU VM as a queued resource), slurm or
local. --dry_run prints the commands without running them. --workdir must be a directory that all
workers share, or gs://BUCKET/RUN (not with SLURM). A restart resumes from the latest checkpoint.

On TPU VMs, each worker receives a copy of this working tree and installs the package versions of
this environment under Python 3.12 or newer; versions that do not exist there are replaced. The
training log is printed and copied to WORKDIR/launch every minute; training continues if the ssh
connection is lost. --slices=2 connects several slices, as a queued resource. A preempted slice is
deleted and recreated, and training is resumed. Exit codes 0, 2 (user error, or a failed copy or
installation), 3 (diverged), 4 (no space left) and 5 (workdir lost) of training are final. Training
is restarted after 75 (preempted and saved), at most --restarts times, and after a crash, at most
--crashes times. The slice is deleted at the end unless --keep is passed. With --hours, training is
stopped at that time, and the slice deletes itself later even if this command was stopped.
--existing=NAME uses a slice that exists and never deletes it.

--gcloud_args passes other flags to `gcloud ... create`, and --sbatch_args to sbatch:
--gcloud_args='--reserved --network=net --internal-ips --service-account=A --labels=team=vision'
--sbatch_args='--account=vision --partition=gpu'

With --sweep, --grid or --draw (see experiments.sweep), each run of a sweep becomes a task of a
SLURM array, or runs on a separate TPU slice, NAME-0, NAME-1, ..., --jobs of them at a time:
python -m experiments.launch --target=slurm --gpus=1 --jobs=4 --config=configs/fashion_mnist.py \\
    --workdir=/shared/lr --grid=optim.lr=1e-3,3e-3
The workdirs of the runs are subdirectories of --workdir. To tabulate the results at any time, run
this where --workdir is mounted:
python -m experiments.sweep --config=configs/fashion_mnist.py --output=/shared/lr \\
    --grid=optim.lr=1e-3,3e-3 --table
"""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from experiments import runs, sweep, tpu
from vit_jax import cli
from vit_jax.devices import distributed
from vit_jax.errors import UserError, printable
from vit_jax.workdir import storage

ROOT = Path(__file__).resolve().parents[1]
# What SLURM and Google Cloud accept as names; a leading dash would be an option of their commands.
JOB_NAME = r"\w[\w.=+-]*"
TPU_NAMES = {
    "name": r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
    "zone": r"[a-z][a-z0-9-]*",
    "project": r"[a-z][a-z0-9-]*",
    "accelerator": r"[a-z][a-z0-9-]*",
    "runtime": r"[a-z][a-z0-9.-]*",
}
# One process per GPU, as JAX expects under SLURM.
SBATCH_ARG = r"--[a-z][a-z-]*(=[^\s\\\"'#]+)?"
SBATCH_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={hours}:00:00
#SBATCH --output={workdir}/slurm-{log}.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120{options}
cd {root}
{train}
code=$?
if [ $code -eq 75 ]; then scontrol requeue {job}; fi  # 75: saved before the time limit
exit $code
"""
# experiments.sweep prints the training command of a task, and srun runs it in all processes.
TASK_SCRIPT = """PATH={bin}:$PATH
train=$({sweep} --index=$SLURM_ARRAY_TASK_ID --dry_run) || exit
eval "srun --kill-on-bad-exit=1 $train\""""


def define_flags():
    cli.define_config()
    flags.DEFINE_string(
        "workdir", None, "directory that all workers share, or gs://BUCKET/RUN", required=True
    )
    flags.DEFINE_enum("target", "local", ("local", "tpu-vm", "queued", "slurm"), "where to train")
    flags.DEFINE_bool("dry_run", False, "print the commands and exit")
    flags.DEFINE_string("name", None, "name of the slice or job (default: from --workdir)")
    flags.DEFINE_integer("restarts", 100, "maximum restarts after preemptions", lower_bound=0)
    flags.DEFINE_integer("crashes", 3, "maximum restarts after crashes", lower_bound=0)
    flags.DEFINE_string("existing", None, "tpu-vm, queued: name of a slice that exists")
    flags.DEFINE_integer("slices", 1, "queued: number of connected slices", lower_bound=1)
    flags.DEFINE_string("gcloud_args", None, "tpu-vm, queued: other flags of `gcloud ... create`")
    flags.DEFINE_string("sbatch_args", None, "slurm: other options of sbatch, as --NAME=VALUE")
    flags.DEFINE_string("zone", None, "tpu-vm, queued: zone")
    flags.DEFINE_string("project", None, "tpu-vm, queued: project (default: that of gcloud)")
    flags.DEFINE_string("accelerator", "v5litepod-8", "tpu-vm, queued: accelerator type")
    flags.DEFINE_string("runtime", None, "tpu-vm, queued: runtime version")
    flags.DEFINE_bool("spot", False, "tpu-vm, queued: use preemptible capacity")
    flags.DEFINE_bool("keep", False, "tpu-vm, queued: do not delete the slice at the end")
    flags.DEFINE_string("code", None, "tpu-vm, queued: code archive (default: this working tree)")
    flags.DEFINE_integer("nodes", 1, "slurm: number of nodes", lower_bound=1)
    flags.DEFINE_integer("gpus", 8, "slurm: GPUs per node", lower_bound=1)
    flags.DEFINE_integer(
        "hours", None, "time limit in hours (default: slurm 24, others unlimited)", lower_bound=1
    )
    flags.DEFINE_multi_string("then", [], "recipe of a further stage, see vit_jax.train")
    flags.DEFINE_bool("sweep", False, "launch the runs of the sweep() in the recipe")
    sweep.define_sweep_flags()


def main(flags):
    check_arguments(sys.argv[1:])
    spec, fixed = runs.recipe_and_overrides(sys.argv[1:])
    jobs = None
    job = runs.make_job(spec, fixed, flags.workdir)
    args = job.command[1:]
    for stage in flags.then:
        args.append(f"--then={stage}")
        cli.build_config(stage, fixed.items())  # an error is reported before anything is created
    if flags.sweep or flags.grid or flags.draw:
        if flags.then:
            raise UserError("the runs of a sweep have one stage; leave out --then")
        jobs = runs.plan_sweep(spec, fixed, sweep.sweep_overrides(spec, flags), flags.workdir)
        args = ["-m", "experiments.sweep", f"--config={spec}", f"--output={flags.workdir}"]
        args += [f"--config.{key}={text}" for key, text in fixed.items()]
        args += format_flags(flags, "grid", "draw", "draws")
    shell = Shell(flags.dry_run)
    if flags.target == "local":
        args += format_flags(flags, "jobs") if jobs else []
        return retry(lambda: shell([sys.executable, *args]), flags)
    name = (
        flags.existing
        or flags.name
        or re.sub(r"[^a-z0-9-]+", "-", Path(flags.workdir).name.lower()).strip("-")
    )
    if flags.target == "slurm":
        cli.check_local("workdir", flags.workdir)
        check_name("name", name, JOB_NAME)
        if re.search(r"[\s%\\\"'#]", flags.workdir):  # SLURM interprets these in --output
            raise UserError(
                f"--workdir={flags.workdir} must not have spaces, quotes or any of % \\ # on SLURM"
            )
        if not flags.dry_run:
            runs.output_path("workdir", flags.workdir, directory=True)  # for the log
        return shell(["sbatch"], text=sbatch_script(name, args, jobs and len(jobs), flags))
    check_tpu_flags(flags, f"{name}-{len(jobs) - 1}" if jobs else name)
    archive = Path(flags.code).absolute() if flags.code else tpu.snapshot(write=not flags.dry_run)
    if not re.fullmatch(r"\w[\w.-]*\.tar\.gz", archive.name, re.ASCII) or ":" in str(archive):
        raise UserError(
            f"--code={archive} must be named like code-1.tar.gz, in a directory without colons"
        )
    if not flags.dry_run and not archive.is_file():
        raise UserError(f"--code={archive} does not exist")
    line, path = tpu.describe_data(job.config)
    print(line, flush=True)
    if path is None and storage.is_bucket(job.config.data.dir):
        listing = ["gcloud", "storage", "ls", job.config.data.dir]
        if shell.capture(listing, dry_output="") is None:
            raise UserError(
                f"--config.data.dir={job.config.data.dir} cannot be listed; check its name, and "
                "your permissions with gcloud storage ls"
            )
    if jobs:
        return launch_slices(jobs, name, archive, flags)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler)  # like Ctrl-C: delete the slice below
    slice_ = tpu.TpuSlice(shell, name, flags, archive, [".venv/bin/python", *args], path)
    try:
        return retry(slice_.attempt, flags)
    finally:
        if not (flags.keep or flags.existing):
            slice_.delete()


def check_tpu_flags(flags, name):
    """Raise UserError if the flags of a TPU slice are invalid, before anything is created.

    Args:
        flags: the flags of this command.
        name: the longest name of a slice.
    """
    if not flags.zone:
        raise UserError(f"--target={flags.target} requires --zone, such as --zone=us-west4-a")
    check_name("existing" if flags.existing else "name", name, TPU_NAMES["name"])
    for flag in ("zone", "project", "accelerator", "runtime"):
        if flags[flag].value is not None:
            check_name(flag, flags[flag].value, TPU_NAMES[flag])
    tpu.check_types(flags.accelerator, flags.runtime)
    if flags.slices > 1 and flags.target != "queued":
        raise UserError(f"--slices={flags.slices} requires --target=queued")
    split_args("gcloud_args", flags.gcloud_args, r"--.+")
    if not flags.dry_run and tpu.needs_agent(flags.accelerator, flags.slices):
        if subprocess.run(["ssh-add", "-l"], capture_output=True).returncode:
            raise UserError(
                "gcloud needs ssh-agent to connect to several workers; run eval $(ssh-agent) && "
                "ssh-add ~/.ssh/google_compute_engine, which gcloud compute config-ssh creates"
            )


def check_arguments(args):
    """Raise UserError if an argument could add a line to the scripts of this command."""
    for arg in args:
        if not arg.isprintable():
            raise UserError(f"{printable(arg)} has characters that are not printable")


def check_name(flag, name, pattern):
    """Raise UserError if a name, passed as --flag or its default, does not match a pattern."""
    if not re.fullmatch(pattern, name, re.ASCII):
        allowed = pattern.replace("\\w", "[A-Za-z0-9_]")
        raise UserError(f"--{flag}={name} is not a valid {flag}; it must match {allowed}")


def split_args(flag, text, pattern):
    """Split the arguments passed as --flag=text. Raises UserError if one does not match."""
    try:
        args = shlex.split(text or "")
    except ValueError as error:
        raise UserError(f"--{flag}={text}: {error}") from None
    for arg in args:
        if not re.fullmatch(pattern, arg, re.ASCII):
            raise UserError(f"--{flag}: {arg} must be --NAME or --NAME=VALUE")
    return args


def format_flags(flags, *names):
    """Format the values of flags as command-line arguments, omitting flags that are not set."""
    args = []
    for name in names:
        value = flags[name].value
        if isinstance(value, bool):
            args += [f"--{name}"] if value else []
        else:
            values = value if isinstance(value, list) else [value]
            args += [f"--{name}={item}" for item in values if item is not None]
    return args


def sbatch_script(name, args, num_tasks, flags):
    """Return the script for sbatch.

    Args:
        name: the name of the SLURM job.
        args: the arguments of the Python command to run.
        num_tasks: the number of tasks of a job array, or None for a single job.
        flags: the flags of this command.
    """
    command = shlex.join([str(ROOT / ".venv/bin/python"), *args])
    options = split_args("sbatch_args", flags.sbatch_args, SBATCH_ARG)
    parts = {"log": "%j", "job": "$SLURM_JOB_ID"}
    parts["train"] = f"srun --kill-on-bad-exit=1 {command}"
    if num_tasks:
        options.append(f"--array=0-{num_tasks - 1}%{flags.jobs}")
        parts["log"] = "%A_%a"
        executables = shlex.quote(str(ROOT / ".venv/bin"))
        parts["train"] = TASK_SCRIPT.format(bin=executables, sweep=command)
        # In one of the tasks, SLURM_JOB_ID is the ID of the whole array.
        parts["job"] = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    parts["options"] = "".join(f"\n#SBATCH {option}" for option in options)
    parts["hours"] = flags.hours or 24
    values = {key: flags[key].value for key in ("workdir", "nodes", "gpus")}
    return SBATCH_SCRIPT.format(name=name, root=shlex.quote(str(ROOT)), **parts, **values)


def launch_slices(jobs, name, archive, flags):
    """Launch each job of a sweep on a separate TPU slice and wait for all of them.

    Each slice is launched by a subprocess of this command, which logs to runs/launch.

    Args:
        jobs: list of runs.Job.
        name: the prefix of the slice names.
        archive: the Path of the code archive.
        flags: the flags of this command.

    Returns:
        The largest exit code.

    Raises:
        UserError: if --keep or --existing is set.
    """
    for flag in ("keep", "existing"):
        if flags[flag].value:
            raise UserError(f"--{flag} cannot be combined with a sweep, which deletes its slices")
    inherited = ("target", "zone", "project", "accelerator", "runtime", "spot", "restarts")
    inherited += ("crashes", "hours", "slices", "gcloud_args")
    for index, job in enumerate(jobs):
        args = [f"--name={name}-{index}", f"--code={archive}", *format_flags(flags, *inherited)]
        job.command = [sys.executable, "-m", "experiments.launch", *args, *job.command[3:]]
        job.log = ROOT / "runs" / "launch" / f"{name}-{index}.log"
    if flags.dry_run:
        return max([subprocess.run([*job.command, "--dry_run"]).returncode for job in jobs])
    print(f"logs: {jobs[0].log.parent}/{name}-*.log", flush=True)
    with distributed.StopSignal() as stop:
        return max(runs.run_all(jobs, flags.jobs, stop).values())


def retry(attempt, flags, wait=10.0):
    """Call attempt() until it returns a final exit code, and return the last code.

    Args:
        attempt: a function that trains and returns the exit code.
        flags: the flags `restarts`, the maximum number of restarts after a preemption (75), and
            `crashes`, that after other codes.
        wait: seconds between a crash and the next call; there is no wait after a preemption.
    """
    left = {True: flags.restarts, False: flags.crashes}
    while True:
        code = attempt()
        if code == 124:
            print(f"stopped at the time limit of {flags.hours} hours", flush=True)
        if code in (*runs.FINAL_CODES, 124):
            return code
        preempted = code == 75
        if not left[preempted]:
            return code
        left[preempted] -= 1
        kind = "preempted" if preempted else "crashed"
        print(f"{kind} (exit code {code}); restarting, {left[preempted]} restarts left", flush=True)
        time.sleep(0 if preempted else wait)


class Shell:
    """Runs commands; with dry_run, prints them and assumes that they succeed."""

    def __init__(self, dry_run):
        self.dry_run = dry_run

    def __call__(self, command, text=None):
        """Run a command with `text` as its stdin, print its output and return its exit code."""
        if self.dry_run:
            print(shlex.join(command) + (f" <<'EOF'\n{text}EOF" if text else ""))
            return 0
        return self._run(command, input=text).returncode

    def capture(self, command, dry_output):
        """Return the stdout of a command, or None if it fails; with dry_run, `dry_output`."""
        if self.dry_run:
            print(shlex.join(command))
            return dry_output
        process = self._run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return None if process.returncode else process.stdout.strip()

    def _run(self, command, **options):
        try:
            return subprocess.run(command, text=True, **options)
        except FileNotFoundError:
            raise UserError(f"{command[0]} is not installed or not on PATH") from None


if __name__ == "__main__":
    define_flags()
    cli.run(main)
