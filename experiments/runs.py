"""Plan training jobs, run them as local processes, and collect their results.

Used by experiments.sweep, study, seeds, launch and size_vs_accuracy. Each job is the ordinary
training command with its own workdir; its output goes to WORKDIR/log.txt.
"""

import collections
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments import tables
from vit_jax import cli
from vit_jax.config import config_diff, flat, load_config
from vit_jax.devices import distributed
from vit_jax.errors import NoSpace, Preempted, UserError, printable
from vit_jax.workdir import log, storage

FINAL_CODES = (0, 2, 3, 4, 5)  # exit codes after which a restart would give the same result
MAX_RETRIES = 3  # restarts of a job that was preempted (exit code 75) by another process
MAX_NAME_CHARS = 120


@dataclasses.dataclass(eq=False)
class Job:
    """A training run and the command that trains it.

    Attributes:
        name: the name of the run's directory.
        workdir: a Path, or a bucket URL as a string if training runs on another machine.
        config: the ConfigDict to train with.
        changes: the values that differ between the runs, {"optim.lr": "1e-3", ...}.
        command: the training command, a list of arguments.
        log: the Path of the log file; by default WORKDIR/log.txt.
        lock: the open lock file, if the caller acquired the lock; see `acquire_lock`.
        pruned: whether the run was stopped early at the request of `as_completed`.
    """

    name: str
    workdir: Path | str
    config: object
    changes: dict
    command: list
    log: Path = None
    lock: object = None
    pruned: bool = False

    def __post_init__(self):
        self.log = self.log or Path(self.workdir) / "log.txt"

    def finished(self):
        """Return whether training with this config is complete."""
        rows = log.read_metrics(self.workdir)
        if not rows or "eval/test/step" not in rows[-1]:
            return False
        return not config_diff(load_config(self.workdir), self.config)


def output_path(flag, text, directory=False):
    """Return the Path of --flag=text, before anything is trained, and create its directory.

    Args:
        flag: the name of the flag.
        text: its value.
        directory: whether it is a directory, rather than a file.

    Raises:
        UserError: if the file or directory cannot be written.
    """
    shown = f"--{flag}={printable(text)}"
    if not text.isprintable():
        raise UserError(f"{shown} has characters that are not printable; rename it")
    cli.check_local(flag, text)
    path = Path(text).expanduser()
    folder = path if directory else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # fails if the name is too long
    except OSError as error:
        raise UserError(f"{shown} cannot be created: {error.strerror}") from None
    if not directory and path.is_dir():
        raise UserError(f"{shown} is a directory; pass the name of a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{shown}: no permission to write in {folder}")
    return path


def recipe_and_overrides(argv):
    """Extract the recipe and the config overrides from a command line.

    Args:
        argv: the command-line arguments, without the program.

    Returns:
        The value of --config, and {"KEY": "VALUE"} for each --config.KEY=VALUE.

    Raises:
        UserError: if one of these flags is written without "=".
    """
    args = [arg for arg in argv if re.match(r"--?(no)?config\b", arg)]
    if any("=" not in arg for arg in args):
        raise UserError("write --config=FILE and --config.KEY=VALUE with '='")
    pairs = [arg.lstrip("-").split("=", 1) for arg in args]
    overrides = {key.removeprefix("config."): text for key, text in pairs if key != "config"}
    return next(text for key, text in pairs if key == "config"), overrides


def make_job(spec, overrides, workdir):
    """Check a config and return its Job, without starting it.

    Args:
        spec: the recipe, as passed to --config.
        overrides: values of config keys, {"optim.lr": "1e-3", ...}.
        workdir: a directory or a bucket URL; its last component is the name of the run.

    Raises:
        UserError: if the config is invalid.
    """
    config = cli.build_config(spec, overrides.items())
    command = [sys.executable, "-m", "vit_jax.train", f"--config={spec}", f"--workdir={workdir}"]
    command += [f"--config.{key}={text}" for key, text in overrides.items()]
    name = Path(workdir).name
    workdir = workdir if storage.is_bucket(workdir) else Path(workdir)
    return Job(name, workdir, config, overrides, command)


