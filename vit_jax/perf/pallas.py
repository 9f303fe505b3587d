"""Time of Pallas kernels on TPU, from the instructions that libtpu schedules for them.

XLA's text has no estimated cycles for a Pallas kernel, but its MLIR, which has the grid and the
loops. libtpu can dump the VLIW bundles of each kernel, one per cycle.
"""

import base64
import functools
import math
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

TARGET = "tpu_custom_call"
DUMP_DIRECTORY = re.compile(r"--xla_jf_dump_to=(\S+)")
BODY = re.compile(r'"body":"([^"]*)"')
# "  0x56 LB: >>> { ..." is a bundle that starts the body of a loop in two other loops; one of them
# is the loop over the grid.
BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(\w\w)? *: +(\{\}|>*)", re.MULTILINE)
VECTOR = re.compile(r"vector<((?:\d+x)+)\w+>")


class Kernel(NamedTuple):
    """The MLIR of a Pallas kernel."""

    name: str
    steps: int  # of the grid
    loops: tuple  # executions of each loop body per step, in the order of the program
    flops: int | None  # of matrix products, for all steps; None if loops have unknown trip counts


@functools.cache
def enable_dumps():
    """Make libtpu dump the bundles; call it before JAX is imported. A given directory is kept."""
    arguments = os.environ.get("LIBTPU_INIT_ARGS", "")
    if DUMP_DIRECTORY.search(arguments):
        return None
    directory = tempfile.TemporaryDirectory(prefix="vit_jax-bundles-")
    options = "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
    dump = f"--xla_jf_dump_to={directory.name} {options}"
    os.environ["LIBTPU_INIT_ARGS"] = f"{arguments} {dump}".strip()
    return directory  # kept until the process ends


def dumped_bundles():
    """Read the dump of libtpu.

    Returns:
      {body of the kernel in base64: text of its bundles}.
    """
    match = DUMP_DIRECTORY.search(os.environ.get("LIBTPU_INIT_ARGS", ""))
    found = {}
    for analysis in Path(match[1]).glob("*-schedule-analysis_final_bundles.txt") if match else ():
        text = analysis.read_text()
        stem, name = re.match(r"(\d+-(.*)-)\d+-schedule", analysis.name).groups()
        # The files of the whole program list its kernels, too.
        instruction = re.search(rf"%{re.escape(name)} = .*{TARGET}.*", text)
        if body := BODY.search(instruction[0] if instruction else ""):
            # The files of a kernel have the same name up to the number of the pass.
            (path,) = (
                path
                for path in analysis.parent.glob("*[0-9]-final_bundles.txt")
                if path.name.startswith(stem)
            )
            found[body[1]] = path.read_text()
    return found


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
            loops.append(outer * len(range(low, high, step)))
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
