"""Several processes as one run: who the others are, and when all of them stop.

VIT_JAX_DISTRIBUTED says it: `off`; `HOST:PORT,COUNT,INDEX`, the address of process 0, how many
processes there are and which one this is; or `auto`, the default: what SLURM or a TPU slice says.
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
    """What jax.distributed.initialize takes, or None where there is one process alone.

    Of SLURM and of a TPU JAX finds out itself. Needs no JAX. Raises UserError.
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


def start():
    """Finds the other processes, before JAX is used for anything else. -> whether there are any.

    Raises UserError.
    """
    found = options()
    if found is None:
        return False
    import jax

    try:
        jax.distributed.initialize(**found, initialization_timeout=TIMEOUT)
    except ValueError:
        if found:  # libtpu is installed, but this is no TPU: a process alone
            raise
    except RuntimeError as error:
        if "before any JAX" in str(error):
            raise
        who = found or "the environment"
        raise UserError(
            f"the processes of the run did not meet within {TIMEOUT} s ({who}): start all of them, "
            f"and let them reach the first one's port; or set {VARIABLE}=off"
        ) from error
    return jax.process_count() > 1


class Stop:
    """True once SIGTERM, SIGUSR1 or the first Ctrl-C has come; a second one ends at once.

    With several processes JAX watches for SIGTERM, which may reach one of them alone: then the
    answer becomes True in all of them at the same call, if all call it once a step.
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