def plan_sweep(spec, fixed, swept, output):
    """Check all configs of a sweep and return its Jobs.

    Args:
        spec: the recipe, as passed to --config.
        fixed: overrides shared by all runs, {"optim.lr": "1e-3", ...}.
        swept: overrides of each run, a list of dicts.
        output: the parent directory of the workdirs, which are named after the swept values.

    Raises:
        UserError: if a config is invalid or the sweep contains the same run twice.
    """
    jobs = []
    swept_keys = dict.fromkeys(key for overrides in swept for key in overrides)
    for overrides in swept:
        if duplicates := fixed.keys() & overrides.keys():
            raise UserError(f"--config.{duplicates.pop()} is also swept; remove one of the two")
        name = ",".join(f"{key}={value}" for key, value in overrides.items())
        name = re.sub(r"[^\w.=,+-]+", "_", name) or "run"
        if len(name) > MAX_NAME_CHARS:
            name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        job = make_job(spec, fixed | overrides, f"{output}/{name}")
        values = flat(job.config)
        job.changes = {key: overrides.get(key, str(values[key])) for key in swept_keys}
        jobs.append(job)
    counts = collections.Counter(job.name for job in jobs)
    for name, count in counts.items():
        if count > 1:
            raise UserError(f"the sweep contains {name} {count} times")
    return jobs


def select(jobs, index):
    """Return the job with this index as a list, or all jobs if it is None. Raises UserError."""
    if index is None:
        return jobs
    if not 0 <= index < len(jobs):
        raise UserError(f"--index={index} must be in 0..{len(jobs) - 1}")
    return [jobs[index]]


def print_commands(jobs):
    """Print the training commands, quoted for a shell."""
    for job in jobs:
        print(shlex.join(["python", *job.command[1:]]))


def run_all(jobs, max_parallel, stop, ended=lambda _: None, poll=lambda: None):
    """Run the jobs that are not finished and print the result of each.

    If another process is already running a job (for example, one that survived a killed sweep),
    wait for that process.

    Args:
        jobs: list of Job.
        max_parallel: the number of jobs to run at a time.
        stop: a function without arguments; once it returns True, the running jobs save a
            checkpoint and exit.
        ended: a function of a Job, called when it ends.
        poll: a function without arguments, called often while jobs run.

    Returns:
        {name: exit code}.

    Raises:
        Preempted: if stopped before all jobs ended.
        OSError: ENOSPC, if a job ran out of disk space.
    """
    codes = {job.name: 0 for job in jobs if job.finished()}
    print(f"{len(jobs)} runs, {len(codes)} already finished", flush=True)
    pending = [job for job in jobs if job.name not in codes]
    announced = set()

    def poll_and_stop():
        poll()
        return stop()

    while pending and not stop():
        with contextlib.closing(as_completed(pending, max_parallel, poll_and_stop)) as completed:
            for job, code in completed:
                if code is None:
                    if job not in announced:
                        announced.add(job)
                        workdir = printable(job.workdir)
                        print(f"waiting for another process to train {workdir}", flush=True)
                    continue
                codes[job.name] = code
                result = format_result(job, code)
                print(f"{len(codes)}/{len(jobs)}  {job.name}  {result}", flush=True)
                if code == NoSpace.exit_code:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(job.workdir))
                ended(job)
        pending = [job for job in pending if job.name not in codes]
        time.sleep(0.5 if pending else 0)
    if len(codes) < len(jobs):
        raise Preempted(
            f"stopped after {len(codes)} of {len(jobs)} runs; rerun the same command to resume"
        )
    return codes


