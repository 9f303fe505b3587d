"""The text of programs compiled by XLA: instructions, loops, FLOPs, memory traffic, collectives."""

import functools
import math
import re
from collections import defaultdict
from typing import NamedTuple

BYTES_PER_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
FUSIONS = ("fusion", "fusion-start")
# Custom calls of the compilers without a matrix product; their time is not known and not counted.
TARGETS_WITHOUT_FLOPS = (
    "AllocateBuffer",
    "ConcatBitcast",
    "SliceId",
    "TopK",
    "ZeroCrop",
    "__cub$DeviceRadixSort",
)
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\n((?:.*\n)*?)\}$", re.MULTILINE)
# Metadata of a kernel can contain line breaks.
LINE_BREAK = re.compile(r"\n(?=  )")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line of the text of a program."""

    name: str
    shape: str  # of the result, such as "bf16[8,4]{1,0}" or "(f32[], s32[2]{0})"
    opcode: str
    operands: tuple  # names of instructions
    attributes: str  # the rest of the line
    root: bool

    def attribute(self, key):
        """Return the value of key={...} or key=value as text, or an empty string."""
        match = re.search(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.>-]+))", self.attributes)
        return (match[1] if match[1] is not None else match[2]) if match else ""

    @property
    def target(self):
        """The target of a custom call."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def op_name(self):
        """The name stack of the JAX operation, such as "jit(train_step)/jvp(attention)/dot"."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


class Program:
    """A parsed program.

    Args:
      text: the optimized HLO, from `compiled.as_text()`.

    Attributes:
      computations: {name: {name of an instruction: `Instruction`}}, in the order of the text, which
        is the schedule.
      entry: the name of the first computation to run.
    """

    def __init__(self, text):
        matches = list(COMPUTATION.finditer(text))
        self.computations = {}
        for match in matches:
            instructions = filter(None, map(parse_line, LINE_BREAK.split(match[3])))
            self.computations[match[2]] = {x.name: x for x in instructions}
        self.entry = next(match[2] for match in matches if match[1])
        self._frames = _source_frames(text)

    def called(self, instruction):
        """Return the names of the computations that an instruction calls."""
        groups = CALLED.findall(instruction.attributes)
        return [name for group in groups for name in re.findall(r"[\w.-]+", group)]

    def sources(self, instruction):
        """Return the source files of an instruction as text, from the innermost call outwards."""
        match = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        if match:
            return self._frames(int(match[1]))
        match = re.search(r'source_file="([^"]*)"', instruction.attributes)
        return (match[1],) if match else ()

    @functools.cached_property
    def executions(self):
        """Executions of each computation per call of the program, {name: count}.

        If the text does not contain the trip count of a loop, the loop counts as one iteration. All
        branches of a conditional count.
        """
        callers = defaultdict(list)  # callee: [(caller, calls per execution of the caller), ...]
        for name, instructions in self.computations.items():
            for instruction in instructions.values():
                # async-update and async-done repeat the computation of their async-start.
                if instruction.opcode in ("async-update", "async-done"):
                    continue
                count = self._trip_count(instruction) if instruction.opcode == "while" else 1
                for callee in self.called(instruction):
                    callers[callee].append((name, count))

        @functools.cache
        def count(name):
            if name == self.entry:
                return 1
            return sum(count(caller) * calls for caller, calls in callers[name])

        return {name: count(name) for name in self.computations}

    def schedule(self):
        """Iterate over the executed instructions outside of fusions and loop conditions.

        Yields:
          (name of the computation, `Instruction`, executions per call of the program).
        """
        pending = [self.entry]
        seen = set()
        while pending:
            name = pending.pop()
            if name in seen or name not in self.computations:
                continue
            seen.add(name)
            for instruction in self.computations[name].values():
                yield name, instruction, self.executions[name]
                if instruction.opcode == "while":
                    pending.append(instruction.attribute("body"))
                elif instruction.opcode in ("call", "conditional", "async-start"):
                    pending += self.called(instruction)

    def _trip_count(self, loop):
        """Return the trip count: the compiler's annotation, or the bound over the increment."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.attribute("condition"), {})
        constants = [x for x in condition.values() if x.opcode == "constant"]
        bounds = [x for x in constants if re.match(r"[su]\d+\[\]", x.shape)]
        less = [x for x in condition.values() if "direction=LT" in x.attributes]
        if len(bounds) != 1 or not less:
            return 1
        counter = condition.get(less[0].operands[0])
        return -(-int(bounds[0].operands[0]) // self._increment(loop, counter))

    def _increment(self, loop, counter):
        """Return the constant that the body adds to the counter; 1 if there is none.

        The compiler unrolls the loops of its collective matrix products and counts by two.
        """
        body = self.computations.get(loop.attribute("body"), {})
        root = next((x for x in body.values() if x.root), None)
        index = counter.attribute("index") if counter else ""
        if not index or root is None or root.opcode != "tuple":
            return 1
        added = body[root.operands[int(index)]]
        values = [body[name] for name in added.operands if name in body]
        constants = [int(x.operands[0]) for x in values if x.opcode == "constant"]
        return constants[0] if added.opcode == "add" and constants else 1


def parse_line(line):
    """Parse a line of a computation; return an `Instruction`, or None if it is none."""
    left, separator, rest = line.strip().partition(" = ")
    if not separator:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end + 1 :]
    opening = rest.find("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    opcode = rest[:opening]
    operands = re.findall(r"%([\w.-]+)", inside) or inside.split(", ")  # constant(1), parameter(0)
    root, name = left.startswith("ROOT "), left.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, shape, opcode, tuple(operands), rest[closing + 1 :], root)


