"""Time of Pallas kernels on TPU, from the instructions that libtpu schedules for them.

XLA's text has no estimated cycles for a Pallas kernel, but its MLIR, which has the grid and the
loops. libtpu can dump the VLIW bundles of each kernel, one per cycle. It takes very long to compile
a whole training step with dumps, so that each kernel is compiled alone, in a process of its own.
"""

import base64
import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TARGET = "tpu_custom_call"
BODY = re.compile(r'"body":"([^"]*)"')
CONFIG = re.compile(r"\bbackend_config=(\{.*\})")
DUMP = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=final_bundles"
)
# "  0x56 LB: >>> { ..." is a bundle that starts the body of a loop in two other loops; one of them
# is the loop over the grid.
BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(\w\w)? *: +(\{\}|>*)", re.MULTILINE)
VECTOR = re.compile(r"vector<((?:\d+x)+)\w+>")
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "pred": "bool"} | {
    f"{letter}{bits}": f"{name}{bits}"
    for letter, name in (("s", "int"), ("u", "uint"))
    for bits in (8, 16, 32)
}


class Kernel(NamedTuple):
    """The MLIR of a Pallas kernel."""

    name: str
    steps: int  # of the grid
    loops: tuple  # executions of each loop body per step, in the order of the program
    flops: int | None  # of matrix products, for all steps; None if loops have unknown trip counts


class Call(NamedTuple):
    """A custom call of a Pallas kernel in a compiled program."""

    config: str  # its backend_config, JSON
    operands: tuple  # shapes, such as "bf16[8,4]{1,0}"
    result: str  # a shape, or a tuple of shapes as text


def call(instruction, scope):
    """Return the `Call` of an `hlo.Instruction` in a computation {name: instruction}."""
    config = CONFIG.search(instruction.attributes)[1]
    return Call(config, tuple(scope[x].shape for x in instruction.operands), instruction.shape)


def time_calls(calls, topology):
    """Count the cycles of Pallas kernels; stalls are not included.

    Args:
      calls: list of `Call`.
      topology: TPU topology to compile for, such as "v5e:2x2".

    Returns:
      {Call: cycles of all grid steps, or None if they are not known}.
    """
    if not calls:
        return {}
    with tempfile.TemporaryDirectory(prefix="vit_jax-bundles-") as directory:
        environment = os.environ | {"LIBTPU_INIT_ARGS": DUMP.format(directory)}
        process = subprocess.run(
            [sys.executable, "-m", "vit_jax.perf.pallas", topology, directory],
            input=json.dumps(calls),
            env=environment,
            capture_output=True,
            text=True,
        )
    lines = process.stdout.splitlines() if process.returncode == 0 else []
    found = json.loads(lines[-1]) if lines else [None] * len(calls)
    return dict(zip(calls, found, strict=True))


def main(topology, directory):
    """Print the cycles of the calls in standard input as a JSON list, for `time_calls`."""
    from vit_jax.perf import topologies

    topologies.prepare_topology(topology)
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # a cached program has no dump
    calls = [Call(config, operands, result) for config, operands, result in json.load(sys.stdin)]
    devices = topologies.topology(topology)
    print(json.dumps([_time(x, devices[0], Path(directory)) for x in calls]))


def _time(call, device, directory):
    """Compile a kernel alone and return its cycles, or None."""
    import jax
    import numpy as np

    from vit_jax.perf import hlo

    kernel = parse(BODY.search(call.config)[1])
    if kernel is None:
        return None
    mesh = jax.sharding.Mesh(np.array([device]), "data")
    placement = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def arrays(shape):
        return [
            jax.ShapeDtypeStruct(hlo.dimensions(x[0]), DTYPES[x[1]], sharding=placement)
            for x in hlo.ARRAY.finditer(shape)
        ]

    results = arrays(call.result)
    function = jax.ffi.ffi_call(
        TARGET,
        results if call.result.startswith("(") else results[0],
        custom_call_api_version=1,
        legacy_backend_config=call.config,
    )
    before = set(directory.iterdir())
    operands = [arrays(shape)[0] for shape in call.operands]
    jax.jit(function).trace(*operands).lower(lowering_platforms=("tpu",)).compile()
    dumped = set(directory.glob("*-ffi_call*[0-9]-final_bundles.txt")) - before
    return cycles(kernel, max(dumped).read_text()) if dumped else None


