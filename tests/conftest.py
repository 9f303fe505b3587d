"""Configure JAX: eight simulated CPU devices and one compilation cache per test session."""

import atexit
import os
import shutil
import tempfile

# Environment variables are set before the first import of jax. Commands started by tests inherit
# them. With several test processes, the first one creates the cache and removes it at exit.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache_dir = tempfile.mkdtemp(prefix="vit_jax-tests-")
    atexit.register(shutil.rmtree, cache_dir, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache_dir
os.environ["JAX_PLATFORMS"] = "cpu"
# Programs run for milliseconds in tests, so skipping XLA's optimization halves the test time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def train_digits():
    """Function (workdir, steps, **config.model) that trains on the digits and returns workdir."""
    from configs import digits
    from vit_jax import train

    def run(workdir, steps, **model):
        c = digits.get_config()
        c.model.update(model)
        c.total_steps = c.eval_every = c.checkpoint_every = c.log_every = str(steps)
        c.optim.warmup = str(min(steps - 1, 1))
        c.objective.ema = 0.5
        c.compilation_cache = ""
        train.train(c, workdir)
        return workdir

    return run
