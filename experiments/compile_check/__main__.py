"""Compile the ImageNet recipes for TPU v5e slices and tabulate memory and collectives.

python -m experiments.compile_check

Requires `make install EXTRA=tpu`; takes about an hour on one core. Writes one row per command to
results/tpu.jsonl, and the table to results/tpu.csv and tpu.md. Commands that already have a row
are skipped.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from absl import flags

from experiments import tables
from vit_jax import cli
from vit_jax.errors import UserError

RESULTS = Path(__file__).parent / "results"
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
S = "configs/deit.py:S"
B = "configs/deit.py:B"
L = "configs/mae_scratch.py:L"
H = "configs/mae_scratch.py:H"
SEARCH = "--search"
# (topology, recipe, flags): the unchanged recipe first, then overrides that reduce its memory.
CASES = [
    (None, "configs/digits.py"),
    ("v5e:2x4", S, SEARCH),
    ("v5e:2x4", S, "--config.model.attn=matmul"),
    ("v5e:2x4", S, "--config.model.remat=full"),
    ("v5e:2x4", B),
    ("v5e:2x4", B, "--config.model.remat=full"),
    ("v5e:2x4", B, "--config.accum_steps=2"),
    ("v5e:2x4", L),
    ("v5e:2x4", L, "--config.accum_steps=4"),
    ("v5e:4x4", L),
    ("v5e:4x8", L),
    ("v5e:4x8", H),
    ("v5e:4x8", H, "--config.mesh.fsdp=8"),
    ("v5e:4x8", H, "--config.mesh.fsdp=8", "--config.accum_steps=2"),
]


def define_flags():
    flags.DEFINE_string(
        "output", str(RESULTS / "tpu.jsonl"), ".jsonl file to write, one row per command"
    )


def main(flags):
    output = Path(flags.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    for case in CASES:
        args = make_args(*case)
        if any(row["command"] == shlex.join(["python", *args]) for row in rows):
            continue
        print(shlex.join(args), flush=True)
        rows.append(measure(args))
        with open(output, "a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    commands = [shlex.join(["python", *make_args(*case)]) for case in CASES]
    rows = {row["command"]: row for row in rows}
    tables.write([table_row(rows[command]) for command in commands], output.with_suffix(".csv"))
    print(output.with_suffix(".md").read_text(), end="")


def make_args(topology, recipe, *flags):
    """Return the arguments of Python for a case of CASES."""
    device = [f"--topology={topology}"] if topology else []
    flags = flags if SEARCH in flags else (*flags, "--nosearch")
    return ["-m", "vit_jax.tools.compile_check", f"--config={recipe}", *device, *flags, "--json"]


def measure(args):
    """Run vit_jax.tools.compile_check.

    Args:
        args: the arguments of Python.

    Returns:
        The JSON object that the tool prints, and "command".

    Raises:
        UserError: if the tool fails.
    """
    process = subprocess.run([sys.executable, *args], stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise UserError(f"python {shlex.join(args)} failed with exit code {process.returncode}")
    result = json.loads(process.stdout.splitlines()[-1])
    return {"command": shlex.join(["python", *args])} | result


def table_row(row):
    """Convert a row of tpu.jsonl to a row of the table."""

    def gib(num_bytes):
        return None if num_bytes is None else f"{num_bytes / 2**30:.2f}"

    memory = row["memory"]
    collectives = row["collectives"]
    recipe = next(arg for arg in shlex.split(row["command"]) if arg.startswith("--config="))
    # A program that the compiler rejects has no collectives, and its memory is a lower bound.
    needed = ("" if collectives is not None else "> ") + gib(memory["needed"])
    return {
        "recipe": recipe.removeprefix("--config=configs/"),
        "devices": row["topology"] or f"{row['device']} here",
        "mesh": "x".join(str(size) for size in row["mesh"].values()),
        "batch": row["batch_size"],
        "accum": row["accum_steps"],
        "remat": row["remat"],
        "attn": row["attn"],
        "fits": "yes" if row["fits"] else "no",
        "GiB needed": needed,
        "of": gib(row["limit"]),
        "state": gib(row["state"]),
        "temporaries": gib(memory.get("temporaries")),
        **{kind: collective_gib(collectives, kind) for kind in COLLECTIVES},
        "ms at peak": None if row["least_ms"] is None else f"{row['least_ms']:.1f}",
        "largest batch": row.get("largest_batch"),
    }


def collective_gib(collectives, kind):
    """Return the size in GiB, per device and step, of the results of one kind of collective."""
    if collectives is None:
        return None
    return f"{collectives[kind]['bytes'] / 2**30:.2f}" if kind in collectives else 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
