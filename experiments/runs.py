"""Training runs as local processes: planned, started, followed and scored.

experiments.sweep, study, seeds, launch and size_vs_accuracy start every run through this module. A
run is the ordinary training command with its own workdir; its output goes to log.txt there.
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
from vit_jax.config import check, config_diff, flat, load_config
from vit_jax.devices import distributed
from vit_jax.errors import NO_SPACE, Preempted, UserError
from vit_jax.workdir import log, storage

FINAL = (0, 2, 3, 4)  # exit codes after which a restart would give the same result
MAX_RETRIES = 3  # restarts of a run that was preempted (75) by someone else
MAX_NAME_CHARS = 120


@dataclasses.dataclass(eq=False)
class Job:
    """A training run.

    Attributes:
        name: the name of its directory.
        workdir: a Path, or the address of a bucket as text if another machine trains.
        config: the ConfigDict to train with.
        changes: the values that differ between runs, {"optim.lr": "1e-3", ...}.
        command: the training command, a list of words.
        log: the file of its output; by default log.txt in workdir.
        lock: the open file that holds its lock if the caller took it, see `take`.
        pruned: whether it ended early because `follow` asked it to.
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
        """Whether training with this config is complete."""
        rows = log.read_metrics(self.workdir)
        if not rows or "eval/test/step" not in rows[-1]:
            return False
        return not config_diff(load_config(self.workdir), self.config)


def handed_on(argv):
    """Extract the recipe and the config overrides from a command line.

    Returns:
        The value of --config, and {"KEY": "VALUE"} of --config.KEY=VALUE.

    Raises:
        UserError: if one of them is not written with "=".
    """
    words = [word for word in argv if re.match(r"--?(no)?config\b", word)]
    if any("=" not in word for word in words):
        raise UserError("write --config=FILE and --config.KEY=VALUE with '='")
    pairs = [word.lstrip("-").split("=", 1) for word in words]
    fixed = {key.removeprefix("config."): text for key, text in pairs if key != "config"}
    return next(text for key, text in pairs if key == "config"), fixed


def one(spec, values, workdir):
    """Check a config and return its Job, which is not started.

    Args:
        spec: the recipe, as --config takes it.
        values: overrides of its keys, {"optim.lr": "1e-3", ...}.
        workdir: a directory or the address of a bucket; its last part is the name of the run.

    Raises:
        UserError: if the config is invalid.
    """
    config = cli.load_recipe(spec)
    for key, text in values.items():
        cli.override(config, key, text)
    check(config)
    command = [sys.executable, "-m", "vit_jax.train", f"--config={spec}", f"--workdir={workdir}"]
    command += [f"--config.{key}={text}" for key, text in values.items()]
    name = Path(workdir).name
    workdir = workdir if storage.is_bucket(workdir) else Path(workdir)
    return Job(name, workdir, config, values, command)


def plan(spec, fixed, changes, output):
    """Check all configs of a sweep and return its Runs.

    Args:
        spec: the recipe, as --config takes it.
        fixed: overrides that all runs have, {"optim.lr": "1e-3", ...}.
        changes: overrides of each run, a list of dicts.
        output: the parent of the workdirs, which are named after `changes`.

    Raises:
        UserError: if a config is invalid or two runs are equal.
    """
    runs = []
    swept = dict.fromkeys(key for each in changes for key in each)
    for each in changes:
        if both := fixed.keys() & each.keys():
            raise UserError(f"--config.{both.pop()} is also swept; remove one of the two")
        name = re.sub(r"[^\w.=,+-]+", "_", ",".join(f"{k}={v}" for k, v in each.items())) or "run"
        if len(name) > MAX_NAME_CHARS:
            name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        run = one(spec, fixed | each, f"{output}/{name}")
        values = flat(run.config)
        run.changes = {key: each.get(key, str(values[key])) for key in swept}
        runs.append(run)
    counts = collections.Counter(run.name for run in runs)
    for name, count in counts.items():
        if count > 1:
            raise UserError(f"the sweep contains {name} {count} times")
    return runs


def pick(runs, index):
    """Return the run with this index as a list, or all runs if it is None. Raises UserError."""
    if index is None:
        return runs
    if not 0 <= index < len(runs):
        raise UserError(f"--index={index} must be in 0..{len(runs) - 1}")
    return [runs[index]]


def show(runs):
    """Print the training commands, quoted for a shell."""
    for run in runs:
        print(shlex.join(["python", *run.command[1:]]))


