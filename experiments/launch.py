"""The training command on another machine, again and again until it is done.

python -m experiments.launch --target=tpu-vm --name=deit-s --zone=us-west4-a --spot \\
    --accelerator=v5litepod-8 --config=configs/deit.py:S --workdir=/mnt/shared/deit_s
python -m experiments.launch --target=slurm --nodes=2 --gpus=8 --config=configs/deit.py:S \\
    --workdir=/shared/deit_s
python -m experiments.launch --target=local --config=configs/digits.py --workdir=runs/digits

--target: tpu-vm (gcloud's TPU VMs), queued (the same by a queued resource), slurm, or local. With
--dry_run the commands are printed, and nothing is done. --workdir must be one folder for all
workers, and is said once: training that is started again goes on there.

On TPU VMs every worker gets this working tree, with the versions of this environment (made with
Python 3.11, which is what they have), and runs apart from the connection; the log is followed.
What is lost to preemption is deleted, created and started again. By training's exit code: 0 ends
it, and so do 2, 3 and 4, which would come again (your mistake, diverged, no space); 75 (saved) and
crashes start it again, at most --restarts times.
The machine is deleted at the end, unless --keep.
"""

import hashlib
import io
import re
import shlex
import subprocess
import sys
import tarfile
import time
from importlib import metadata
from pathlib import Path

from absl import flags

from experiments.sweep import handed_on
from vit_jax import cli
from vit_jax.cli import UserError

ROOT = Path(__file__).resolve().parents[1]
FINAL = (0, 2, 3, 4)  # exit codes after which starting again would change nothing
LOST = ("PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDED", "FAILED")
RUNTIMES = {"v6e": "v2-alpha-tpuv6e", "v5p": "v2-alpha-tpuv5", "v5litepod": "v2-alpha-tpuv5-lite"}
# A process for each GPU: that is how JAX shares them out under SLURM.
SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={hours}:00:00
#SBATCH --output={workdir}/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
cd {root}
srun --kill-on-bad-exit=1 {train}
code=$?
if [ $code -eq 75 ]; then scontrol requeue $SLURM_JOB_ID; fi  # saved before the time was up
exit $code
"""
# On a worker: unpacked and installed once; started unless it runs; then its log, to its end.
JOB = """set -e
mkdir -p {folder} && cd {folder}
if ! kill -0 $(cat job.pid 2>/dev/null) 2>/dev/null; then
  rm -f job.exit
  cat > job.sh <<'END'
trap 'echo $? > job.exit' EXIT
set -e
[ -f .unpacked ] || {{ tar xzf ../{archive} && touch .unpacked; }}
command -v python3.11 > /dev/null || {{
  sudo apt-get update && sudo apt-get install -y python3.11-venv
}}
PIP_CONSTRAINT=$PWD/constraints.txt make install EXTRA=tpu
{train}
END
  setsid nohup bash job.sh >> job.log 2>&1 < /dev/null &
  echo $! > job.pid