def as_completed(jobs, max_parallel, stop, prune=lambda job: False, poll_seconds=0.1):  # noqa: ARG005
    """Run jobs and yield (job, exit code) as they end.

    The exit code is None if another process is running the job. Preempted jobs are restarted, at
    most MAX_RETRIES times. When `stop` returns True or the generator is closed, all running jobs
    are asked to save a checkpoint and exit, and the generator waits for them.

    Args:
        jobs: list of Job.
        max_parallel: the number of jobs to run at a time.
        stop: a function without arguments.
        prune: a function of a Job; if it returns True, the job is asked to save a checkpoint and
            exit, and its exit code is 75.
        poll_seconds: seconds between two calls of `stop` and `prune`.
    """
    waiting = collections.deque(jobs)
    processes = {}
    attempts = collections.Counter()
    interrupted = set()
    try:
        while not stop():
            while waiting and len(processes) < max_parallel:
                job = waiting.popleft()
                if process := start(job):
                    processes[job] = process
                else:
                    yield job, None
            if not processes:
                return
            for job, process in list(processes.items()):
                code = process.poll()
                if code is None:
                    if job not in interrupted and prune(job):
                        interrupted.add(job)
                        _interrupt(process)
                    continue
                del processes[job]
                log_exit_code(job, code)
                attempts[job] += 1
                preempted = code == Preempted.exit_code
                if code < 0:  # killed by a signal
                    code = Preempted.exit_code if job in interrupted else 1
                elif preempted and job not in interrupted and attempts[job] <= MAX_RETRIES:
                    waiting.append(job)
                    continue
                job.pruned = job in interrupted and code == Preempted.exit_code
                yield job, code
            time.sleep(poll_seconds)
    finally:
        for process in processes.values():
            _interrupt(process)
        for job, process in processes.items():
            log_exit_code(job, process.wait())


def _interrupt(process):
    """Ask a training process to save a checkpoint and exit.

    SLURM sends SIGTERM to every process of a job step, and training exits without saving on a
    second SIGTERM. SIGUSR1 avoids this.
    """
    process.send_signal(signal.SIGUSR1)


def start(job):
    """Start training and return the process, or None if another process is running the job.

    Training runs as a single process, even if the caller is one of several SLURM processes.
    """
    lock = job.lock or acquire_lock(job)
    if lock is None:
        return None
    with open(job.log, "ab") as file:
        process = subprocess.Popen(
            job.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the caller, which then stops its jobs
            pass_fds=[lock.fileno()],  # the child holds the lock until training ends
            env=os.environ | {distributed.ENV_VARIABLE: "off"},
        )
    if lock is not job.lock:
        lock.close()
    return process


def acquire_lock(job):
    """Acquire the lock of a job.

    Returns:
        The open file that holds the lock, or None if another process is running the job, on this
        machine or on one that shares the directory.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    lock = open(job.log, "ab")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError:
        pass  # the file system does not support locks
    return lock


def is_locked(job):
    """Return whether a process holds the lock of a job."""
    try:
        with open(job.log, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no log, or the file system does not support locks
        return False
    return False


def log_exit_code(job, code):
    """Append the exit code of a job that failed or was preempted to its log; see `exit_code`."""
    if code:
        with contextlib.suppress(OSError), open(job.log, "a") as file:
            file.write(f"\nexit code {code}\n")  # the last line may be incomplete


def exit_code(job):
    """Return the exit code of the latest training process of a job; None if it is not known.

    Negative codes are signals: -9 if the process was killed, perhaps for lack of memory.
    """
    try:
        lines = job.log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    match = re.fullmatch(r"exit code (-?\d+)", lines[-1]) if lines else None
    return int(match[1]) if match else None


def last_error(job):
    """Return the last error message in the log of a job, or its last line if there is none."""
    lines = job.log.read_text(errors="replace").strip().splitlines()
    lines = [line for line in lines if not re.fullmatch(r"exit code -?\d+", line)]
    errors = [line for line in lines if line.startswith("error: ")]
    return printable((errors or lines or ["no output"])[-1])


def format_result(job, code):
    """Format the result of a job as text: its best score, or its exit code and error message."""
    if code and not job.pruned:
        return f"exit code {code}: {last_error(job)}"
    values = scores(job)
    metric = job.config.best_metric
    score = f"{metric} {tables.format_score(max(values), metric)}" if values else "not evaluated"
    return f"pruned, {score}" if job.pruned else score


def scores(job):
    """Return the values of best_metric, one per evaluation."""
    metric = job.config.best_metric
    rows = log.read_metrics(job.workdir)
    return [row[metric] for row in rows if row.get(metric) is not None]
