"""The training command on another machine, again and again until it is done.

python -m experiments.launch --target=tpu-vm --name=deit-s --zone=us-west4-a --spot \\
    --accelerator=v5litepod-8 --config=configs/deit.py:S --workdir=gs://bucket/deit_s
python -m experiments.launch --target=slurm --nodes=2 --gpus=8 --config=configs/deit.py:S \\
    --workdir=/shared/deit_s
python -m experiments.launch --target=local --config=configs/digits.py --workdir=runs/digits

--target: tpu-vm (gcloud's TPU VMs), queued (the same by a queued resource), slurm, or local. With
--dry_run the commands are printed, and nothing is done. --workdir must be one folder for all
workers, or gs://BUCKET/RUN but under SLURM, and is said once: training that is started again goes
on there.

On TPU VMs every worker gets this working tree, with the versions of this environment (made with
Python 3.11, which is what they have), and runs apart from the connection; the log is followed.
What is lost to preemption is deleted, created and started again. By training's exit code: 0 ends
it, and so do 2, 3 and 4, which would come again (your mistake, diverged, no space); 75 (saved) and
crashes start it again, at most --restarts times.
The machine is deleted at the end, unless --keep.

With --sweep, --grid or --draw, as experiments.sweep has them, every run of a sweep gets a task of
one SLURM array or a TPU slice of its own, NAME-0, NAME-1, ..., --jobs of them at a time:
python -m experiments.launch --target=slurm --gpus=1 --jobs=4 --config=configs/fashion_mnist.py \\
    --workdir=/shared/lr --grid=optim.lr=1e-3,3e-3
The runs are in folders of --workdir. Then, or in between, their table, from where they are seen:
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
# A process for each GPU: that is how JAX shares them out under SLURM.
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
if [ $code -eq 75 ]; then scontrol requeue {job}; fi  # saved before the time was up
exit $code
"""
# A task's run, as the sweep says it: the processes that srun starts are that run, all of them.
TASK = """PATH={root}/.venv/bin:$PATH
train=$({sweep} --index=$SLURM_ARRAY_TASK_ID --dry_run) || exit
eval "srun --kill-on-bad-exit=1 $train\""""


def define_flags():
    cli.define_config()
    flags.DEFINE_string(
        "workdir", None, "folder of the run for all workers, or gs://BUCKET/RUN", required=True
    )
    flags.DEFINE_enum("target", "local", ("local", "tpu-vm", "queued", "slurm"), "where")
    flags.DEFINE_bool("dry_run", False, "print the commands and stop")
    flags.DEFINE_string("name", None, "of the machine or job (default: that of the workdir)")
    flags.DEFINE_integer("restarts", 100, "at most so many starts after the first", lower_bound=0)
    flags.DEFINE_string("zone", None, "tpu-vm, queued: gcloud's zone")
    flags.DEFINE_string("project", None, "tpu-vm, queued: gcloud's project")
    flags.DEFINE_string("accelerator", "v5litepod-8", "tpu-vm, queued: type of the slice")
    flags.DEFINE_string("runtime", None, "tpu-vm, queued: version of the image")
    flags.DEFINE_bool("spot", False, "tpu-vm, queued: cheaper, may be taken away")
    flags.DEFINE_bool("keep", False, "tpu-vm, queued: do not delete it at the end")
    flags.DEFINE_string("code", None, "tpu-vm, queued: runs/vit_jax-*.tar.gz, not this tree")
    flags.DEFINE_integer("nodes", 1, "slurm: machines", lower_bound=1)
    flags.DEFINE_integer("gpus", 8, "slurm: GPUs of each", lower_bound=1)
    flags.DEFINE_integer("hours", 24, "slurm: time of a job", lower_bound=1)
    flags.DEFINE_bool("sweep", False, "all runs of the recipe's own sweep()")
    sweep.define_choices()


def main(flags):
    spec, fixed = runs.handed_on(sys.argv[1:])
    planned, words = None, runs.one(spec, fixed, flags.workdir).command[1:]
    if flags.sweep or flags.grid or flags.draw:
        planned = runs.plan(spec, fixed, sweep.choices(spec, flags), flags.workdir)
        words = ["-m", "experiments.sweep", f"--config={spec}", f"--output={flags.workdir}"]
        words += [f"--config.{key}={text}" for key, text in fixed.items()]
        words += said(flags, "grid", "draw", "draws")
    shell = Shell(flags.dry_run)
    if flags.target == "local":
        words += said(flags, "jobs") if planned else []
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
        raise UserError(f"--code={archive} is not there")
    if planned:
        return slices(planned, name, archive, flags)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, leave)
    slice_ = tpu.Slice(shell, name, flags, archive, shlex.join([".venv/bin/python", *words]))
    try:
        return again(slice_.attempt, flags.restarts)
    finally:
        if not flags.keep:
            slice_.delete()


def said(flags, *names):
    """These flags as words of a command line, those without a value left out."""
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
    """The script for sbatch; with a count, of an array with so many tasks."""
    command = shlex.join([str(ROOT / ".venv/bin/python"), *words])
    parts = {"array": "", "log": "%j", "job": "$SLURM_JOB_ID"}
    parts["train"] = f"srun --kill-on-bad-exit=1 {command}"
    if count:
        parts["array"] = f"\n#SBATCH --array=0-{count - 1}%{flags.jobs}"
        parts["log"] = "%A_%a"
        parts["train"] = TASK.format(root=ROOT, sweep=command)
        # SLURM_JOB_ID of one of the tasks is the name of the whole array.
        parts["job"] = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    numbers = {key: flags[key].value for key in ("workdir", "nodes", "gpus", "hours")}
    return SLURM.format(name=name, root=ROOT, **parts, **numbers)


def slices(planned, name, archive, flags):
    """A launch for each run, with the same code, and what they say in runs/launch. -> exit code"""
    if flags.keep:
        raise UserError("--keep is for a single run: a sweep has its slices deleted, one by one")
    kept = ("target", "zone", "project", "accelerator", "runtime", "spot", "restarts")
    for index, run in enumerate(planned):
        own = [f"--name={name}-{index}", f"--code={archive}", *said(flags, *kept)]
        run.command = [sys.executable, "-m", "experiments.launch", *own, *run.command[3:]]
        run.log = ROOT / "runs" / "launch" / f"{name}-{index}.log"
    if flags.dry_run:
        return max([subprocess.run([*run.command, "--dry_run"]).returncode for run in planned])
    print(f"what they say: {planned[0].log.parent}/{name}-*.log", flush=True)
    with distributed.Stop() as stop:
        return max(runs.make(planned, flags.jobs, stop).values())


def leave(*_):
    """The handler of a signal: as for Ctrl-C, what was made is deleted."""
    raise KeyboardInterrupt


def again(attempt, restarts, wait=10.0):
    """Calls attempt() -> exit code until the code is one of FINAL. -> the last code"""
    for count in range(restarts + 1):
        code = attempt()
        if code in runs.FINAL:
            return code
        if count < restarts:
            print(f"ended with exit code {code}; start {count + 2}", flush=True)
            time.sleep(wait if code != 75 else 0)
    return code


class Shell:
    """Runs commands, or with dry_run prints them and takes them to have succeeded."""

    def __init__(self, dry_run):
        self.dry_run = dry_run

    def __call__(self, command, text=None):
        """-> exit code; what the command prints is seen at once."""
        if self.dry_run:
            print(shlex.join(command) + (f" <<'EOF'\n{text}EOF" if text else ""))
            return 0
        return self._run(command, input=text).returncode

    def ask(self, command, dry):
        """-> what the command printed, None where it failed; `dry` with dry_run."""
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
