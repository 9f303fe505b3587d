"""Settings of the memory allocator. Imports no JAX."""

import contextlib
import ctypes
import os
from importlib.util import find_spec

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h
MAX_TEMPORARIES_TWICE = 2**27  # bytes
ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")


def keep_freed():
    """Configure malloc to keep freed memory for reuse (Linux with glibc).

    In every step, XLA on CPU allocates hundreds of megabytes of temporary buffers. By default,
    glibc maps and unmaps them each time, and the kernel zeroes their pages, which takes a quarter
    of a training step of Ti/16. With these settings, the process never returns memory to the
    system.

    Call this function before importing JAX: it has no effect on existing threads. It does nothing
    if an accelerator may be used, because the temporary buffers are then on the device, and
    malloc's defaults are better for the threads of the host.

    Returns:
      Whether the settings were applied.
    """
    if os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(map(find_spec, ACCELERATORS)):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # Disable mmap, never trim the heap, and use one arena for all threads.
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])


def trim():
    """Return the memory of freed arrays and of compilation to the system (Linux with glibc).

    Call this after compilation. The compiler leaves half a gigabyte in pieces that are too small
    for the temporary buffers of a step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def exclusive(compiled, platform):
    """Return whether a program should wait for its previous execution.

    On CPU, the temporary buffers of an execution are allocated when it is dispatched, while the
    previous one still has its own. Where they are small, dispatching ahead is faster.

    Args:
      compiled: a jax.stages.Compiled.
      platform: platform of its devices.
    """
    if platform != "cpu":
        return False
    return compiled.memory_analysis().temp_size_in_bytes > MAX_TEMPORARIES_TWICE