def cycles(kernel, text):
    """Count the bundles that a kernel executes, one per cycle; stalls are not included.

    Args:
      kernel: a `Kernel`.
      text: its bundles, as dumped by libtpu.

    Returns:
      The cycles of all grid steps; None if the loops in the two do not match.
    """
    loops = []  # indices of the latest loops by depth, within the loop over the grid
    count = started = depth = 0
    grid = 1 if kernel.steps > 1 else 0
    for marker, nesting in BUNDLE.findall(text):
        if nesting != "{}":  # the text does not say in which loop an empty bundle is
            depth = max(0, len(nesting) - grid)
        if marker == "LB" and depth:
            loops = [*loops[: depth - 1], started]
            started += 1
        if len(loops) < depth or started > len(kernel.loops):
            return None
        # Bundles of an outer loop can stand among those of an inner one.
        count += kernel.loops[loops[depth - 1]] if depth else 1
    return count * kernel.steps if started == len(kernel.loops) and count else None


@functools.cache
def parse(body):
    """Parse the MLIR of a kernel.

    Args:
      body: the "body" of a custom call in base64.

    Returns:
      The `Kernel`, or None if the grid or a loop has bounds that are not constant.
    """
    from jax._src.lib import tpu
    from jaxlib.mlir import ir

    context = ir.Context()
    tpu.register_dialect(context)
    context.allow_unregistered_dialects = True
    return parse_text(str(ir.Module.parse(base64.b64decode(body), context)))


def parse_text(text):
    """Parse the MLIR of a kernel as text; see `parse`."""
    bounds = re.search(r"iteration_bounds = array<i64: ([\d, -]+)>", text)
    grid = [int(x) for x in bounds[1].split(",")] if bounds else [1]
    name = re.search(r'sym_name = "([^"]*)", tpu.core_type', text)
    constants = {}
    open_loops = []  # (indentation, executions)
    loops = []
    flops = 0
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if open_loops and line.lstrip().startswith("})") and indent == open_loops[-1][0]:
            open_loops.pop()
        outer = open_loops[-1][1] if open_loops else 1
        if match := re.search(r'(%\d+) = "[\w.]*arith.constant"\(\) \{value = (-?\d+) :', line):
            constants[match[1]] = int(match[2])
        elif match := re.search(r'(%\d+) = "[\w.]*arith.addi"\((%\d+), (%\d+)\)', line):
            parts = [constants.get(match[i]) for i in (2, 3)]
            constants[match[1]] = None if None in parts else sum(parts)
        elif "scf.while" in line:
            return None
        elif match := re.search(r'scf.for"\((%\w+), (%\w+), (%\w+)', line):
            low, high, step = (constants.get(match[i]) for i in (1, 2, 3))
            if None in (low, high, step):
                return None
            count = len(range(low, high, step))
            if count != 1:  # the compiler removes a loop of one iteration
                loops.append(outer * count)
                open_loops.append((indent, loops[-1]))
        elif "tpu.matmul" in line:
            left, *_, result = VECTOR.findall(line.partition("} : ")[2])
            contracted = re.search(r"dimension_numbers<\[([\d, ]*)\]", line)[1]
            sizes = [int(x) for x in left.rstrip("x").split("x")]
            depth = math.prod(sizes[int(i)] for i in contracted.split(","))
            flops += 2 * outer * depth * math.prod(int(x) for x in result.rstrip("x").split("x"))
    if min(grid) < 0:
        return None
    steps = math.prod(grid)
    return Kernel(name[1] if name else TARGET, steps, tuple(loops), flops * steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
