"""Train on a TPU slice: create it with gcloud, copy the code, recreate it after preemption."""

import hashlib
import io
import os
import subprocess
import tarfile
import time
from importlib import metadata
from pathlib import Path

from experiments.runs import FINAL_CODES
from vit_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LOST_STATES = ("PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDED", "FAILED")
RUNTIMES = {"v6e": "v2-alpha-tpuv6e", "v5p": "v2-alpha-tpuv5", "v5litepod": "v2-alpha-tpuv5-lite"}
# Runs on each worker: start job.sh (unpack, install, train) unless it is running; follow its log.
WORKER_SCRIPT = """set -e
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
true  # keeps this shell alive to reap job.sh: tail exits once the process no longer exists
"""


class TpuSlice:
    """A TPU slice.

    Args:
        shell: a launch.Shell.
        name: the name of the slice.
        flags: the flags of experiments.launch.
        archive: the Path of the code archive, see `snapshot`.
        train: the training command, quoted for a shell.
    """

    def __init__(self, shell, name, flags, archive, train):
        self.shell = shell
        self.name = name
        self.flags = flags
        self.archive = archive
        self.folder = archive.name.removesuffix(".tar.gz")  # on the workers
        self.script = WORKER_SCRIPT.format(folder=self.folder, archive=archive.name, train=train)
        self.queued = flags.target == "queued"
        self.ready_state = "ACTIVE" if self.queued else "READY"
        self.resource = ["gcloud", "compute", "tpus"]
        self.resource += ["queued-resources" if self.queued else "tpu-vm"]
        generation = flags.accelerator.partition("-")[0]
        self.runtime = flags.runtime or RUNTIMES.get(generation, "tpu-ubuntu2204-base")
        self.location = [f"--zone={flags.zone}"]
        self.location += [f"--project={flags.project}"] if flags.project else []

    def attempt(self):
        """Train once and return the exit code; 75 if the slice was lost."""
        self.wait_until_ready()
        vm = ["gcloud", "compute", "tpus", "tpu-vm"]
        all_workers = [*self.location, "--worker=all"]
        self.shell([*vm, "scp", str(self.archive), f"{self.name}:", *all_workers])
        self.shell([*vm, "ssh", self.name, *all_workers, f"--command={self.script}"])
        # The exit code of ssh may come from a lost connection, so the script writes the exit code
        # of training to a file.
        command = [*vm, "ssh", self.name, *all_workers, f"--command=cat {self.folder}/job.exit"]
        output = self.shell.capture(command, dry_output="0")
        if output is None or not output.split():
            return 75 if self.state() != self.ready_state else 1
        codes = [int(text) for text in output.split() if text.isdigit()]
        # When one worker exits with an error in FINAL_CODES, the other workers are killed and
        # return other codes.
        final = [code for code in codes if code in FINAL_CODES and code != 0]
        return final[0] if final else max(codes, default=1)

    def wait_until_ready(self):
        """Wait until the slice is ready; create it if it does not exist or was lost."""
        state = self.state()
        while state != self.ready_state:
            if state in LOST_STATES:
                self.delete()
            if state in LOST_STATES or state is None:
                self.create()
            else:
                time.sleep(10)
            if self.shell.dry_run:
                return
            state = self.state()

    def create(self):
        """Create the slice. Raises UserError if gcloud fails."""
        command = [*self.resource, "create", self.name]
        if self.queued:
            command += [f"--node-id={self.name}", f"--runtime-version={self.runtime}"]
        else:
            command += [f"--version={self.runtime}"]
        command += [f"--accelerator-type={self.flags.accelerator}", *self.location]
        command += ["--spot"] if self.flags.spot else []
        if self.shell(command):
            raise UserError(f"gcloud could not create {self.name}; see its output above")

    def state(self):
        """Return the state that gcloud reports, such as READY, ACTIVE or PREEMPTED.

        None if the slice does not exist.
        """
        field = "state.state" if self.queued else "state"
        command = [*self.resource, "describe", self.name, *self.location]
        return self.shell.capture([*command, f"--format=value({field})"], dry_output=None)

    def delete(self):
        """Delete the slice."""
        force = ["--force"] if self.queued else []
        self.shell([*self.resource, "delete", self.name, *self.location, "--quiet", *force])


def snapshot(write=True):
    """Archive the working tree, including uncommitted changes, and the installed package versions.

    Args:
        write: whether to write the archive; False only computes its path.

    Returns:
        The Path of the .tar.gz, which is named after a hash of its contents.

    Raises:
        UserError: if the working tree is not a git checkout.
    """
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    listing = subprocess.run(command, capture_output=True, text=True)
    if listing.returncode:
        raise UserError(f"{ROOT} is not a git checkout; launch uses git to list the files to copy")
    packages = {d.name: d.version for d in metadata.distributions() if d.name != "vit_jax"}
    pins = "".join(f"{name}=={packages[name]}\n" for name in sorted(packages))
    files = {
        path: (ROOT / path).read_bytes()
        for path in sorted(listing.stdout.split("\0"))
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
    partial = archive.with_name(f".{os.getpid()}.{archive.name}")
    with tarfile.open(partial, "w:gz") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            info.mode = 0o755 if content[:2] == b"#!" else 0o644
            tar.addfile(info, io.BytesIO(content))
    os.replace(partial, archive)  # atomic: another launch may be copying the archive
    return archive
