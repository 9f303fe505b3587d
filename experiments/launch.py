"""Run the training command on another machine, and restart it until training is done.

python -m experiments.launch --target=tpu-vm --name=deit-s --zone=us-west4-a --spot \\
    --accelerator=v5litepod-8 --config=configs/deit.py:S --workdir=gs://bucket/deit_s
python -m experiments.launch --target=slurm --nodes=2 --gpus=8 --config=configs/deit.py:S \\
    --workdir=/shared/deit_s
python -m experiments.launch --target=local --config=configs/digits.py --workdir=runs/digits

--target: tpu-vm (a TPU VM, through gcloud), queued (the same as a queued resource), slurm, or
local. --dry_run prints the commands without running them. --workdir must be a directory that all
workers share, or gs://BUCKET/RUN (not with SLURM). A restart resumes from its latest checkpoint.

On TPU VMs, each worker gets this working tree and the package versions of this environment (make it
with Python 3.11, the version of the workers). Training does not depend on the ssh connection; its
log is printed. A preempted slice is deleted, created again and training is resumed. The exit code
of training decides: 0, 2 (user error), 3 (diverged) and 4 (no space left) are final; 75 (preempted
and saved) and crashes lead to a restart, at most --restarts times. The slice is deleted at the end
unless --keep is passed.

With --sweep, --grid or --draw, see experiments.sweep, each run of a sweep becomes a task of a SLURM
array or gets its own TPU slice, NAME-0, NAME-1, ..., --jobs of them at a time:
python -m experiments.launch --target=slurm --gpus=1 --jobs=4 --config=configs/fashion_mnist.py \\
    --workdir=/shared/lr --grid=optim.lr=1e-3,3e-3
The runs are in subdirectories of --workdir. To tabulate them, at any time, where it is mounted:
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
from vit_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
# One process per GPU, as JAX assumes under SLURM.
SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={hours}:00:00
#SBATCH --output={workdir}/slurm-{log}.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120{array}
cd {root}
{train}
code=$?
if [ $code -eq 75 ]; then scontrol requeue {job}; fi  # saved before the time limit
exit $code
"""
# The sweep prints the training command of a task; srun starts it in all processes of the task.
TASK = """PATH={root}/.venv/bin:$PATH
train=$({sweep} --index=$SLURM_ARRAY_TASK_ID --dry_run) || exit
eval "srun --kill-on-bad-exit=1 $train\""""


def define_flags():
    cli.define_config()
    flags.DEFINE_string(
        "workdir", None, "directory that all workers share, or gs://BUCKET/RUN", required=True
    )
    flags.DEFINE_enum("target", "local", ("local", "tpu-vm", "queued", "slurm"), "where to run")
    flags.DEFINE_bool("dry_run", False, "print the commands and exit")
    flags.DEFINE_string("name", None, "name of the slice or job (default: from --workdir)")
    flags.DEFINE_integer("restarts", 100, "maximum number of restarts", lower_bound=0)
    flags.DEFINE_string("zone", None, "tpu-vm, queued: zone")
    flags.DEFINE_string("project", None, "tpu-vm, queued: project (default: gcloud's)")
    flags.DEFINE_string("accelerator", "v5litepod-8", "tpu-vm, queued: accelerator type")
    flags.DEFINE_string("runtime", None, "tpu-vm, queued: runtime version")
    flags.DEFINE_bool("spot", False, "tpu-vm, queued: use preemptible capacity")
    flags.DEFINE_bool("keep", False, "tpu-vm, queued: keep the slice at the end")
    flags.DEFINE_string("code", None, "tpu-vm, queued: archive to send (default: this tree)")
    flags.DEFINE_integer("nodes", 1, "slurm: number of nodes", lower_bound=1)
    flags.DEFINE_integer("gpus", 8, "slurm: GPUs per node", lower_bound=1)
    flags.DEFINE_integer("hours", 24, "slurm: time limit in hours", lower_bound=1)
    flags.DEFINE_bool("sweep", False, "launch the runs of the recipe's sweep()")
    sweep.define_choices()


