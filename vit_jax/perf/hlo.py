"""Memory use and collectives of programs compiled by XLA."""

import functools
import math
import re
from collections import defaultdict

BYTES_PER_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
COLLECTIVE = re.compile(rf" = (.*?) ({KINDS}|collective-broadcast)(-start|-done)?\(")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\n((?:.*\n)*?)\}", re.MULTILINE)
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


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


def collectives(text):
    """Count the collectives of a program.

    If the text does not contain the trip count of a loop, the loop counts as one iteration. All
    branches of a conditional count.

    Args:
      text: the optimized HLO, from `compiled.as_text()`.

    Returns:
      {kind: {"ops", "runs", "bytes"}}: the number of instructions in the program; of executions per
      call of the program, including loop iterations; and the size of the results of these
      executions on one device.
    """
    matches = list(COMPUTATION.finditer(text))
    computations = {match[2]: match[3].splitlines() for match in matches}
    entry = next(match[2] for match in matches if match[1])
    callers = defaultdict(list)  # callee: [(caller, calls per execution of the caller), ...]
    for name, lines in computations.items():
        for line in lines:
            # async-update and async-done repeat the computation of their async-start.
            if " async-update(" in line or " async-done(" in line:
                continue
            count = _trip_count(line, computations) if " while(" in line else 1
            for called in CALLED.findall(line):
                for callee in re.findall(r"[\w.-]+", called):
                    callers[callee].append((name, count))

    @functools.cache
    def executions(name):
        if name == entry:
            return 1
        return sum(executions(caller) * count for caller, count in callers[name])

    totals = {}
    for name, lines in computations.items():
        for line in lines:
            match = COLLECTIVE.search(line)
            if not match or match[3] == "-start":  # the -done instruction has the result
                continue
            total = totals.setdefault(match[2], {"ops": 0, "runs": 0, "bytes": 0})
            total["ops"] += 1
            total["runs"] += executions(name)
            total["bytes"] += executions(name) * _num_bytes(match[1])
    return dict(sorted(totals.items()))


def _trip_count(line, computations):
    """Return the trip count of a loop: the compiler's annotation, or the bound in its condition."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    text = "\n".join(computations.get(condition[1], []))
    bounds = re.findall(r" = [su]\d+\[\]\S* constant\((\d+)\)", text)
    return int(bounds[0]) if len(bounds) == 1 and "direction=LT" in text else 1


def _num_bytes(shape):
    """Return the size in bytes of an array such as bf16[8,128]{1,0}, or of a tuple of arrays."""
    total = 0
    for dtype, dims in ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += -(-math.prod(map(int, filter(None, dims.split(",")))) * bits // 8)
    return total
