"""Multi-process runs: jax.distributed, and preemption signals.

The environment variable VIT_JAX_DISTRIBUTED is one of:
  auto: detect SLURM and TPU slices (default).
  off: a single process.
  HOST:PORT,COUNT,INDEX: the address of process 0, the number of processes and the index of this
    process.
"""

import contextlib
import importlib.util
import os
import re
import signal
import sys
import threading
import time

from vit_jax.errors import Diverged, NoSpace, Preempted, UserError, WorkdirLost

ENV_VARIABLE = "VIT_JAX_DISTRIBUTED"
SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
)
CONNECT_TIMEOUT_S = 300
HEARTBEAT_TIMEOUT_S = 40  # after which JAX ends the processes that wait for a lost one
CLEANUP_SECONDS = 2
PEER_INTERVAL_S = 0.2
STOP_KEY = "vit_jax/stop"
LOST_PEER = r"(?i)connection (closed|reset)|gloo|heartbeat|peer|coordination|unavailable|aborted"
LOST_PEER_CODE = 1


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

    jax.config.update("jax_enable_preemption_service", False)  # until StopSignal polls
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=CONNECT_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
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


def has_peers():
    """Return whether this process is one of several, as far as the environment tells."""
    arguments = initialize_args()
    return arguments is not None and arguments.get("num_processes") != 1


@contextlib.contextmanager
def lost_peers(stop):
    """Report in one line that another process of the run was lost during a `with` block.

    JAX raises errors of many kinds then. The process is ended at once: at a normal exit, JAX would
    wait for the other process.

    Args:
      stop: the `StopSignal` of this process.
    """
    try:
        yield
    except (UserError, Diverged, NoSpace, WorkdirLost, Preempted):
        raise
    except Exception as error:
        if not stop.multiprocess or not re.search(LOST_PEER, str(error)):
            raise
        rank = re.search(r"task[:=/ ]*(\d+)", str(error))
        which = f"process {rank[1]}" if rank else "another process of the run"
        sys.stdout.flush()
        print(
            f"error: lost {which}; rerun the same command in all processes to resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST_PEER_CODE)


def agree(config, error=None):
    """Check that all processes of a run start with the same config, and without an error.

    Args:
      config: the config of this process, a flat dict {"optim.lr": 1e-3, ...}.
      error: the UserError of this process, or None.

    Raises:
      UserError: in every process, if one of them has an error or another config.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    def share(text):
        """Return the texts of all processes."""
        data = np.frombuffer(text.encode(), np.uint8)
        sizes = multihost_utils.process_allgather(np.int32(len(data)))
        padded = np.zeros(sizes.max(), np.uint8)
        padded[: len(data)] = data
        rows = multihost_utils.process_allgather(padded)
        return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]

    errors = share("" if error is None else str(error))
    if any(errors):
        index = next(i for i, text in enumerate(errors) if text)
        where = "" if index == jax.process_index() else f"process {index}: "
        raise UserError(where + errors[index])
    texts = share("\n".join(f"{key} = {value!r}" for key, value in config.items()))
    for index, text in enumerate(texts):
        if text != texts[0]:
            pairs = zip(texts[0].splitlines(), text.splitlines(), strict=False)
            ours, theirs = next(((a, b) for a, b in pairs if a != b), ("more keys", "fewer keys"))
            raise UserError(
                f"the processes have different configs: process 0 has {ours}, process {index} has "
                f"{theirs}; start all processes with the same command and version"
            )


class StopSignal:
    """A context manager that handles preemption: SIGTERM, SIGUSR1 or Ctrl-C. Call it to poll.

    The main thread cannot poll while it compiles, waits for data or evaluates. In the blocks of
    `react`, a thread reacts for it. A second signal terminates the process.

    Args:
      ends_process: whether a signal may end the process. If not, as in a notebook, the main thread
        always polls, so that a signal takes effect after a step, and a second one raises
        KeyboardInterrupt.

    With several processes, a signal may be sent to only one of them. Until the first poll, the
    reactions of all processes then run. From there on, all processes return True in the same call,
    provided that each process calls equally often; JAX handles SIGTERM for this.

    Attributes:
      multiprocess: whether the run has several processes; see `connect`.
      cleanup: function called before this object ends the process, for a few seconds at most.
      describe: function that returns what to say then.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, *, ends_process=True):
        self.ends_process = ends_process
        self.multiprocess = False
        self.received = False
        self.cleanup = lambda: None
        self.describe = lambda: "preempted: nothing to save; rerun the same command to resume"
        self._calls = 0  # polls of several processes
        self._action = None
        self._lock = threading.RLock()
        self._pipe = None

    def __enter__(self):
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._previous = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        threading.Thread(target=self._watch, name="stop signal", daemon=True).start()
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle or not self.ends_process:  # or JAX does
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._pipe[1])  # ends the thread

    def __call__(self):
        """Return whether to stop."""
        if not self.multiprocess:
            return self.received
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        if not self._calls:
            _start_preemption_service()
        self._calls += 1
        if self._calls == 1 and self.received:
            os.kill(os.getpid(), signal.SIGTERM)  # handled by JAX from here on
        return reached_preemption_sync_point(self._calls)

    def connect(self):
        """Exchange signals with the other processes. Call this method after `initialize`."""
        self.multiprocess = True
        threading.Thread(target=self._watch_peers, name="stop signal of peers", daemon=True).start()

    @contextlib.contextmanager
    def react(self, action):
        """Set how to react to a signal during a `with` block, in which this thread may block.

        Args:
          action: function called in another thread, which must end the process; None: the main
            thread polls. While it runs, the end of the block waits.
        """
        previous = self._action
        self._set_action(action if self.ends_process else None)
        try:
            yield
        except BaseException:  # the process is ending already
            with self._lock:
                self._action = previous
            raise
        self._set_action(previous)

    def _set_action(self, action):
        with self._lock:
            self._action = action
        if self.received and self._pipe is not None:
            os.write(self._pipe[1], b"\0")  # the signal came before

    def exit(self, message=None, code=Preempted.exit_code):
        """Print a message, or that of `describe`, and end the process, from any thread."""
        thread = threading.Thread(target=self._clean_up, daemon=True)
        thread.start()
        thread.join(CLEANUP_SECONDS)
        message = message or self.describe()
        print(f"\n{message}" if sys.stderr.isatty() else message, file=sys.stderr, flush=True)
        if self.multiprocess and not self._calls:
            _leave_peers()
        os._exit(code)

    def _clean_up(self):
        with contextlib.suppress(Exception):
            self.cleanup()
            sys.stdout.flush()

    def _handle(self, number, _frame):
        self.received = True
        if self._calls:
            os.kill(os.getpid(), signal.SIGTERM)  # handled by JAX
        else:
            second = signal.SIG_DFL if self.ends_process else signal.default_int_handler
            signal.signal(number, second)

    def _watch(self):
        """React to signals; ends when the pipe is closed."""
        while os.read(self._pipe[0], 1):
            self.received = True
            with self._lock:
                if self._action is not None and not self._calls:
                    if self.multiprocess:
                        _tell_peers()
                    self._action()

    def _watch_peers(self):
        """Receive the signals of other processes until the first poll."""
        while not self._calls and not self.received:
            if _is_stopping():
                self.received = True
                os.write(self._pipe[1], b"\0")
            time.sleep(PEER_INTERVAL_S)


