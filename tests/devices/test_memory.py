import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
from vit_jax.devices import memory
if sys.argv[1] == "keep":
    assert memory.keep_freed()
import numpy as np

def allocate():  # 128 MB, written, freed
    for _ in range(4):
        np.ones(1 << 24)

def in_a_thread():  # as XLA's are: with an arena of its own, unless there is only one
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()

in_a_thread()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_a_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is about glibc's malloc")
def test_kept_memory_is_not_paged_in_again():
    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    leave, keep = faults("leave"), faults("keep")
    assert keep < leave / 10, (keep, leave)
