"""Multi-process runs: jax.distributed, and preemption signals.

The environment variable VIT_JAX_DISTRIBUTED is one of:
  auto: detect SLURM and TPU slices (default).
  off: a single process.
  HOST:PORT,COUNT,INDEX: the address of process 0, the number of processes and the index of this
    process.
"""

import importlib.util
import os
import re
import signal

from vit_jax.errors import UserError

ENV_VARIABLE = "VIT_JAX_DISTRIBUTED"
SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
)
CONNECT_TIMEOUT_S = 300


def initialize_args(environ=os.environ):
    """Return the arguments of jax.distributed.initialize. Imports no JAX.

    Args:
      environ: environment variables.

    Returns:
      A dict of arguments; {} for SLURM and TPU slices, which JAX detects; None for a single
      process.

    Raises:
      UserError: if VIT_JAX_DISTRIBUTED is malformed.
    """
    value = environ.get(ENV_VARIABLE, "auto")
    if value == "off":
        return None
    if value == "auto":
        slurm = all(map(environ.get, SLURM_VARIABLES)) and environ["SLURM_NTASKS"] != "1"
        return {} if slurm or _on_tpu(environ) else None
    match = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", value)
    if not match or not int(match[3]) < int(match[2]):
        raise UserError(
            f"{ENV_VARIABLE}={value} must be auto, off or HOST:PORT,COUNT,INDEX with INDEX from 0 "
            "to COUNT - 1, such as 10.0.0.2:1234,4,0"
        )
    names = ("coordinator_address", "num_processes", "process_id")
    return dict(zip(names, (match[1], int(match[2]), int(match[3])), strict=True))


def _on_tpu(environ):
    """Return whether libtpu is installed and JAX_PLATFORMS does not exclude TPUs."""
    platforms = environ.get("JAX_PLATFORMS", "tpu").split(",")
    return "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def initialize():
    """Connect the processes of a run. Call this function before any other use of JAX.

    Returns:
      Whether the run has several processes.

    Raises:
      UserError: if the processes do not connect within `CONNECT_TIMEOUT_S`.
    """
    arguments = initialize_args()
    if arguments is None:
        return False
    import jax

    try:
        jax.distributed.initialize(**arguments, initialization_timeout=CONNECT_TIMEOUT_S)
    except ValueError:
        if arguments:  # otherwise a single process: libtpu is installed, but there is no TPU
            raise
    except RuntimeError as error:
        if "before any JAX" in str(error):
            raise
        source = arguments or "detected from the environment"
        raise UserError(
            f"the processes of the run did not connect within {CONNECT_TIMEOUT_S} s ({source}); "
            "start all processes and make the port of process 0 reachable from each, or set "
            f"{ENV_VARIABLE}=off"
        ) from error
    return jax.process_count() > 1


class StopSignal:
    """A context manager that detects preemption: SIGTERM, SIGUSR1 or Ctrl-C. Call it to poll.

    A second signal terminates the process. In a run with several processes, JAX handles SIGTERM,
    which may be sent to only one of them. All processes then return True in the same call, provided
    that each process calls once per step.

    Args:
      multiprocess: whether the run has several processes.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, multiprocess=False):
        self.multiprocess = multiprocess
        self.signals = () if multiprocess else self.SIGNALS
        self.calls = 0
        self.received = False

    def __enter__(self):
        self.previous = {s: signal.signal(s, self._handle) for s in self.signals}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __call__(self):
        """Return whether to stop."""
        if self.multiprocess:
            from jax.experimental.multihost_utils import reached_preemption_sync_point

            self.calls += 1
            self.received = self.received or reached_preemption_sync_point(self.calls)
        return self.received

    def _handle(self, number, _frame):
        self.received = True
        signal.signal(number, signal.SIG_DFL)