def _client():
    """Return the client of JAX's coordination service, which has no public interface."""
    from jax._src import distributed

    return distributed.global_state.client


def _start_preemption_service():
    """Let JAX handle SIGTERM, as it does by default in `jax.distributed.initialize`."""
    import jax
    from jax._src import distributed

    jax.config.update("jax_enable_preemption_service", True)
    distributed.global_state.initialize_preemption_sync_manager()


def _is_stopping():
    """Return whether a process of the run was told to stop."""
    with contextlib.suppress(Exception):  # there is no such key, or no connection
        return _client().key_value_try_get(f"{STOP_KEY}/received") is not None
    return False


def _tell_peers():
    """Tell the other processes to stop and wait until they know, rather than miss this one."""
    import jax

    with contextlib.suppress(Exception):
        _client().key_value_set(f"{STOP_KEY}/received", "1", allow_overwrite=True)
        _count_in("stopping", jax.process_count())


def _leave_peers():
    """Say that this process ends. Process 0, which connects the others, waits until all did."""
    import jax

    with contextlib.suppress(Exception):
        _count_in("leaving", jax.process_count() if jax.process_index() == 0 else 1)


def _count_in(name, count):
    """Announce this process under a name, and wait briefly until `count` processes have done so."""
    import jax

    client = _client()
    client.key_value_set(f"{STOP_KEY}/{name}/{jax.process_index()}", "1", allow_overwrite=True)
    deadline = time.monotonic() + CLEANUP_SECONDS
    while time.monotonic() < deadline:
        if len(client.key_value_dir_get(f"{STOP_KEY}/{name}/")) >= count:
            return
        time.sleep(PEER_INTERVAL_S)
