"""Test that the malloc settings avoid page faults."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, threading
from vit_jax.devices import memory
if sys.argv[1] == "keep_freed":
    assert memory.keep_freed()
import numpy as np

def allocate():  # allocate, write and free 128 MB
    for _ in range(4):
        np.ones(1 << 24)

def allocate_in_thread():  # as XLA does; by default, each thread has an arena
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()

allocate_in_thread()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate_in_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc's malloc")
def test_keep_freed_avoids_page_faults():
    def page_faults(setting):
        command = [sys.executable, "-c", COUNT_FAULTS, setting]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    default = page_faults("default")
    keep_freed = page_faults("keep_freed")
    assert keep_freed < default / 10, (keep_freed, default)


TRIM = """
import resource
from vit_jax.devices import memory
assert memory.keep_freed()
import numpy as np

def resident():  # MiB
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

arrays = [np.ones(1 << 17) for _ in range(128)]  # 1 MiB each
last = arrays.pop()  # at the top of the heap, which therefore cannot shrink
arrays.clear()
before = resident()
memory.trim()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc's malloc")
def test_trim_returns_freed_memory():
    command = [sys.executable, "-c", TRIM]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(output) > 120, output
