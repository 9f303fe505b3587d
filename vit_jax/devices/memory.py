"""How this process gets its memory from the system. Needs no JAX."""

import ctypes
import os
from importlib.util import find_spec

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h
ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")


def keep():
    """Keeps freed memory for the next allocation. -> whether that is so (Linux with glibc only)

    XLA on CPU takes its temporaries, hundreds of megabytes, anew at every step. glibc maps and
    unmaps them each time, and the system fills them with zeros page by page: a quarter of a train
    step of Ti/16. Call it first, before JAX is imported: threads that are there already go on as
    before. The process never gets smaller again. Where JAX has an accelerator the temporaries are
    there, and the host's threads are better off with what malloc does by itself.
    """
    if os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(map(find_spec, ACCELERATORS)):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # Nothing by mmap, nothing handed back, and one arena for all threads: others cannot hold it.
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])
