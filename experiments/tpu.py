"""Train on a TPU slice: create it with gcloud, copy the code, recreate it after preemption."""

import hashlib
import io
import os
import shlex
import subprocess
import tarfile
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from experiments.runs import FINAL_CODES
from vit_jax.errors import UserError
from vit_jax.workdir import storage

ROOT = Path(__file__).resolve().parents[1]
LOST_STATES = ("PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDED", "FAILED")
LOG_SECONDS = 60  # between copies of a worker's log to the workdir
DELETE_AFTER_SECONDS = 900  # after the time limit, for the last checkpoint and the test


class Generation(NamedTuple):
    """A generation of TPUs.

    Attributes:
        runtime: name of the runtime version.
        sizes: numbers at the end of the accelerator types, such as 8 of v5litepod-8.
    """

    runtime: str
    sizes: tuple


# https://cloud.google.com/tpu/docs/runtimes, and the pages v2 to v6e of the same documentation.
GENERATIONS = {
    "v2": Generation("tpu-ubuntu2204-base", (8, 32, 128, 256, 512)),
    "v3": Generation("tpu-ubuntu2204-base", (8, 32, 64, 128, 256, 512, 1024, 2048)),
    "v4": Generation("tpu-ubuntu2204-base", tuple(range(8, 4097, 8))),
    "v5litepod": Generation("v2-alpha-tpuv5-lite", (1, 4, 8, 16, 32, 64, 128, 256)),
    "v5p": Generation("v2-alpha-tpuv5", tuple(range(8, 12289, 8))),
    "v6e": Generation("v2-alpha-tpuv6e", (1, 4, 8, 16, 32, 64, 128, 256)),
}
ONE_WORKER = 8  # largest accelerator type with one worker
# Runs on each worker: start job.sh (unpack, install, train) unless it is running; follow its log.
WORKER_SCRIPT = """set -e
mkdir -p {folder} && cd {folder}
if ! kill -0 $(cat job.pid 2>/dev/null) 2>/dev/null; then
  rm -f job.exit
  cat > job.sh <<'END'
copy_log() {{
  {copy_log}
}}
finish() {{
  code=$?
  echo $code > job.exit
  kill $copies 2>/dev/null || true
  copy_log > /dev/null 2>&1 || true
}}
set -e
while sleep {log_seconds}; do copy_log > /dev/null 2>&1 || true; done &
copies=$!
trap finish EXIT  # after the loop started: killed at its start, it would run an inherited trap
[ -f .unpacked ] || {{ tar xzf ../{archive} && touch .unpacked; }}
{check}
python=$(command -v python3.13 || command -v python3.12 || true)
[ -n "$python" ] && $python -c 'import ensurepip' 2> /dev/null || {{
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv &&
    python3 -m uv python install --quiet 3.12 && python=$(python3 -m uv python find 3.12)
}} || {{ echo 'error: Python 3.12 could not be installed on this worker'; exit 2; }}
PIP_CONSTRAINT=$PWD/constraints.txt make install EXTRA=tpu,gcs PYTHON=$python || {{
  echo 'the package versions of the launcher are not available here; installing others'
  make install EXTRA=tpu,gcs PYTHON=$python
}} || {{ echo 'error: the installation failed on this worker'; exit 2; }}
{train}
END
  touch job.log  # tail exits with an error if the file is missing when it starts
  setsid nohup bash job.sh >> job.log 2>&1 < /dev/null &
  echo $! > job.pid
{delete}fi
tail -n 5 -F --pid=$(cat job.pid) job.log
true  # keeps this shell alive to reap job.sh: tail exits once the process no longer exists
"""
# The slice deletes itself, because the launcher may have been stopped. Its service account needs
# the permission.
DELETE_SCRIPT = """  setsid nohup sh -c {command} > /dev/null 2>&1 < /dev/null &
"""


