"""Two trainers on one workdir: one trains to the end, the other one exits with a line about it."""

import functools
import signal
import sys
import time

from tests.faults import training
from tests.faults.case import Case

DELAYS_S = (0, 0.05, 0.2, 0.5, 1, 1.5, 2, 3)
TOTAL_STEPS = 150
OVERRIDES = {"total_steps": TOTAL_STEPS, "checkpoint_every": 50, "eval_every": TOTAL_STEPS}
TAKEOVER_S = 4

# Runs the training command on another machine, or on a disk without locks. Usage: HOST lock|lease.
WRAPPER = f"""
import runpy, socket, sys
from vit_jax.workdir import lease, owner

host, kind = sys.argv[1:3]
del sys.argv[1:3]
if host != "this":
    socket.gethostname = lambda: host
if kind == "lease":
    owner.uses_lease = lambda _: True
    owner.Owner.__init__.__kwdefaults__.update(renew_seconds=0.5, takeover_seconds={TAKEOVER_S})
    if host != "this":
        lease._machine = lambda: host
runpy.run_module("vit_jax.train", run_name="__main__", alter_sys=True)
"""


def cases():
    found = []
    for delay in DELAYS_S:
        name = f"started {delay} s apart"
        found.append(Case(name, functools.partial(together, (0, delay))))
    for delay in (0, 1):
        name = f"started {delay} s apart on a run with a checkpoint"
        found.append(Case(name, functools.partial(together, (0, delay), resume=True)))
    name = "four started together"
    found.append(Case(name, functools.partial(together, (0, 0, 0, 0))))
    name = "two started together on a disk without locks"
    found.append(Case(name, functools.partial(together, (0, 0), kind="lease")))
    for name, run in {
        "second while the first one trains": while_training,
        "second while the first one evaluates": functools.partial(while_training, eval_every=1),
        "second while the first one saves": functools.partial(while_training, checkpoint_every=5),
        "second under another host name": functools.partial(while_training, host="other"),
        "second through a symbolic link": through_link,
        "second while the first one is suspended": while_suspended,
        "second at once after SIGKILL of the first one": after_sigkill,
        "second at once after SIGKILL, under another host name": functools.partial(
            after_sigkill, host="other"
        ),
        "second at once after SIGKILL, on a disk without locks": functools.partial(
            after_sigkill, kind="lease"
        ),
        "two together at once after SIGKILL of the first one": two_after_sigkill,
        "first one on another machine, suspended and taken over": taken_over,
        "a reader while the first one trains": reader,
    }.items():
        found.append(Case(name, run))
    return found


def start(folder, number, workdir=None, host="this", kind="lock", **overrides):
    """Start trainer `number` of a case."""
    command = training.train_command("digits", workdir or folder / "run", **OVERRIDES | overrides)
    if (host, kind) != ("this", "lock"):
        command = [sys.executable, "-c", WRAPPER, host, kind, *command[3:]]
    return training.Process(command, folder / f"{number}.txt")


def wait_for_step(process, folder, step=5):
    """Wait until a trainer has logged a training step."""
    logged = process.wait_until(lambda: f"step {step}/" in process.text() or _last(folder) >= step)
    assert logged, process.text()


def _last(folder):
    rows = training.rows(folder / "run") if (folder / "run/metrics.jsonl").exists() else []
    return rows[-1]["step"] if rows else 0


def check(folder, first, others, total=TOTAL_STEPS):
    """Check the end of a trainer and of those that it keeps out. Returns the details."""
    seconds = []
    for process in others:
        text = process.check(2)
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        named = f"is being trained by process {first.process.pid} on "
        assert len(errors) == 1 and text.endswith(errors[0] + "\n"), text
        assert named in errors[0] and errors[0].endswith(
            "; wait for it to end, or pass another --workdir"
        ), text
        seconds.append(round(time.monotonic() - process.start, 1))
    first.check(0)
    steps = [row["step"] for row in training.rows(folder / "run") if "train/loss" in row]
    assert steps == list(range(1, total + 1)), f"steps in metrics.jsonl: {steps}"
    assert training.complete_steps(folder / "run")[-1] == total
    return {"codes": [0] + [2] * len(others), "seconds_to_refusal": max(seconds, default=0)}