def _closing(text, start):
    """Return the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _source_frames(text):
    """Parse the tables of source locations of a program.

    Returns:
      A function from a stack frame id to the source files from the innermost call outwards.
    """

    def rows(title):
        match = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        return match[1].splitlines() if match else []

    def fields(title):
        return {
            int(row.split()[0]): {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", row)}
            for row in rows(title)
        }

    files = {int(row.split()[0]): row.split('"')[1] for row in rows("FileNames")}
    locations = fields("FileLocations")
    frames = fields("StackFrames")

    @functools.cache
    def sources(frame):
        if frame not in frames:
            return ()
        file = files[locations[frames[frame]["file_location_id"]]["file_name_id"]]
        parent = frames[frame].get("parent_frame_id", 1) - 1  # they count from 1; 0 is no frame
        return (file, *sources(parent))

    return sources


def memory(compiled):
    """Return the memory use of a compiled program.

    Args:
      compiled: a jax.stages.Compiled.

    Returns:
      Bytes per device: {"needed": total, "arguments", "outputs", "aliased", "temporaries",
      "program"}.
    """
    m = compiled.memory_analysis()
    parts = {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,  # outputs that reuse the memory of donated arguments
        "temporaries": m.temp_size_in_bytes,
        "program": m.generated_code_size_in_bytes,
    }
    return {"needed": sum(parts.values()) - 2 * parts["aliased"]} | parts


def out_of_memory(message):
    """Parse an out-of-memory error of the TPU compiler.

    Args:
      message: the error message.

    Returns:
      Bytes of temporaries that the program needs, excluding its arguments, and bytes available; or
      None for any other error.
    """
    size = r"([\d.]+)([KMGT]?)"
    match = re.search(
        rf"Used {size} of {size} hbm|\({size}\) exceeds available HBM \({size}\)", message
    )
    if "RESOURCE_EXHAUSTED" not in message or not match:
        return None
    parts = [part for part in match.groups() if part is not None]
    return tuple(int(float(parts[i]) * BYTES_PER_UNIT[parts[i + 1]]) for i in (0, 2))


def dimensions(shape):
    """Return the dimensions of the first array of a shape: "bf16[8,4]{1,0}" -> (8, 4)."""
    match = ARRAY.search(shape)
    return tuple(map(int, filter(None, match[2].split(",")))) if match else ()


def num_bytes(shape):
    """Return the size in bytes of an array such as bf16[8,128]{1,0}, or of a tuple of arrays."""
    total = 0
    for dtype, dims in ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += -(-math.prod(map(int, filter(None, dims.split(",")))) * bits // 8)
    return total


def collectives(text):
    """Count the collectives of a program.

    If the text does not contain the trip count of a loop, the loop counts as one iteration. All
    branches of a conditional count.

    Args:
      text: the optimized HLO, from `compiled.as_text()`, or a parsed `Program`.

    Returns:
      {kind: {"ops", "runs", "asynchronous", "bytes"}}: the number of instructions in the program;
      of executions per call of the program, including loop iterations, and of those the ones that
      run beside other instructions; and the size of the results of these executions on one device.
    """
    program = text if isinstance(text, Program) else Program(text)
    background = {
        name
        for instructions in program.computations.values()
        for instruction in instructions.values()
        if instruction.opcode == "async-start" or "async_collective" in instruction.attributes
        for name in program.called(instruction)
    }
    totals = {}
    for name, instructions in program.computations.items():
        found = [(x.opcode.removesuffix("-done"), x) for x in instructions.values()]
        if name.startswith("all-reduce-scatter"):  # on TPU, the slice of an all-reduce in a fusion
            found = [("reduce-scatter", x) for x in instructions.values() if x.root]
        for kind, instruction in found:  # -start does not have the result
            if kind not in COLLECTIVES:
                continue
            empty = {"ops": 0, "runs": 0, "asynchronous": 0, "bytes": 0}
            total = totals.setdefault(kind, empty)
            runs = program.executions[name]
            total["ops"] += 1
            total["runs"] += runs
            if instruction.opcode.endswith("-done") or name in background:
                total["asynchronous"] += runs
            total["bytes"] += runs * num_bytes(instruction.shape)
    return dict(sorted(totals.items()))


def flops(program, computation, instruction):
    """Count the FLOPs of the matrix products and convolutions of an instruction.

    Args:
      program: the `Program`.
      computation: the name of the computation that contains the instruction.
      instruction: an `Instruction`; for a fusion, the instructions in it are counted.

    Returns:
      FLOPs of one execution, or None if the instruction is a custom call with unknown FLOPs.
    """
    scope = program.computations[computation]

    def shape(i):
        return dimensions(scope[instruction.operands[i]].shape)

    if instruction.opcode in FUSIONS:
        called = [name for name in program.called(instruction) if name in program.computations]
        parts = [flops(program, c, x) for c in called for x in program.computations[c].values()]
        return None if None in parts else sum(parts)
    if instruction.opcode == "dot":
        contracted = map(
            int, filter(None, instruction.attribute("lhs_contracting_dims").split(","))
        )
        out = math.prod(dimensions(instruction.shape))
        return 2 * out * math.prod(shape(0)[i] for i in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, shape(0), shape(1), dimensions(instruction.shape))
    if instruction.opcode == "custom-call":
        return _custom_call_flops(instruction, shape)
    return 0


def _convolution_flops(instruction, lhs, rhs, out):
    """Count the FLOPs of a convolution: products with padding or holes of a dilation are none."""
    labels = instruction.attribute("dim_labels")
    lhs_labels, rhs_labels, out_labels = re.split("_|->", labels)
    window = dict(re.findall(r"(\w+)=(\S+)", instruction.attribute("window")))
    count = len(lhs_labels) - 2

    def values(key, default):
        return [int(x) for x in window[key].split("x")] if key in window else [default] * count

    stride, holes, dilation = values("stride", 1), values("lhs_dilate", 1), values("rhs_dilate", 1)
    pads = window["pad"].split("x") if "pad" in window else ["0_0"] * count
    flops = 2 * rhs[rhs_labels.index("i")] * rhs[rhs_labels.index("o")] * lhs[lhs_labels.index("b")]
    flops //= int(instruction.attribute("batch_group_count") or 1)
    for i in range(count):
        size, kernel, positions = (
            dims[labels.index(str(i))]
            for dims, labels in ((lhs, lhs_labels), (rhs, rhs_labels), (out, out_labels))
        )
        low = int(pads[i].split("_")[0])
        flops *= sum(
            at % holes[i] == 0 and 0 <= at < size * holes[i]
            for position in range(positions)
            for at in (position * stride[i] - low + k * dilation[i] for k in range(kernel))
        )
    return flops


def _custom_call_flops(instruction, shape):
    """Count the FLOPs of a custom call by its target; None: not known."""
    target = instruction.target
    if target.startswith("__cudnn$fmha"):
        # queries [b, n, h, d] and keys [b, m, h, d], in any order of these axes in memory
        batch, queries, heads, size = shape(0)
        keys = shape(1)[1]
        products = 5 if "Backward" in target else 2  # backward: the scores and four gradients
        return products * 2 * batch * heads * queries * keys * size
    if target.startswith("__cudnn$conv"):
        result = dimensions(instruction.shape)
        if "BackwardFilter" in target:
            return _convolution_flops(instruction, shape(0), result, shape(1))
        if "BackwardInput" in target:
            return _convolution_flops(instruction, result, shape(1), shape(0))
        return _convolution_flops(instruction, shape(0), shape(1), result)
    if target in ("__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8"):
        contracted = re.search(r'"lhs_contracting_dimensions":\["(\d+)"\]', instruction.attributes)
        return 2 * math.prod(dimensions(instruction.shape)) * shape(0)[int(contracted[1])]
    if estimate := re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes):
        return int(estimate[1])
    return 0 if target in TARGETS_WITHOUT_FLOPS else None


def traffic(program, computation, instruction):
    """Count the bytes that an instruction reads from memory and writes to it.

    A fusion that reads a slice of an operand reads only the slice, and one that updates a slice
    writes only the slice, since the result then has the memory of the operand.

    Args:
      program: the `Program`.
      computation: the name of the computation that contains the instruction.
      instruction: an `Instruction`.
    """
    scope = program.computations[computation]
    sizes = [num_bytes(scope[name].shape) for name in instruction.operands if name in scope]
    out = num_bytes(instruction.shape)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * out
    if instruction.opcode == "dynamic-update-slice":
        return 2 * sizes[1]
    if instruction.opcode == "custom-call" and instruction.shape.startswith("("):
        # The last result is scratch memory of a library when it is an array of bytes.
        *_, scratch = ARRAY.finditer(instruction.shape)
        out -= num_bytes(scratch[0]) if scratch[1] in ("s8", "u8") else 0
    if instruction.opcode not in FUSIONS:
        return sum(sizes) + out
    (called,) = program.called(instruction)
    inner = program.computations[called]
    users = defaultdict(list)
    for x in inner.values():
        for name in x.operands:
            users[name].append(x)

    def read(x):
        total = 0
        for user in users[x.name]:
            if user.opcode == "bitcast":
                total += read(user)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == x.name:
                total += num_bytes(user.shape)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != x.name:
                return num_bytes(x.shape)
        return min(total, num_bytes(x.shape))

    def written(x):
        if x.opcode == "tuple":
            return sum(written(inner[name]) for name in x.operands)
        while x.opcode == "bitcast":
            x = inner[x.operands[0]]
        if x.opcode == "dynamic-update-slice":
            x = inner[x.operands[1]]
        return num_bytes(x.shape)

    root = next(x for x in inner.values() if x.root)
    reads = sum(read(x) for x in inner.values() if x.opcode == "parameter")
    return reads + written(root)
