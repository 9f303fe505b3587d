"""Specifications of devices, and topologies for ahead-of-time compilation without the devices."""

import importlib.util
import os
import re
from importlib import resources
from typing import NamedTuple

from vit_jax.errors import UserError
from vit_jax.perf import pallas


class Chip(NamedTuple):
    """Specifications of a JAX device: a chip, or one of the two cores of a v2, v3 or TPU7x chip."""

    memory: float  # GiB available to a program
    peak: float  # TFLOP/s in bfloat16
    bandwidth: float  # of the memory, in TB/s
    clock: float | None = None  # GHz of the cycles that the TPU compiler estimates


# memory: the "available HBM" in the errors of libtpu 0.0.42 for a program that is too large; on a
# v5e, 0.25 GiB less than the total. peak and bandwidth: key specifications at
# cloud.google.com/tpu/docs/v5e etc. clock: peak / FLOPs per cycle of the matrix units, of which v2
# to v5p have 1, 2, 8, 4 and 8 of 128 x 128, and v6e 4 of 256 x 256.
# GPUs: peak of dense bfloat16 products and bandwidth as measured on an H100 SXM and an H200; for
# the A100 those of NVIDIA's data sheet (A100-SXM4-80GB), not measured.
CHIPS = {
    "TPU v2": Chip(7.48, 22.5, 0.35, 0.7),
    "TPU v3": Chip(15.48, 61.5, 0.45, 0.94),
    "TPU v4": Chip(30.75, 275, 1.228, 1.05),
    "TPU v5 lite": Chip(15.75, 197, 0.819, 1.5),
    "TPU v5": Chip(95.74, 459, 2.765, 1.75),
    "TPU v6 lite": Chip(31.25, 918, 1.64, 1.75),
    "TPU7x": Chip(94.75, 1153.5, 3.69),
    "NVIDIA H100 80GB HBM3": Chip(79.1, 790, 3.0),
    "NVIDIA H200": Chip(139.8, 790, 4.3),
    "NVIDIA A100-SXM4-80GB": Chip(79.25, 312, 2.039),
}
GPUS = ("h100", "h200", "a100")
TPU_TOPOLOGY = re.compile(r"\w+:\d+(x\d+){1,2}")
# Environment for libtpu to compile without a TPU.
TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # for all topologies; avoids a warning
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # allows concurrent checks
}


def chip_of(device):
    """Return the `Chip` of a JAX device, or None if it is not in the table."""
    return CHIPS.get(device.device_kind)


def memory(devices):
    """Return the bytes per device that are available to a program."""
    if chip := chip_of(devices[0]):
        return int(chip.memory * 2**30)
    stats = devices[0].memory_stats() or {}
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # on CPU
    return stats.get("bytes_limit", ram // len(devices))


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
                f"--topology={name} requires JAX's GPU compiler; run make install EXTRA=cuda, or "
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
            f"v5p:2x2x2, or one of {', '.join(GPUS)}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} requires the TPU compiler; run make install EXTRA=tpu, or "
            'pip install "jax[tpu]"'
        )
    os.environ.update(TPU_ENVIRONMENT)
    pallas.enable_dumps()


def topology(name):
    """Return the devices of a topology, for ahead-of-time compilation without the devices.

    Args:
      name: TYPE:SHAPE in chips for TPUs, such as "v5e:2x4"; one of GPUS for one GPU.

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
    kind, _, shape = name.partition(":")
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}  # one device per chip
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except (JaxRuntimeError, ValueError) as error:
        cause = " ".join(str(error).split()).split(" and does not match regex")[0]
        raise UserError(
            f"--topology={name}: {cause}; pass TYPE:SHAPE in chips, such as v5e:2x4, v5e:16x16, "
            "v6e:4x4, v5p:2x2x2, v4:2x2x4 or v3:4x4"
        ) from None