def check_types(accelerator, runtime):
    """Raise UserError if an accelerator type or its runtime version does not exist.

    Args:
        accelerator: an accelerator type, such as v5litepod-8.
        runtime: a runtime version; None: that of the generation.
    """
    generation, _, size = accelerator.partition("-")
    if generation == "v5e":
        raise UserError(f"--accelerator={accelerator}: v5e is called v5litepod; pass v5litepod-8")
    if generation not in GENERATIONS:
        if runtime:  # a generation that is newer than the table
            return
        raise UserError(
            f"--accelerator={accelerator} must be one of {', '.join(GENERATIONS)} and a size, such "
            "as v5litepod-8; for another generation, pass its --runtime too"
        )
    sizes = GENERATIONS[generation].sizes
    if not size.isdecimal() or int(size) not in sizes:
        shown = ", ".join(map(str, sizes)) if len(sizes) < 10 else f"a multiple of 8, 8-{sizes[-1]}"
        raise UserError(f"--accelerator={accelerator}: the size of a {generation} must be {shown}")
    others = {other.runtime for other in GENERATIONS.values()} - {GENERATIONS[generation].runtime}
    if runtime in others:
        raise UserError(
            f"--runtime={runtime} is not for {generation}; pass "
            f"--runtime={GENERATIONS[generation].runtime}, or omit it"
        )


def needs_agent(accelerator, slices):
    """Return whether gcloud connects to several workers, for which it needs ssh-agent."""
    size = accelerator.partition("-")[2]
    return slices > 1 or not size.isdecimal() or int(size) > ONE_WORKER


def describe_data(config):
    """Return how the data reach the workers, and the path that must exist on each of them.

    Args:
        config: the config of a run.

    Returns:
        A line of text; and a path, or None.
    """
    folder = config.data.dir or ("~/tensorflow_datasets" if config.data.name == "tfds" else "")
    if not folder:
        return f"data: {config.data.name} needs no files", None
    if storage.is_bucket(folder):
        return f"data: all workers read {folder}", None
    return (
        f"data: each worker must have {folder}; put it in a bucket (--config.data.dir=gs://...) or "
        "on a disk (--gcloud_args=--data-disk=...), or the workers end before the installation"
    ), folder


