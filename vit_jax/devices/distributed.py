"""Runs of several processes: jax.distributed, and stopping all of them together.

VIT_JAX_DISTRIBUTED is `off`; `HOST:PORT,COUNT,INDEX`, the address of process 0, the number of
processes and the index of this one; or `auto`, the default: detect SLURM and TPU slices.
"""

import importlib.util
import os
import re
import signal

from vit_jax.errors import UserError

VARIABLE = "VIT_JAX_DISTRIBUTED"
SLURM = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
TIMEOUT = 300  # seconds to wait for the others


def options(environ=os.environ):
    """The arguments of jax.distributed.initialize; None for a single process.

    {} for SLURM and TPU slices, which JAX detects itself. Imports no JAX. Raises UserError.
    """
    word = environ.get(VARIABLE, "auto")
    if word == "off":
        return None
    if word == "auto":
        slurm = all(environ.get(name) for name in SLURM) and environ["SLURM_NTASKS"] != "1"
        return {} if slurm or _on_tpu(environ) else None
    match = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", word)
    if not match or not int(match[3]) < int(match[2]):
        raise UserError(
            f"{VARIABLE}={word} must be auto, off or HOST:PORT,COUNT,INDEX with INDEX from 0 to "
            "COUNT - 1, such as 10.0.0.2:1234,4,0"
        )
    names = ("coordinator_address", "num_processes", "process_id")
    return dict(zip(names, (match[1], int(match[2]), int(match[3])), strict=True))


def _on_tpu(environ):
    platforms = environ.get("JAX_PLATFORMS", "tpu").split(",")
    return "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def initialize():
    """Connect to the other processes, before any other use of JAX.

    Returns:
      Whether there are others.

    Raises:
      UserError: if they do not connect in time.
    """
    found = options()
    if found is None:
        return False
    import jax

    try:
        jax.distributed.initialize(**found, initialization_timeout=TIMEOUT)
    except ValueError:
        if found:  # else libtpu is installed, but this is no TPU: a single process
            raise
    except RuntimeError as error:
        if "before any JAX" in str(error):
            raise
        who = found or "the environment"
        raise UserError(
            f"the processes of the run did not connect within {TIMEOUT} s ({who}): start all of "
            f"them, with access to the port of the first; or set {VARIABLE}=off"
        ) from error
    return jax.process_count() > 1


class StopSignal:
    """Whether to stop: after SIGTERM, SIGUSR1 or the first Ctrl-C. A second one ends the process.

    With several processes JAX watches for SIGTERM, which may reach only one of them. All of them
    then get True in the same call, provided that each calls it once per step.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, together=False):
        self.signals = () if together else self.SIGNALS
        self.together, self.calls, self.asked = together, 0, False

    def __enter__(self):
        self.before = {s: signal.signal(s, self._ask) for s in self.signals}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self):
        if self.together:
            from jax.experimental import multihost_utils

            self.calls += 1
            self.asked = self.asked or multihost_utils.reached_preemption_sync_point(self.calls)
        return self.asked

    def _ask(self, number, _frame):
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
