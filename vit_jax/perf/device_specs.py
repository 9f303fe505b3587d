"""Memory and peak FLOP/s of devices, and TPU topologies for ahead-of-time compilation."""

import os
from typing import NamedTuple

from vit_jax.errors import UserError


class Chip(NamedTuple):
    """Specifications of a JAX device: a chip, or one of the two cores of a v2, v3 or TPU7x chip."""

    memory: float  # GiB available to a program
    peak: float  # TFLOP/s in bfloat16


# memory: the "available HBM" in the errors of libtpu 0.0.42 for a program that is too large; on a
# v5e, 0.25 GiB less than the total. peak: key specifications at cloud.google.com/tpu/docs/v5e etc.
CHIPS = {
    "TPU v2": Chip(7.48, 22.5),
    "TPU v3": Chip(15.48, 61.5),
    "TPU v4": Chip(30.75, 275),
    "TPU v5 lite": Chip(15.75, 197),
    "TPU v5": Chip(95.74, 459),
    "TPU v6 lite": Chip(31.25, 918),
    "TPU7x": Chip(94.75, 1153.5),
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


def topology(name):
    """Return the devices of a TPU topology, for ahead-of-time compilation without a TPU.

    Args:
      name: TYPE:SHAPE in chips, such as "v5e:2x4".

    Raises:
      UserError: if libtpu does not know the topology.
    """
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

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
