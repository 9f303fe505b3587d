"""Eight simulated devices, so that sharding is tested on any machine."""

import os

# Before the first import of jax. Also inherited by the commands that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
