"""Eight simulated devices, and one cache of compiled programs for all tests of a session."""

import atexit
import os
import shutil
import tempfile

# Before the first import of jax; the commands that tests start inherit it.
# With several test processes the first one makes the cache, and removes it at the end.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="vit_jax-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
os.environ["JAX_PLATFORMS"] = "cpu"
# What runs for milliseconds need not be optimised for seconds: half of the tests' time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