class TpuSlice:
    """A TPU slice, or several connected ones.

    Args:
        shell: a launch.Shell.
        name: the name of the slice.
        flags: the flags of experiments.launch.
        archive: the Path of the code archive, see `snapshot`.
        train: the arguments of the training command.
        data: path that must exist on each worker; None: none.
    """

    def __init__(self, shell, name, flags, archive, train, data=None):
        self.shell = shell
        self.name = name
        self.flags = flags
        self.archive = archive
        self.folder = archive.name.removesuffix(".tar.gz")  # on the workers
        self.train = shlex.join(train)
        self.data = data
        self.deadline = time.time() + 3600 * flags.hours if flags.hours else None
        self.queued = flags.target == "queued"
        self.ready_state = "ACTIVE" if self.queued else "READY"
        self.resource = ["gcloud", "compute", "tpus"]
        self.resource += ["queued-resources" if self.queued else "tpu-vm"]
        generation = GENERATIONS.get(flags.accelerator.partition("-")[0])
        self.runtime = flags.runtime or generation.runtime
        self.location = [f"--zone={flags.zone}"]
        self.location += [f"--project={flags.project}"] if flags.project else []
        self.workers = ["gcloud", "compute", "tpus", "tpu-vm"]
        self.all = [*self.location, "--worker=all"]
        if flags.slices > 1:  # only the alpha command connects to all slices
            self.workers = ["gcloud", "alpha", "compute", "tpus", "queued-resources"]
            self.all += ["--node=all"]

    def attempt(self):
        """Train once.

        Returns:
            The exit code of training; 75 if the slice was lost, 124 at the time limit.

        Raises:
            UserError: if the code cannot be copied.
        """
        self.wait_until_ready()
        seconds = round(self.deadline - time.time()) if self.deadline else None
        if seconds is not None and seconds <= 0:
            return 124
        if self.shell([*self.workers, "scp", str(self.archive), f"{self.name}:", *self.all]):
            if self.state() != self.ready_state:
                return 75
            raise UserError(f"the code could not be copied to {self.name}; see the output above")
        script = self.script(seconds)
        self.shell([*self.workers, "ssh", self.name, *self.all, f"--command={script}"])
        # The exit code of ssh may come from a lost connection, so the script writes the exit code
        # of training to a file.
        read = f"--command=cat {self.folder}/job.exit"
        output = self.shell.capture(
            [*self.workers, "ssh", self.name, *self.all, read], dry_output="0"
        )
        if output is None or not output.split():
            return 75 if self.state() != self.ready_state else 1
        codes = [int(text) for text in output.split() if text.isdigit()]
        # When one worker exits with an error in FINAL_CODES, the other workers are killed and
        # return other codes.
        final = [code for code in codes if code in (*FINAL_CODES, 124) and code != 0]
        return final[0] if final else max(codes, default=1)

    def script(self, seconds=None):
        """Return the script that runs on each worker.

        Args:
            seconds: time until training must end; None: unlimited.
        """
        workdir = self.flags.workdir.rstrip("/")
        target = shlex.quote(f"{workdir}/launch") + f"/{self.name}-$(hostname).log"
        copy_log = f"mkdir -p {shlex.quote(workdir)}/launch && cp job.log {target}"
        if storage.is_bucket(workdir):
            copy_log = f"gcloud storage cp job.log {target}"
        check = delete = ""
        if self.data:
            path = shlex.quote(self.data)
            if self.data.startswith("~/"):
                path = f"~/{shlex.quote(self.data[2:])}"
            message = shlex.quote(f"error: this worker has no {self.data}, the --config.data.dir")
            check = f"[ -e {path} ] || {{ echo {message}; exit 2; }}"
        train = self.train
        if seconds is not None:
            train = f"timeout --signal=TERM {seconds} {train}"
            if not (self.flags.keep or self.flags.existing):
                # Credentials and project are those of the service account of the slice.
                command = shlex.join(["sleep", str(seconds + DELETE_AFTER_SECONDS)])
                command += f"; {shlex.join(self.delete_command())}"
                delete = DELETE_SCRIPT.format(command=shlex.quote(command))
        return WORKER_SCRIPT.format(
            folder=self.folder,
            archive=self.archive.name,
            copy_log=copy_log,
            log_seconds=LOG_SECONDS,
            check=check,
            train=train,
            delete=delete,
        )

    def wait_until_ready(self):
        """Wait until the slice is ready; create it if it does not exist or was lost.

        Raises:
            UserError: if it cannot be created, or --existing names one that does not exist.
        """
        state = self.state()
        while state != self.ready_state:
            if self.flags.existing and not self.shell.dry_run:
                if state is None or state in LOST_STATES:
                    shown = f"is {state}" if state else "does not exist"
                    raise UserError(
                        f"--existing={self.name} {shown} in {self.flags.zone}; start it, or pass "
                        "--name to create a slice"
                    )
            elif state in LOST_STATES or state is None:
                if state is not None:
                    self.delete()
                if not self.flags.existing:
                    self.create()
            if self.shell.dry_run:
                return
            if state not in (None, *LOST_STATES):
                time.sleep(10)
            state = self.state()

    def create(self):
        """Create the slice. Raises UserError if gcloud fails."""
        command = [*self.resource, "create", self.name]
        if self.flags.slices > 1:
            command += [f"--node-count={self.flags.slices}", f"--node-prefix={self.name}"]
        elif self.queued:
            command += [f"--node-id={self.name}"]
        command += [f"--{'runtime-version' if self.queued else 'version'}={self.runtime}"]
        command += [f"--accelerator-type={self.flags.accelerator}", *self.location]
        command += ["--spot"] if self.flags.spot else []
        if self.shell([*command, *shlex.split(self.flags.gcloud_args or "")]):
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
        self.shell(self.delete_command())

    def delete_command(self):
        """Return the arguments of the command that deletes the slice."""
        force = ["--force"] if self.queued else []
        return [*self.resource, "delete", self.name, *self.location, "--quiet", *force]


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
