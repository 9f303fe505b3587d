"""Call a function on a hostile file in a forked child process."""

import json
import os
import re
import resource
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from typing import NamedTuple

from vit_jax.errors import UserError

CANARY = "canary"  # file that the code in a hostile file creates
BLOCKED_SECONDS = 60
MAX_EXTRA_MIB = 96  # memory besides four times the size of the file


class Outcome(NamedTuple):
    """What a forked child process reports.

    Attributes:
      kind: "ok", "refused" with a UserError, or "bug" with any other exception.
      text: the error message or traceback; "" if ok.
      cpu_seconds: CPU time.
      mib: growth of the maximum resident memory, MiB.
    """

    kind: str
    text: str
    cpu_seconds: float
    mib: float


def attempt(action, folder):
    """Call `action` in a forked child process in a directory and return the `Outcome`.

    Raises:
      AssertionError: if the child blocks, crashes, or leaves the file CANARY.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns about forks; its backend is not running here
        child = os.fork()
    if child == 0:
        _run_child(action, folder, writer)
    os.close(writer)
    with open(reader, "rb") as file:
        ready, _, _ = select.select([file], [], [], BLOCKED_SECONDS)
        if not ready:
            os.kill(child, signal.SIGKILL)
        text = file.read()
    _, status = os.waitpid(child, 0)
    assert ready, f"blocked for {BLOCKED_SECONDS} s"
    assert text, f"crashed: {os.waitstatus_to_exitcode(status)}"
    assert not (folder / CANARY).exists(), "code of the file was executed"
    return Outcome(*json.loads(text))


def _run_child(action, folder, writer):
    """Call `action`, write the `Outcome` to a pipe and exit."""
    try:
        os.chdir(folder)
        sys.path.insert(0, str(folder))  # as `python -m` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        try:
            action()
            kind, text = "ok", ""
        except UserError as error:
            kind, text = "refused", str(error)
        except BaseException:
            kind, text = "bug", traceback.format_exc()
        seconds = time.process_time() - start
        mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
        with open(writer, "wb") as file:
            file.write(json.dumps((kind, text, round(seconds, 3), round(mib, 1))).encode())
    finally:
        os._exit(0)


def check(outcome, pattern, size=0):
    """Assert that a file was refused in one line, and within the memory that its size allows."""
    assert outcome.kind == "refused", f"{outcome.kind}: {outcome.text}"
    assert len(outcome.text.splitlines()) == 1 and outcome.text.isprintable(), outcome.text
    assert len(outcome.text) < 1000, f"message of {len(outcome.text)} characters"
    assert re.search(pattern, outcome.text), f"{outcome.text!r} does not match {pattern!r}"
    assert outcome.mib < MAX_EXTRA_MIB + 4 * size / 2**20, f"{outcome.mib} MiB"
    return {"outcome": outcome.text, "cpu_seconds": outcome.cpu_seconds, "mib": outcome.mib}


class Touch:
    """A pickle of this object creates the file CANARY when it is loaded."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def make_special(kind, path):
    """Create something at a path that is not a regular file."""
    if kind == "a directory":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.close()
    elif kind != "nothing":
        path.symlink_to(kind.removeprefix("a link to "))
