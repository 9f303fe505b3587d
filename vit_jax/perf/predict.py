"""Predict the time of a step from the program that XLA compiled, without running it.

On TPU the compiler writes estimated cycles to each instruction. On GPU, the time is bounded from
below by the roofline of each kernel. Neither includes the time that the program waits for data from
the host or for other devices.
"""

import re
import types
from collections import Counter

from vit_jax.devices import chips
from vit_jax.perf import hlo, pallas, topologies

# Source file of an operation: group. The first one from the innermost call outwards that is listed;
# a Linear layer counts for the layer that calls it.
GROUPS = {
    "/layers/attention.py": "attention",
    "/layers/pallas_attention.py": "attention",
    "/layers/mlp.py": "MLP",
    "/layers/norms.py": "LayerNorm",
    "/layers/drop_path.py": "drop path",
    "/layers/encoder.py": "residual stream",
    "/layers/patch_embed.py": "embedding",
    "/vit_jax/vit.py": "embedding",
    "/layers/heads.py": "head and loss",
    "/vit_jax/scoring.py": "head and loss",
    "/vit_jax/resnet.py": "convolutions",
    "/vit_jax/augment/": "augmentation",
    "/vit_jax/mixing.py": "augmentation",
    "/optax/": "optimizer",
    "/vit_jax/optim.py": "optimizer",
    "/vit_jax/step.py": "optimizer",
    "/vit_jax/objectives/": "head and loss",
}
MOVES = {
    "bitcast",
    "broadcast",
    "concatenate",
    "constant",
    "convert",
    "copy",
    "dynamic-slice",
    "dynamic-update-slice",
    "get-tuple-element",
    "iota",
    "pad",
    "parameter",
    "reshape",
    "slice",
    "transpose",
    "tuple",
}
NOT_KERNELS = {
    "after-all",
    "async-start",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
MAX_GROUPS = 10


def step(program, device, flops, memory):
    """Predict the time of a program on a device.

    Args:
      program: a parsed `hlo.Program`.
      device: the JAX device, which need not be attached.
      flops: analytic FLOPs of a step per device.
      memory: the result of `hlo.memory`.

    Returns:
      The result of `tpu` and "hbm_gib", or that of `gpu` and "temp_gib"; {"predicted_ms": None,
      "mfu": None} for a device whose specifications are not known.
    """
    chip = chips.chip_of(device)
    if device.platform == "tpu" and chip and chip.clock:
        cycles = pallas.time_calls(pallas_calls(program), topologies.SMALLEST[device.device_kind])
        return tpu(program, chip, flops, cycles) | {"hbm_gib": memory["needed"] / 2**30}
    if device.platform == "gpu" and chip:
        return gpu(program, chip, flops) | {"temp_gib": memory["temporaries"] / 2**30}
    return {"predicted_ms": None, "mfu": None}


def pallas_calls(program):
    """Return the distinct calls of Pallas kernels in a program for TPU, a list of `pallas.Call`."""
    calls = {
        pallas.call(instruction, program.computations[computation])
        for computation, instruction, _ in program.schedule()
        if instruction.target == pallas.TARGET
    }
    return sorted(calls)


def tpu(program, chip, flops, kernel_cycles=types.MappingProxyType({})):
    """Predict the time of a program on a TPU.

    Args:
      program: a parsed `hlo.Program`.
      chip: the `chips.Chip`.
      flops: analytic FLOPs of a step per device.
      kernel_cycles: cycles of the Pallas kernels, from `pallas.time_calls`.

    Returns:
      {"predicted_ms", "mfu", "groups", "flops_found", "attention", "kernels_without_time"}.
      "predicted_ms" and "mfu" are None if the program has kernels without a known time, which are
      counted by name in "kernels_without_time". Collectives without estimated cycles count 0 ms.
    """
    groups = _Groups()
    unknown = Counter()
    kernels = set()
    for computation, instruction, runs in program.schedule():
        match = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        cycles = int(match[1]) if match else 0
        found = hlo.flops(program, computation, instruction)
        if instruction.opcode == "custom-call" and not cycles:
            if instruction.target in hlo.TARGETS_WITHOUT_FLOPS:
                continue
            name = instruction.target
            if name == pallas.TARGET:
                call = pallas.call(instruction, program.computations[computation])
                kernel = pallas.parse(pallas.BODY.search(call.config)[1])
                name, found = (kernel.name, kernel.flops) if kernel else (name, None)
                cycles = kernel_cycles.get(call)
            kernels.add(name)
            if not cycles:
                unknown[name] += runs
        if cycles or found:
            ms = (cycles or 0) / (chip.clock * 1e6)
            groups.add(group_of(program, instruction), ms, found, runs)
    ms = None if unknown else groups.ms
    return {
        "predicted_ms": ms,
        "mfu": flops / (ms * 1e9 * chip.peak) if ms else None,
        **groups.result(),
        "attention": ", ".join(sorted(kernels)) or "matrix products",
        "kernels_without_time": dict(unknown),
    }


def gpu(program, chip, flops):
    """Bound the time of a program on a GPU from below.

    The time of a kernel is at least that of its matrix products at the peak, and of its memory
    traffic at the bandwidth. Libraries choose their kernels on the device, and no time is counted
    between kernels.

    Args:
      program: a parsed `hlo.Program`.
      chip: the `chips.Chip`.
      flops: analytic FLOPs of a step per device.

    Returns:
      {"bound_ms", "mfu_bound", "kernels", "traffic_gib", "groups", "flops_found", "attention",
      "kernels_without_time"}. "bound_ms" and "mfu_bound" are None if the program has custom calls
      with unknown FLOPs, which are counted by name in "kernels_without_time".
    """
    groups = _Groups()
    unknown = Counter()
    kernels = traffic = 0
    targets = set()
    for computation, instruction, runs in program.schedule():
        if instruction.opcode in NOT_KERNELS or instruction.opcode.endswith("-done"):
            continue
        found = hlo.flops(program, computation, instruction)
        if found is None:
            unknown[instruction.target] += runs
        num_bytes = hlo.traffic(program, computation, instruction)
        ms = 1e3 * max((found or 0) / (chip.peak * 1e12), num_bytes / (chip.bandwidth * 1e12))
        groups.add(group_of(program, instruction), ms, found, runs)
        kernels += runs
        traffic += runs * num_bytes
        if instruction.target.startswith("__cudnn$fmha"):
            targets.add(instruction.target)
    ms = None if unknown else groups.ms
    return {
        "bound_ms": ms,
        "mfu_bound": flops / (ms * 1e9 * chip.peak) if ms else None,
        "kernels": kernels,
        "traffic_gib": traffic / 2**30,
        **groups.result(),
        "attention": ", ".join(sorted(targets)) or "matrix products",
        "kernels_without_time": dict(unknown),
    }


class _Groups:
    """Sums of time and FLOPs by group."""

    def __init__(self):
        self.ms = 0.0
        self._groups = {}

    def add(self, name, ms, flops, runs):
        group = self._groups.setdefault(name, {"ms": 0.0, "flops": 0, "runs": 0})
        group["ms"] += runs * ms
        group["flops"] += runs * (flops or 0)
        group["runs"] += runs
        self.ms += runs * ms

    def result(self):
        """Return the costliest groups, the rest as "other", and the FLOPs of all."""
        ranked = sorted(self._groups.items(), key=lambda item: -item[1]["ms"])
        named = [(name, group) for name, group in ranked if name != "other"]
        groups = dict(named[:MAX_GROUPS])
        rest = [group for name, group in ranked if name not in groups]
        if rest:
            keys = ("ms", "flops", "runs")
            groups["other"] = {key: sum(group[key] for group in rest) for key in keys}
        return {
            "groups": groups,
            "flops_found": sum(group["flops"] for group in groups.values()),
        }


def group_of(program, instruction):
    """Return the name of the group of an instruction.

    A fusion belongs to the source of the largest matrix product in it; without one, to its own
    source. Fusions that only move data are "copies", or "scan residuals" where a scan stacks or
    reads values of its iterations.
    """
    if instruction.opcode.removesuffix("-start").removesuffix("-done") in hlo.COLLECTIVES:
        return "collectives"
    if instruction.opcode.startswith(("copy", "transpose", "slice-")):
        return "copies"
    inner = []
    if instruction.opcode in hlo.FUSIONS:
        called = [c for c in program.called(instruction) if c in program.computations]
        products = [
            (hlo.flops(program, c, x), x) for c in called for x in program.computations[c].values()
        ]
        flops, product = max(products, key=lambda pair: pair[0] or 0)
        if flops:
            # The product may be in a nested fusion, which has the source of the product.
            return _source_group(program, product) or _source_group(program, instruction) or "other"
        inner = [x for _, x in products]
        if {x.opcode for x in inner if not _is_index(x)} <= MOVES:
            sliced = any(x.opcode.startswith("dynamic") for x in inner)
            return "scan residuals" if sliced and "while/" in instruction.op_name else "copies"
    for candidate in (instruction, *reversed(inner)):
        if group := _source_group(program, candidate):
            return group
    return "other"


def _source_group(program, instruction):
    """Return the group of the source files of an instruction, or None."""
    groups = [
        group
        for file in program.sources(instruction)
        for key, group in GROUPS.items()
        if key in file
    ]
    caller = next((group for group in groups if group != "MLP"), None)
    if groups[:1] == ["MLP"] and caller == "attention":
        return caller
    return groups[0] if groups else None


def _is_index(instruction):
    """Whether an instruction computes a scalar, such as the index of a slice."""
    return hlo.ARRAY.match(instruction.shape) and not hlo.dimensions(instruction.shape)
