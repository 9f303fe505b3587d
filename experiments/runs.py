"""Training runs as processes of this machine: what a recipe becomes, started, followed, scored.

What the experiments share: experiments.sweep, study, seeds and launch start every run this way.
A run is the ordinary training command in a folder of its own, with what it says in log.txt there.
"""

import collections
import contextlib
import dataclasses
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
from vit_jax.errors import Preempted, UserError
from vit_jax.workdir import log, storage

FINAL = (0, 2, 3, 4)  # exit codes after which starting again would change nothing
RETRIES = 3  # of a run that was preempted (75) but not by us


@dataclasses.dataclass(eq=False)
class Run:
    name: str
    workdir: Path  # or the address of a bucket, as text, where another machine trains
    config: object
    changes: dict  # what differs between the runs: {"optim.lr": "1e-3", ...}
    command: list
    log: Path = None  # what it says; None: log.txt in its workdir

    def __post_init__(self):
        self.log = self.log or Path(self.workdir) / "log.txt"

    def finished(self):
        rows = log.read_metrics(self.workdir)
        if not rows or "eval/test/step" not in rows[-1]:
            return False
        return not config_diff(load_config(self.workdir), self.config)


def handed_on(argv):
    """-> the recipe, and the --config.KEY=VALUE of the command line. Raises UserError."""
    words = [word for word in argv if re.match(r"--?(no)?config\b", word)]
    if any("=" not in word for word in words):
        raise UserError(
            "write --config=FILE and --config.KEY=VALUE with '=' so they can be handed on"
        )
    pairs = [word.lstrip("-").split("=", 1) for word in words]
    fixed = {key.removeprefix("config."): text for key, text in pairs if key != "config"}
    return next(text for key, text in pairs if key == "config"), fixed


def one(spec, values, workdir):
    """-> a Run of the recipe with `values`, {"optim.lr": "1e-3", ...}; checked, not started.

    The run has the name of its folder. Raises UserError.
    """
    config = cli.load_recipe(spec)
    for key, text in values.items():
        cli.override(config, key, text)
    check(config)
    command = [sys.executable, "-m", "vit_jax.train", f"--config={spec}", f"--workdir={workdir}"]
    command += [f"--config.{key}={text}" for key, text in values.items()]
    name = Path(workdir).name
    workdir = workdir if storage.is_address(workdir) else Path(workdir)
    return Run(name, workdir, config, values, command)


def plan(spec, fixed, changes, output):
    """-> [Run, ...]; each config is checked before any is trained. Raises UserError."""
    runs, swept = [], dict.fromkeys(key for each in changes for key in each)
    for each in changes:
        if both := fixed.keys() & each.keys():
            raise UserError(f"--config.{both.pop()} is fixed by the command line and swept")
        name = re.sub(r"[^\w.=,+-]+", "_", ",".join(f"{k}={v}" for k, v in each.items())) or "run"
        if len(name) > 120:
            name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        run = one(spec, fixed | each, f"{output}/{name}")
        values = flat(run.config)
        run.changes = {key: each.get(key, str(values[key])) for key in swept}
        runs.append(run)
    if twice := [n for n, count in collections.Counter(r.name for r in runs).items() if count > 1]:
        raise UserError(f"the sweep has {twice[0]} twice")
    return runs


def pick(runs, index):
    """All of them, or where --index is said that one alone. Raises UserError."""
    if index is None:
        return runs
    if not 0 <= index < len(runs):
        raise UserError(f"--index={index}: the runs are 0 to {len(runs) - 1}")
    return [runs[index]]


def show(runs):
    """Prints their commands, to be said in a shell."""
    for run in runs:
        print(shlex.join(["python", *run.command[1:]]))


