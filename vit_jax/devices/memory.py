"""Settings of the memory allocator. Imports no JAX."""

import ctypes
import os
from importlib.util import find_spec

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h
ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")


def keep_freed():
    """Keep freed memory for the next allocation, on Linux with glibc.

    XLA on CPU allocates its temporaries, hundreds of megabytes, in every step. glibc maps and
    unmaps them each time, and the system zeroes them page by page: a quarter of a train step of
    Ti/16. Call it before JAX is imported: it has no effect on existing threads. The process never
    shrinks again. With an accelerator the temporaries are on the device, and malloc's defaults are
    better for the host's threads.

    Returns:
      Whether freed memory is kept.
    """
    if os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(map(find_spec, ACCELERATORS)):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # No mmap, nothing returned to the system, and one arena for all threads.
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])
