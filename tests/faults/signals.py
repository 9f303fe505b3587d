"""SIGTERM and SIGINT in every phase of a run, in runs of one and of two processes.

The command exits with 75, with one line that says what was saved, and the same command then
finishes the run as if nothing had happened.
"""

import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import time

from tests.faults import training
from tests.faults.case import Case

RECIPE = "injected digits"
GRACE_S = 30  # time between SIGTERM and SIGKILL on preemptible machines
FOREVER_S = 10_000
SLOW_READ_S = 0.05
PHASES = (
    "importing",
    "building",
    "restoring",
    "compiling",
    "waiting for data",
    "training",
    "evaluating",
    "saving",
    "saving the last checkpoint",
    "testing",
)


def cases():
    found = []
    for phase in PHASES:
        for number in (signal.SIGTERM, signal.SIGINT):
            name = f"{number.name} while {phase}"
            found.append(Case(name, functools.partial(interrupt, phase, number, 1, 0)))
        for target in (0, 1):
            name = f"SIGTERM to process {target} of 2 while {phase}"
            found.append(Case(name, functools.partial(interrupt, phase, signal.SIGTERM, 2, target)))
    return found


def start(folder, name, count, fault=None):
    """Start the processes of a run."""
    command = training.train_command(RECIPE, folder / "run")
    environment = {"FAULT": json.dumps(fault or {})}
    if count == 1:
        return [training.Process(command, folder / f"{name}.txt", **environment)]
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    environment["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
    return [
        training.Process(
            command,
            folder / f"{name}{i}.txt",
            VIT_JAX_DISTRIBUTED=f"{address},{count},{i}",
            **environment,
        )
        for i in range(count)
    ]


@functools.cache
def control(count):
    """Return the workdir of an uninterrupted run with one or two processes."""
    folder = training.shared_folder() / f"signals-{count}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for process in start(folder, "control", count):
        process.check(0)
    return folder / "run"


def interrupt(phase, number, count, target, folder):
    """Send a signal to one of the processes of a run, and run the command again."""
    expected = control(count)
    workdir = folder / "run"
    if phase == "restoring":
        processes = start(folder, "first", count)
        assert processes[0].wait_until(lambda: training.complete_steps(workdir))
        for process in processes:
            process.kill()
    marker = folder / "marker"
    processes = start(folder, "signal", count, fault(phase, marker))
    wait_for(phase, processes[0], workdir, marker)
    sent = time.monotonic()
    # A scheduler stops all processes; one that has not connected cannot tell the others.
    for process in processes if phase == "importing" else [processes[target]]:
        process.send(number)
    if count > 1 and phase == "waiting for data":  # one process cannot save for the others
        time.sleep(GRACE_S)
        assert all(process.kill() for process in processes)
        outputs = [process.check(0) for process in start(folder, "rerun", count)]
        training.assert_equal_runs(workdir, expected, outputs[0])
        return {"killed_after_s": GRACE_S, "resumed_from": training.resumed_from(outputs[0])}
    texts = [process.check(75) for process in processes]
    seconds = time.monotonic() - sent
    assert seconds < GRACE_S, f"{seconds:.1f} s from the signal to the exit\n{texts[0]}"
    steps = training.complete_steps(workdir)
    line = re.search(r"^preempted: .*; rerun the same command to resume$", texts[0], re.MULTILINE)
    assert line, texts[0]
    if saved := re.search(r"saved a checkpoint at step ([\d,]+)", line[0]):
        saved = int(saved[1].replace(",", ""))
        assert steps[-1] == saved, f"{line[0]}, but the checkpoints are {steps}"
    outputs = [process.check(0) for process in start(folder, "rerun", count)]
    resumed = training.resumed_from(outputs[0])
    assert resumed == (steps or [0])[-1], f"resumed from {resumed} of {steps}\n{outputs[0]}"
    training.assert_equal_runs(workdir, expected, outputs[0])
    return {"exit_s": round(seconds, 2), "saved": saved, "resumed_from": resumed}


def fault(phase, marker):
    """Return the fault that makes a phase long enough to be interrupted."""
    read = {"marker": str(marker), "after": 20, "seconds": SLOW_READ_S}
    if phase == "waiting for data":
        return {"read": read | {"split": "train", "after": 600, "seconds": FOREVER_S}}
    if phase == "evaluating":
        return {"read": read | {"split": "val"}}
    if phase == "testing":
        return {"read": read | {"split": "test"}}
    return {}


def wait_for(phase, process, workdir, marker):
    """Wait until a process is in a phase."""
    conditions = {
        "importing": lambda: process.cpu_seconds() > 1,
        "building": lambda: "\nmodel: " in process.text(),
        "restoring": lambda: "\nmodel: " in process.text(),
        "compiling": lambda: "compiling the training step" in process.text(),
        "training": lambda: "\nstep 7/" in process.text(),
        "saving": lambda: training.unfinished(workdir),
        "saving the last checkpoint": lambda: any(
            name.startswith(f"{training.TOTAL_STEPS}.") for name in training.unfinished(workdir)
        ),
    }
    assert process.wait_until(conditions.get(phase, marker.exists)), process.text()
    if phase in ("building", "restoring", "compiling", "waiting for data"):
        delay = random.Random(f"{phase} {os.path.basename(workdir)}").uniform(0, 0.3)
        time.sleep(delay)
