"""What the notebooks install, for the accelerator of the machine; imported before vit_jax is."""

import glob
import os
import shutil
import signal
import subprocess
import sys
from importlib import metadata

# https://docs.jax.dev/en/latest/installation.html: what the CUDA 13 wheels of JAX need.
CUDA13_DRIVER = 580
CUDA13_CAPABILITY = 7.5
PLUGINS = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")


def find_accelerator():
    """Return the name of the accelerator, and the extra of vit_jax for it: "" on a CPU."""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap"]
        process = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True)
        if process.returncode == 0 and process.stdout.strip():
            name, driver, capability = process.stdout.splitlines()[0].split(", ")
            new = float(capability) >= CUDA13_CAPABILITY
            new = new and int(driver.partition(".")[0]) >= CUDA13_DRIVER
            return name, "cuda13" if new else "cuda12"
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return f"TPU {os.environ.get('TPU_ACCELERATOR_TYPE', '')}".strip(), "tpu"
    return "no accelerator", ""


def stale_plugins(extra):
    """Return the installed CUDA plugins of JAX that do not belong to an extra.

    JAX finds them at each start, although their version does not fit the new one of JAX.
    """
    names = {d.name for d in metadata.distributions()}
    return [name for name in PLUGINS if name in names and not (extra and extra in name)]


def imported_versions():
    """Return the versions of the imported packages, {distribution: version}."""
    modules = metadata.packages_distributions()
    names = {name for module in sys.modules for name in modules.get(module, ())}
    return {name: metadata.version(name) for name in names}


def restart_if_changed(before):
    """End the kernel, which the notebook restarts, if an imported package has another version now.

    Args:
      before: `imported_versions()` before the installation.
    """
    after = {d.name: d.version for d in metadata.distributions()}
    changed = [name for name, version in before.items() if after.get(name) != version]
    if changed:
        print(f"restarting the session for the new {', '.join(changed)}; run the notebook again")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