def make(runs, jobs, stop):
    """Trains what is not finished, `jobs` at a time. -> {name: exit code}

    What another process trains, such as one that lives on after a command that was killed, is
    waited for. Stopped, it stops the runs, which save, and raises Preempted. A disk that is full
    ends it.
    """
    codes = {run.name: 0 for run in runs if run.finished()}
    print(f"{len(runs)} runs, {len(codes)} done already", flush=True)
    todo, told = [run for run in runs if run.name not in codes], set()
    while todo and not stop():
        with contextlib.closing(follow(todo, jobs, stop)) as ended:
            for run, code in ended:
                if code is None:
                    if run not in told:
                        told.add(run)
                        print(f"waiting for the process that trains in {run.workdir}", flush=True)
                    continue
                codes[run.name] = code
                words = f"exit code {code}: {complaint(run)}" if code else score(run)
                print(f"{len(codes)}/{len(runs)}  {run.name}  {words}", flush=True)
                if code == 4:
                    raise OSError(28, "No space left on device", str(run.workdir))
        todo = [run for run in todo if run.name not in codes]
        time.sleep(0.5 if todo else 0)
    if len(codes) < len(runs):
        raise Preempted(f"stopped with {len(codes)} of {len(runs)} runs done")
    return codes


def follow(runs, jobs, stop, hopeless=lambda run: False):  # noqa: ARG005
    """Trains runs, `jobs` at a time, each taken from the iterable when there is room for it; None
    there means that there is none just now, and all ends with those that are going.

    Yields (run, exit code) as they end; the code is None where another process has the run. What
    was preempted is tried again. hopeless(run) -> True asks a run to save and end: its code is
    then 75. Once stop() is true, or the caller is done, all are asked to, and waited for.
    """
    runs, waiting, going = iter(runs), collections.deque(), {}
    tries, asked = collections.Counter(), set()
    try:
        while not stop():
            while len(going) < jobs:
                run = next(runs, None) or (waiting.popleft() if waiting else None)
                if run is None:
                    break
                if process := start(run):
                    going[run] = process
                else:
                    yield run, None
            if not going:
                return
            for run, process in list(going.items()):
                code = process.poll()
                if code is None:
                    if run not in asked and hopeless(run):
                        asked.add(run)
                        _ask(process)
                    continue
                del going[run]
                tries[run] += 1
                if code == 75 and run not in asked and tries[run] <= RETRIES:
                    waiting.append(run)
                elif code < 0:
                    yield run, 75 if run in asked else 1
                else:
                    yield run, code
            time.sleep(0.1)
    finally:
        for process in going.values():
            _ask(process)
        for process in going.values():
            process.wait()


def _ask(process):
    """Asks a run to save and end.

    Not by SIGTERM: SLURM has sent that to every process of the step already, and a signal that
    comes a second time ends a run before it has saved.
    """
    process.send_signal(signal.SIGUSR1)


def start(run):
    """Starts training. -> its process, or None where another one trains in that folder.

    The run is a process alone, whatever SLURM says of the one that starts it.
    """
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with open(run.log, "ab") as file, open(run.log, "ab") as lock:
        if not _take(lock):
            return None
        # A session of its own: Ctrl-C reaches the sweep alone, which then stops its runs.
        return subprocess.Popen(
            run.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],  # the lock is the run's: it lasts until the run has ended
            env=os.environ | {distributed.VARIABLE: "off"},
        )


def busy(run):
    """Whether a process trains in its folder, on this machine or on one that shares it."""
    if not run.log.exists():
        return False
    with open(run.log, "ab") as lock:
        return not _take(lock)


def _take(file):
    """Locks an open file; False where another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: then nothing can be known
    return True


def complaint(run):
    """The last line of its log that begins with "error:", or the last one."""
    lines = run.log.read_text(errors="replace").strip().splitlines()
    return ([x for x in lines if x.startswith("error: ")] or lines or ["it said nothing"])[-1]


def score(run):
    values = scores(run)
    return f"{run.config.best_metric} {max(values):.4f}" if values else "not evaluated"


def scores(run):
    """What its best_metric was, one number an evaluation."""
    rows, metric = log.read_metrics(run.workdir), run.config.best_metric
    return [row[metric] for row in rows if row.get(metric) is not None]


def row_of(run):
    """Its line of the table: what changes, the best score on val, that of the same step on test."""
    rows, metric = log.read_metrics(run.workdir), run.config.best_metric
    test = [row for row in rows if "eval/test/step" in row]
    return run.changes | {
        "val": max(scores(run), default=None),
        "test": test[-1].get(metric.replace("/val/", "/test/")) if test else None,
        "step": rows[-1]["step"] if rows else 0,
        "images_per_s": tables.speed(rows),
        "state": "done" if run.finished() else "not finished",
        "folder": run.name,
    }