def make(runs, jobs, stop):
    """Train the runs that are not finished and print the result of each.

    A run that another process trains, such as one that outlived a killed sweep, is waited for.

    Args:
        runs: list of Job.
        jobs: the number of runs to train at a time.
        stop: a function; once it returns True, the runs save a checkpoint and end.

    Returns:
        {name: exit code}.

    Raises:
        Preempted: if stopped before all runs ended.
        OSError: ENOSPC, if a run found no space left.
    """
    codes = {run.name: 0 for run in runs if run.finished()}
    print(f"{len(runs)} runs, {len(codes)} already finished", flush=True)
    todo = [run for run in runs if run.name not in codes]
    announced = set()
    while todo and not stop():
        with contextlib.closing(follow(todo, jobs, stop)) as ended:
            for run, code in ended:
                if code is None:
                    if run not in announced:
                        announced.add(run)
                        print(f"waiting for the process that trains {run.workdir}", flush=True)
                    continue
                codes[run.name] = code
                print(f"{len(codes)}/{len(runs)}  {run.name}  {outcome(run, code)}", flush=True)
                if code == NO_SPACE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.workdir))
        todo = [run for run in todo if run.name not in codes]
        time.sleep(0.5 if todo else 0)
    if len(codes) < len(runs):
        raise Preempted(
            f"stopped after {len(codes)} of {len(runs)} runs; rerun the same command to resume"
        )
    return codes


def follow(runs, jobs, stop, prune=lambda run: False, poll_seconds=0.1):  # noqa: ARG005
    """Train runs and yield (run, exit code) as they end.

    The exit code is None if another process trains the run. Preempted runs are restarted, at most
    MAX_RETRIES times. Once `stop` returns True, or when the generator is closed, all runs are asked
    to save a checkpoint and end, and are waited for.

    Args:
        runs: list of Job.
        jobs: the number of runs to train at a time.
        stop: a function without arguments.
        prune: prune(run) -> True asks a run to save a checkpoint and end; its exit code is then 75.
        poll_seconds: the time between two calls of `stop` and `prune`.
    """
    waiting = collections.deque(runs)
    processes = {}
    tries = collections.Counter()
    asked = set()
    try:
        while not stop():
            while waiting and len(processes) < jobs:
                run = waiting.popleft()
                if process := start(run):
                    processes[run] = process
                else:
                    yield run, None
            if not processes:
                return
            for run, process in list(processes.items()):
                code = process.poll()
                if code is None:
                    if run not in asked and prune(run):
                        asked.add(run)
                        _interrupt(process)
                    continue
                del processes[run]
                tries[run] += 1
                if code < 0:  # killed by a signal
                    code = Preempted.exit_code if run in asked else 1
                elif code == Preempted.exit_code and run not in asked and tries[run] <= MAX_RETRIES:
                    waiting.append(run)
                    continue
                run.pruned = run in asked and code == Preempted.exit_code
                yield run, code
            time.sleep(poll_seconds)
    finally:
        for process in processes.values():
            _interrupt(process)
        for process in processes.values():
            process.wait()


def _interrupt(process):
    """Ask a run to save a checkpoint and end.

    SLURM sends SIGTERM to every process of a step, and training exits without saving at a second
    SIGTERM; SIGUSR1 avoids this.
    """
    process.send_signal(signal.SIGUSR1)


def start(run):
    """Start training; return the process, or None if another process trains the run.

    Training runs as a single process, even if the caller is one of several SLURM processes.
    """
    lock = run.lock or take(run)
    if lock is None:
        return None
    with open(run.log, "ab") as file:
        process = subprocess.Popen(
            run.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the caller alone, which then stops its runs
            pass_fds=[lock.fileno()],  # the lock lasts until training ends
            env=os.environ | {distributed.VARIABLE: "off"},
        )
    if lock is not run.lock:
        lock.close()
    return process


def take(run):
    """Lock a run.

    Returns:
        The open file that holds the lock, or None if another process trains the run, on this
        machine or on one that shares the directory.
    """
    run.log.parent.mkdir(parents=True, exist_ok=True)
    lock = open(run.log, "ab")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError:
        pass  # the file system has no locks
    return lock


def busy(run):
    """Whether a process holds the lock of a run."""
    if not run.log.exists():
        return False
    lock = take(run)
    if lock:
        lock.close()
    return lock is None


def complaint(run):
    """The last error message in the log of a run, or its last line."""
    lines = run.log.read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1]


def outcome(run, code):
    """The result of a run as text: its best score, or what went wrong."""
    if code and not run.pruned:
        return f"exit code {code}: {complaint(run)}"
    values = scores(run)
    score = f"{run.config.best_metric} {max(values):.4f}" if values else "not evaluated"
    return f"pruned, {score}" if run.pruned else score


def scores(run):
    """The values of best_metric, one per evaluation."""
    metric = run.config.best_metric
    rows = log.read_metrics(run.workdir)
    return [row[metric] for row in rows if row.get(metric) is not None]


def row_of(run):
    """The table row of a run: its changes, the best val score, the test score, speed and state."""
    rows = log.read_metrics(run.workdir)
    test = [row for row in rows if "eval/test/step" in row]
    return run.changes | {
        "val": max(scores(run), default=None),
        "test": test[-1].get(run.config.best_metric.replace("/val/", "/test/")) if test else None,
        "step": rows[-1]["step"] if rows else 0,
        "images_per_s": tables.speed(rows),
        "state": "done" if run.finished() else "not finished",
        "folder": run.name,
    }
