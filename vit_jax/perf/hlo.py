"""Memory and collectives of a program compiled by XLA."""

import functools
import math
import re
from collections import defaultdict

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
COLLECTIVE = re.compile(rf" = (.*?) ({KINDS}|collective-broadcast)(-start|-done)?\(")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\n((?:.*\n)*?)\}", re.MULTILINE)
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


def memory(compiled):
    """Bytes per device that a jax.stages.Compiled needs, by purpose."""
    m = compiled.memory_analysis()
    parts = {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,  # outputs in the memory of donated arguments
        "temporaries": m.temp_size_in_bytes,
        "program": m.generated_code_size_in_bytes,
    }
    return {"needed": sum(parts.values()) - 2 * parts["aliased"]} | parts


def out_of_memory(message):
    """Read an error of the TPU compiler.

    Returns:
      Bytes of temporaries that the program needs, without its arguments, and bytes available; None
      for any other error.
    """
    size = r"([\d.]+)([KMGT]?)"
    match = re.search(
        rf"Used {size} of {size} hbm|\({size}\) exceeds available HBM \({size}\)", message
    )
    if "RESOURCE_EXHAUSTED" not in message or not match:
        return None
    words = [word for word in match.groups() if word is not None]
    return tuple(int(float(words[i]) * UNITS[words[i + 1]]) for i in (0, 2))


def collectives(text):
    """{kind: {"ops", "runs", "bytes"}} of a program, as `compiled.as_text()` gives it.

    ops: instructions in the program; runs: executions per call of the program, iterations of loops
    included; bytes: of the results of these runs on one device. A loop counts once if the number of
    its iterations is not in the text, and all branches of a conditional count.
    """
    found = list(COMPUTATION.finditer(text))
    computations = {match[2]: match[3].splitlines() for match in found}
    entry = next(match[2] for match in found if match[1])
    callers = defaultdict(list)  # name -> (by whom, how often in a run of that)
    for name, lines in computations.items():
        for line in lines:
            # An asynchronous call is named again at its end.
            if " async-update(" in line or " async-done(" in line:
                continue
            turns = _turns(line, computations) if " while(" in line else 1
            for called in CALLED.findall(line):
                for other in re.findall(r"[\w.-]+", called):
                    callers[other].append((name, turns))

    @functools.cache
    def runs(name):
        return 1 if name == entry else sum(runs(by) * turns for by, turns in callers[name])

    found = {}
    for name, lines in computations.items():
        for line in lines:
            match = COLLECTIVE.search(line)
            if not match or match[3] == "-start":  # its -done has the result
                continue
            total = found.setdefault(match[2], {"ops": 0, "runs": 0, "bytes": 0})
            total["ops"] += 1
            total["runs"] += runs(name)
            total["bytes"] += runs(name) * _bytes(match[1])
    return dict(sorted(found.items()))


def _turns(line, computations):
    """Iterations of a loop: given by the compiler, or the number its counter is compared with."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if said:
        return int(said[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    text = "\n".join(computations.get(condition[1], []))
    bounds = re.findall(r" = [su]\d+\[\]\S* constant\((\d+)\)", text)
    return int(bounds[0]) if len(bounds) == 1 and "direction=LT" in text else 1


def _bytes(shape):
    """The size of an array such as bf16[8,128]{1,0}, or of a tuple of arrays."""
    total = 0
    for kind, sides in ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        total += -(-math.prod(map(int, filter(None, sides.split(",")))) * bits // 8)
    return total
