"""Memory, peak FLOP/s and bandwidth of devices."""

import os
from typing import NamedTuple


class Chip(NamedTuple):
    """Specifications of a JAX device: a chip, or one of the two cores of a v2, v3 or TPU7x chip."""

    memory: float  # GiB available to a program
    peak: float  # TFLOP/s in bfloat16
    bandwidth: float  # of the memory, in TB/s
    clock: float | None = None  # GHz of the cycles that the TPU compiler estimates


# memory: the "available HBM" in the errors of libtpu 0.0.42 for a program that is too large; on a
# v5e, 0.25 GiB less than the total. peak and bandwidth: key specifications at
# cloud.google.com/tpu/docs/v5e etc. clock: peak / FLOPs per cycle of the matrix units.
# v2, v3, v4, v5e and v5p have 1, 2, 8, 4 and 8 units of 128 x 128; v6e has 4 of 256 x 256.
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