def together(delays, folder, resume=False, kind="lock"):
    """Start several trainers; whichever is first trains."""
    if resume:
        first = start(folder, 0)
        assert first.wait_until(lambda: len(training.complete_steps(folder / "run")) > 0)
        first.kill()
    processes = []
    for number, delay in enumerate(delays, 1):
        time.sleep(delay)
        processes.append(start(folder, number, kind=kind))
    seconds = []
    while waiting := [process for process in processes if not process.ended()]:
        if len(seconds) < len(processes) - len(waiting):
            seconds.append(round(time.monotonic() - processes[-1].start, 1))
        time.sleep(0.05)
    codes = [process.wait() for process in processes]
    outputs = "\n".join(process.text() for process in processes)
    assert codes.count(0) == 1, f"exit codes {codes}\n{outputs}"
    first = processes.pop(codes.index(0))
    details = check(folder, first, processes) | {"winner": codes.index(0) + 1}
    return details | {"seconds_to_refusal": max(seconds, default=0)}


def while_training(folder, host="this", **overrides):
    first = start(folder, 1, **overrides)
    wait_for_step(first, folder)
    second = start(folder, 2, host=host, **overrides)
    second.wait()
    assert not first.ended(), "the first one ended before the second one"
    return check(folder, first, [second])


def through_link(folder):
    first = start(folder, 1)
    wait_for_step(first, folder)
    (folder / "link").symlink_to("run")
    return check(folder, first, [start(folder, 2, workdir=folder / "link")])


def while_suspended(folder):
    first = start(folder, 1)
    wait_for_step(first, folder)
    first.send(signal.SIGSTOP)
    second = start(folder, 2)
    second.wait()
    first.send(signal.SIGCONT)
    return check(folder, first, [second])


def after_sigkill(folder, host="this", kind="lock"):
    first = start(folder, 1, kind=kind)
    wait_for_step(first, folder)
    assert first.kill()
    second = start(folder, 2, kind=kind) if kind == "lease" else start(folder, 2, host=host)
    details = check(folder, second, [])
    assert "waiting up to" not in second.text(), second.text()
    return details


def two_after_sigkill(folder):
    first = start(folder, 1)
    wait_for_step(first, folder)
    assert first.kill()
    return together((0, 0), folder)


def taken_over(folder):
    """A trainer that is suspended for longer than its lease lasts ends without writing."""
    first = start(folder, 1, host="one", kind="lease")
    wait_for_step(first, folder)
    first.send(signal.SIGSTOP)
    second = start(folder, 2, host="two", kind="lease")
    assert second.wait_until(lambda: "waiting up to" in second.text())
    details = check(folder, second, [])
    before = _files(folder / "run")
    first.send(signal.SIGCONT)
    text = first.check(5)
    last = text.splitlines()[-1]
    assert last.startswith("error: ") and "rerun" in last, text
    assert _files(folder / "run") == before, "the first one wrote into the workdir"
    return details | {"codes": [0, 5]}


def _files(workdir):
    """Return the contents of the checkpoints and metrics of a run."""
    files = [workdir / "metrics.jsonl", *(workdir / "checkpoints").rglob("*")]
    return {path: path.read_bytes() for path in files if path.is_file()}


def reader(folder):
    """A tool evaluates a checkpoint while the trainer writes others."""
    first = start(folder, 1)
    assert first.wait_until(lambda: len(training.complete_steps(folder / "run")) > 1)
    command = [sys.executable, "-m", "vit_jax.tools.evaluate", f"--workdir={folder / 'run'}"]
    training.Process(command, folder / "2.txt").check(0)
    return check(folder, first, [])