def main(flags):
    spec, fixed = runs.handed_on(sys.argv[1:])
    planned = None
    words = runs.one(spec, fixed, flags.workdir).command[1:]
    if flags.sweep or flags.grid or flags.draw:
        planned = runs.plan(spec, fixed, sweep.choices(spec, flags), flags.workdir)
        words = ["-m", "experiments.sweep", f"--config={spec}", f"--output={flags.workdir}"]
        words += [f"--config.{key}={text}" for key, text in fixed.items()]
        words += as_words(flags, "grid", "draw", "draws")
    shell = Shell(flags.dry_run)
    if flags.target == "local":
        words += as_words(flags, "jobs") if planned else []
        return again(lambda: shell([sys.executable, *words]), flags.restarts)
    name = flags.name or re.sub(r"[^a-z0-9-]+", "-", Path(flags.workdir).name.lower()).strip("-")
    if flags.target == "slurm":
        cli.check_local("workdir", flags.workdir)
        if not flags.dry_run:
            Path(flags.workdir).mkdir(parents=True, exist_ok=True)  # for the log
        return shell(["sbatch"], text=job(name, words, planned and len(planned), flags))
    if not flags.zone:
        raise UserError(f"--target={flags.target} needs --zone, such as --zone=us-west4-a")
    archive = Path(flags.code) if flags.code else tpu.snapshot(write=not flags.dry_run)
    if not flags.dry_run and not archive.is_file():
        raise UserError(f"--code={archive} does not exist")
    if planned:
        return slices(planned, name, archive, flags)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler)  # Ctrl-C: the slice is deleted below
    slice_ = tpu.TpuSlice(shell, name, flags, archive, shlex.join([".venv/bin/python", *words]))
    try:
        return again(slice_.attempt, flags.restarts)
    finally:
        if not flags.keep:
            slice_.delete()


def as_words(flags, *names):
    """Format flags for a command line, without those that are not set."""
    words = []
    for name in names:
        value = flags[name].value
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}={each}" for each in values if each is not None]
    return words


def job(name, words, count, flags):
    """Return the script for sbatch.

    Args:
        name: the name of the job.
        words: the words of the command after python.
        count: the number of tasks of an array, or None for a single job.
        flags: the flags of this command.
    """
    command = shlex.join([str(ROOT / ".venv/bin/python"), *words])
    parts = {"array": "", "log": "%j", "job": "$SLURM_JOB_ID"}
    parts["train"] = f"srun --kill-on-bad-exit=1 {command}"
    if count:
        parts["array"] = f"\n#SBATCH --array=0-{count - 1}%{flags.jobs}"
        parts["log"] = "%A_%a"
        parts["train"] = TASK.format(root=ROOT, sweep=command)
        # SLURM_JOB_ID of one of the tasks is the ID of the whole array.
        parts["job"] = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    numbers = {key: flags[key].value for key in ("workdir", "nodes", "gpus", "hours")}
    return SLURM.format(name=name, root=ROOT, **parts, **numbers)


def slices(planned, name, archive, flags):
    """Launch each run on its own slice, log to runs/launch, and return the largest exit code."""
    if flags.keep:
        raise UserError("--keep cannot be combined with a sweep, which deletes its slices")
    kept = ("target", "zone", "project", "accelerator", "runtime", "spot", "restarts")
    for index, run in enumerate(planned):
        own = [f"--name={name}-{index}", f"--code={archive}", *as_words(flags, *kept)]
        run.command = [sys.executable, "-m", "experiments.launch", *own, *run.command[3:]]
        run.log = ROOT / "runs" / "launch" / f"{name}-{index}.log"
    if flags.dry_run:
        return max([subprocess.run([*run.command, "--dry_run"]).returncode for run in planned])
    print(f"logs: {planned[0].log.parent}/{name}-*.log", flush=True)
    with distributed.StopSignal() as stop:
        return max(runs.make(planned, flags.jobs, stop).values())


def again(attempt, restarts, wait=10.0):
    """Call attempt() until it returns a final exit code, and return the last code.

    Args:
        attempt: trains and returns the exit code.
        restarts: the maximum number of calls after the first.
        wait: seconds between a crash and the next call.
    """
    for count in range(restarts + 1):
        code = attempt()
        if code in runs.FINAL:
            return code
        if count < restarts:
            print(f"exit code {code}; restart {count + 1} of {restarts}", flush=True)
            time.sleep(wait if code != 75 else 0)
    return code


class Shell:
    """Runs commands; with dry_run, prints them as if they had succeeded."""

    def __init__(self, dry_run):
        self.dry_run = dry_run

    def __call__(self, command, text=None):
        """Run a command with text as its input, print its output and return its exit code."""
        if self.dry_run:
            print(shlex.join(command) + (f" <<'EOF'\n{text}EOF" if text else ""))
            return 0
        return self._run(command, input=text).returncode

    def ask(self, command, dry):
        """Return the output of a command, None if it fails, or `dry` with dry_run."""
        if self.dry_run:
            print(shlex.join(command))
            return dry
        found = self._run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return None if found.returncode else found.stdout.strip()

    def _run(self, command, **options):
        try:
            return subprocess.run(command, text=True, **options)
        except FileNotFoundError:
            raise UserError(f"{command[0]} is not installed, or not on PATH") from None


if __name__ == "__main__":
    define_flags()
    cli.run(main)