fi
tail -n 5 -F --pid=$(cat job.pid) job.log
true  # else the shell becomes the tail, which would wait for a child that it does not bury
"""


def define_flags():
    cli.define_config()
    flags.DEFINE_string(
        "workdir", None, "folder of the run, the same for all workers", required=True
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
    flags.DEFINE_integer("nodes", 1, "slurm: machines", lower_bound=1)
    flags.DEFINE_integer("gpus", 8, "slurm: GPUs of each", lower_bound=1)
    flags.DEFINE_integer("hours", 24, "slurm: time of a job", lower_bound=1)


def main(flags):
    cli.check_folder("workdir", flags.workdir)
    spec, fixed = handed_on(sys.argv[1:])
    words = ["-m", "vit_jax.train", f"--config={spec}", f"--workdir={flags.workdir}"]
    words += [f"--config.{key}={text}" for key, text in fixed.items()]
    shell = Shell(flags.dry_run)
    if flags.target == "local":
        return again(lambda: shell([sys.executable, *words]), flags.restarts)
    name = flags.name or re.sub(r"[^a-z0-9-]+", "-", Path(flags.workdir).name.lower()).strip("-")
    if flags.target == "slurm":
        train = shlex.join([str(ROOT / ".venv/bin/python"), *words])
        numbers = {key: flags[key].value for key in ("workdir", "nodes", "gpus", "hours")}
        script = SLURM.format(name=name, root=ROOT, train=train, **numbers)
        if not flags.dry_run:
            Path(flags.workdir).mkdir(parents=True, exist_ok=True)  # for the log
        return shell(["sbatch"], text=script)
    if not flags.zone:
        raise UserError(f"--target={flags.target} needs --zone, such as --zone=us-west4-a")
    archive, digest = snapshot(write=not flags.dry_run)
    train = shlex.join([".venv/bin/python", *words])
    slice_ = Slice(shell, name, flags, archive, f"vit_jax-{digest}", train)
    try:
        return again(slice_.attempt, flags.restarts)
    finally:
        if not flags.keep:
            slice_.delete()


def again(attempt, restarts, wait=10.0):
    """Calls attempt() -> exit code until the code is one of FINAL. -> the last code"""
    for count in range(restarts + 1):
        code = attempt()
        if code in FINAL:
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


class Slice:
    """A TPU slice by gcloud's name for it, created and lost as often as it takes."""

    def __init__(self, shell, name, flags, archive, folder, train):
        self.shell, self.name, self.flags = shell, name, flags
        self.archive, self.folder = archive, folder
        self.job = JOB.format(folder=folder, archive=archive.name, train=train)
        self.queued = flags.target == "queued"
        self.ready = "ACTIVE" if self.queued else "READY"
        self.resource = ["gcloud", "compute", "tpus"]
        self.resource += ["queued-resources" if self.queued else "tpu-vm"]
        kind = flags.accelerator.partition("-")[0]
        self.runtime = flags.runtime or RUNTIMES.get(kind, "tpu-ubuntu2204-base")
        self.where = [f"--zone={flags.zone}"]
        self.where += [f"--project={flags.project}"] if flags.project else []

    def attempt(self):
        """Training once, on a slice that is there. -> its exit code; 75 where it was lost"""
        self.ensure()
        vm = ["gcloud", "compute", "tpus", "tpu-vm"]
        every = [*self.where, "--worker=all"]
        self.shell([*vm, "scp", str(self.archive), f"{self.name}:", *every])
        self.shell([*vm, "ssh", self.name, *every, f"--command={self.job}"])
        # What ssh returns may be the connection's fate; the job's own is in a file.
        ask = [*vm, "ssh", self.name, *every, f"--command=cat {self.folder}/job.exit"]
        said = self.shell.ask(ask, dry="0")
        if said is None or not said.split():
            return 75 if self.state() != self.ready else 1
        codes = [int(word) for word in said.split() if word.isdigit()]
        # What one worker says for sure counts more than that the others lost it.
        return next((code for code in codes if code in FINAL and code), max(codes, default=1))

    def ensure(self):
        """Until there is a slice: what was lost is deleted first."""
        state = self.state()
        if state in LOST:
            self.delete()
            state = None
        if state is None:
            command = [*self.resource, "create", self.name]
            if self.queued:
                command += [f"--node-id={self.name}", f"--runtime-version={self.runtime}"]
            else:
                command += [f"--version={self.runtime}"]
            command += [f"--accelerator-type={self.flags.accelerator}", *self.where]
            command += ["--spot"] if self.flags.spot else []
            if self.shell(command):
                raise UserError(f"gcloud did not create {self.name}; what it said is above")
        while not self.shell.dry_run and (state := self.state()) != self.ready:
            if state in LOST or state is None:
                return self.ensure()
            time.sleep(10)

    def state(self):
        """gcloud's word for it, such as READY, ACTIVE or PREEMPTED; None where it is not there."""
        field = "state.state" if self.queued else "state"
        words = [*self.resource, "describe", self.name, *self.where, f"--format=value({field})"]
        return self.shell.ask(words, dry=None)

    def delete(self):
        force = ["--force"] if self.queued else []
        self.shell([*self.resource, "delete", self.name, *self.where, "--quiet", *force])


def snapshot(write=True):
    """The working tree, uncommitted changes too, and the versions here. -> .tar.gz, its digest"""
    listed = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    found = subprocess.run(listed, capture_output=True, text=True)
    if found.returncode:
        raise UserError(f"{ROOT} is no git checkout; the code to send is what git lists")
    packages = {d.name: d.version for d in metadata.distributions() if d.name != "vit_jax"}
    pins = "".join(f"{name}=={packages[name]}\n" for name in sorted(packages))
    files = {
        path: (ROOT / path).read_bytes()
        for path in sorted(found.stdout.split("\0"))
        if path and (ROOT / path).is_file()
    }
    files["constraints.txt"] = pins.encode()
    digest = hashlib.sha256()
    for path, content in files.items():
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    digest = digest.hexdigest()[:12]
    archive = ROOT / "runs" / f"code-{digest}.tar.gz"
    if not write:
        return archive, digest
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            info.mode = 0o755 if content[:2] == b"#!" else 0o644
            tar.addfile(info, io.BytesIO(content))
    return archive, digest


if __name__ == "__main__":
    define_flags()
    cli.run(main)
