"""Train on a TPU slice: create it with gcloud, send the code, recreate it after preemption."""

import hashlib
import io
import os
import subprocess
import tarfile
import time
from importlib import metadata
from pathlib import Path

from experiments.runs import FINAL
from vit_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LOST = ("PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDED", "FAILED")
RUNTIMES = {"v6e": "v2-alpha-tpuv6e", "v5p": "v2-alpha-tpuv5", "v5litepod": "v2-alpha-tpuv5-lite"}
# The script of a worker: install once, start training unless it is running, follow its log.
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
PIP_CONSTRAINT=$PWD/constraints.txt make install EXTRA=tpu,gcs
{train}
END
  touch job.log  # tail exits with an error if the file is missing when it starts
  setsid nohup bash job.sh >> job.log 2>&1 < /dev/null &
  echo $! > job.pid
fi
tail -n 5 -F --pid=$(cat job.pid) job.log
true  # keeps this shell alive to reap job.sh: tail ends once the process no longer exists
"""


class TpuSlice:
    """A TPU slice.

    Args:
        shell: a launch.Shell.
        name: the name of the slice.
        flags: the flags of experiments.launch.
        archive: the Path of the code, see `snapshot`.
        train: the training command as text.
    """

    def __init__(self, shell, name, flags, archive, train):
        self.shell = shell
        self.name = name
        self.flags = flags
        self.archive = archive
        self.folder = archive.name.removesuffix(".tar.gz")  # on the workers
        self.job = JOB.format(folder=self.folder, archive=archive.name, train=train)
        self.queued = flags.target == "queued"
        self.ready = "ACTIVE" if self.queued else "READY"
        self.resource = ["gcloud", "compute", "tpus"]
        self.resource += ["queued-resources" if self.queued else "tpu-vm"]
        kind = flags.accelerator.partition("-")[0]
        self.runtime = flags.runtime or RUNTIMES.get(kind, "tpu-ubuntu2204-base")
        self.where = [f"--zone={flags.zone}"]
        self.where += [f"--project={flags.project}"] if flags.project else []

    def attempt(self):
        """Train once and return the exit code; 75 if the slice was lost."""
        self.ensure()
        vm = ["gcloud", "compute", "tpus", "tpu-vm"]
        every = [*self.where, "--worker=all"]
        self.shell([*vm, "scp", str(self.archive), f"{self.name}:", *every])
        self.shell([*vm, "ssh", self.name, *every, f"--command={self.job}"])
        # The exit code of ssh may be that of a lost connection; the job writes its own to a file.
        command = [*vm, "ssh", self.name, *every, f"--command=cat {self.folder}/job.exit"]
        output = self.shell.ask(command, dry="0")
        if output is None or not output.split():
            return 75 if self.state() != self.ready else 1
        codes = [int(word) for word in output.split() if word.isdigit()]
        # If one worker fails for good, the others are killed and return other codes.
        return next((code for code in codes if code in FINAL and code), max(codes, default=1))

    def ensure(self):
        """Create the slice unless it exists, and wait until it is ready; recreate a lost one."""
        state = self.state()
        while state != self.ready:
            if state in LOST:
                self.delete()
            if state in LOST or state is None:
                self.create()
            else:
                time.sleep(10)
            if self.shell.dry_run:
                return
            state = self.state()

    def create(self):
        command = [*self.resource, "create", self.name]
        if self.queued:
            command += [f"--node-id={self.name}", f"--runtime-version={self.runtime}"]
        else:
            command += [f"--version={self.runtime}"]
        command += [f"--accelerator-type={self.flags.accelerator}", *self.where]
        command += ["--spot"] if self.flags.spot else []
        if self.shell(command):
            raise UserError(f"gcloud did not create {self.name}; see its message above")

    def state(self):
        """Return gcloud's state, such as READY, ACTIVE or PREEMPTED; None if it does not exist."""
        field = "state.state" if self.queued else "state"
        command = [*self.resource, "describe", self.name, *self.where, f"--format=value({field})"]
        return self.shell.ask(command, dry=None)

    def delete(self):
        force = ["--force"] if self.queued else []
        self.shell([*self.resource, "delete", self.name, *self.where, "--quiet", *force])


def snapshot(write=True):
    """Archive the working tree, with uncommitted changes, and the installed package versions.

    Args:
        write: whether to write the archive.

    Returns:
        The path of the .tar.gz, named after a hash of its content.

    Raises:
        UserError: if the working tree is not a git checkout.
    """
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise UserError(f"{ROOT} is not a git checkout; git lists the files to send")
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
    archive = ROOT / "runs" / f"vit_jax-{digest}.tar.gz"
    if not write:
        return archive
    archive.parent.mkdir(exist_ok=True)
    part = archive.with_name(f".{os.getpid()}.{archive.name}")
    with tarfile.open(part, "w:gz") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            info.mode = 0o755 if content[:2] == b"#!" else 0o644
            tar.addfile(info, io.BytesIO(content))
    os.replace(part, archive)  # atomic: another launch may be sending it
    return archive
