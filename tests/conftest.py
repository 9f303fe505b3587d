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
# What runs for milliseconds need not be optimized for seconds: half of the tests' time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def train_digits():
    """train_digits(folder, steps, **config.model): a run on the digits -> its folder."""
    from configs import digits
    from vit_jax import train

    def run(folder, steps, **model):
        c = digits.get_config()
        c.model.update(model)
        c.total_steps = c.eval_every = c.checkpoint_every = c.log_every = str(steps)
        c.optim.warmup, c.compilation_cache, c.objective.ema = str(min(steps - 1, 1)), "", 0.5
        train.claim(folder, c)
        train.train(c, folder)
        return folder

    return run
