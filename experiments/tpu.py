"""A TPU slice: made by gcloud, sent this working tree, trained on, lost and made again."""

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
PIP_CONSTRAINT=$PWD/constraints.txt make install EXTRA=tpu,gcs
{train}
END
  setsid nohup bash job.sh >> job.log 2>&1 < /dev/null &
  echo $! > job.pid
fi
tail -n 5 -F --pid=$(cat job.pid) job.log
true  # else the shell becomes the tail, which would wait for a child that it does not bury
"""


class Slice:
    """A TPU slice by gcloud's name for it, created and lost as often as it takes."""

    def __init__(self, shell, name, flags, archive, train):
        self.shell, self.name, self.flags, self.archive = shell, name, flags, archive
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
            raise UserError(f"gcloud did not create {self.name}; what it said is above")

    def state(self):
        """gcloud's word for it, such as READY, ACTIVE or PREEMPTED; None where it is not there."""
        field = "state.state" if self.queued else "state"
        words = [*self.resource, "describe", self.name, *self.where, f"--format=value({field})"]
        return self.shell.ask(words, dry=None)

    def delete(self):
        force = ["--force"] if self.queued else []
        self.shell([*self.resource, "delete", self.name, *self.where, "--quiet", *force])


def snapshot(write=True):
    """The working tree, uncommitted changes too, and the versions here. -> the path of a .tar.gz"""
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
    os.replace(part, archive)  # another launch may be sending it
    return archive
