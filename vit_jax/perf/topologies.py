"""TPU and GPU topologies, for ahead-of-time compilation without the devices."""

import importlib.util
import os
import re
from importlib import resources

from vit_jax.errors import UserError

GPUS = ("h100", "h200", "a100")
# SLICES x TYPE : SHAPE, such as v5e:2x4 or 2xv5e:2x4
TPU_TOPOLOGY = re.compile(r"((?P<slices>\d+)x)?(?P<slice>[a-z]\w*:\d+(x\d+){1,2})")
# A topology of each kind of TPU, to compile programs for one device.
SMALLEST = {
    "TPU v2": "v2:2x2",
    "TPU v3": "v3:2x2",
    "TPU v4": "v4:2x2x1",
    "TPU v5 lite": "v5e:2x2",
    "TPU v5": "v5p:2x2x1",
    "TPU v6 lite": "v6e:2x2",
}
# Environment for libtpu to compile without a TPU.
TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # for all topologies; avoids a warning
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # allows concurrent checks
}


def prepare_topology(name):
    """Set the environment to compile for a topology; call it before JAX is imported.

    Args:
      name: a topology, as for `topology`.

    Raises:
      UserError: if the name is invalid or the compiler is not installed.
    """
    if name in GPUS:
        # The plugin of CUDA 12 or 13; a wheel of jaxlib alone has no compiler for GPUs.
        if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
            raise UserError(
                f"--topology={name} requires JAX's GPU compiler; run make install EXTRA=cuda13, or "
                'pip install "jax[cuda13]"'
            )
        os.environ["JAX_PLATFORMS"] = "cpu"
        # Autotuning would run kernels on a GPU.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()
        return
    if not TPU_TOPOLOGY.fullmatch(name):
        raise UserError(
            f"--topology={name} must be TYPE:SHAPE in chips, such as v5e:2x4, v6e:4x4 or "
            f"v5p:2x2x2; several slices, such as 2xv5e:4x4; or one of {', '.join(GPUS)}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} requires the TPU compiler; run make install EXTRA=tpu, or "
            'pip install "jax[tpu]"'
        )
    os.environ.update(TPU_ENVIRONMENT)


def topology(name):
    """Return the devices of a topology, for ahead-of-time compilation without the devices.

    Args:
      name: TYPE:SHAPE in chips for TPUs, such as "v5e:2x4", or several slices, such as
        "2xv5e:2x4"; one of GPUS for one GPU.

    Raises:
      UserError: if the compiler does not know the topology.
    """
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    if name in GPUS:
        target = resources.files("vit_jax.perf").joinpath(f"{name}.txt").read_text()
        shape = "1x1x1"  # slices, hosts per slice, GPUs per host
        return topologies.get_topology_desc(
            platform="cuda", target_config=target, topology=shape
        ).devices
    match = TPU_TOPOLOGY.fullmatch(name)
    kind, _, shape = match["slice"].partition(":")
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}  # one device per chip
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if match["slices"]:
        options["num_slices"] = int(match["slices"])
    try:
        return topologies.get_topology_desc(match["slice"], "tpu", **options).devices
    except (JaxRuntimeError, ValueError) as error:
        cause = " ".join(str(error).split()).split(" and does not match regex")[0]
        raise UserError(
            f"--topology={name}: {cause}; pass TYPE:SHAPE in chips, such as v5e:2x4, v5e:16x16, "
            "v6e:4x4, v5p:2x2x2, v4:2x2x4 or v3:4x4"
        ) from None
