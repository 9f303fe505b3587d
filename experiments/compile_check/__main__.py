"""The ImageNet recipes compiled for TPU v5e slices: what fits, and what makes it fit.

python -m experiments.compile_check

A row a command in results/tpu.jsonl, a table of them in results/tpu.csv and tpu.md. Commands that
have a row are not run again. All take an hour on one core; `make install EXTRA=tpu` comes first.
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
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
S, B, L, H = (
    f"configs/{name}" for name in ("deit.py:S", "deit.py:B", "mae_scratch.py:L", "mae_scratch.py:H")
)
SEARCH = "--search"
# Recipe, slice and what is overridden: the plain recipe first, then what makes it fit.
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
    flags.DEFINE_string("output", str(RESULTS / "tpu.jsonl"), ".jsonl to write, a row a command")


def main(flags):
    output = Path(flags.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    for case in CASES:
        words = words_of(*case)
        if any(row["command"] == shlex.join(["python", *words]) for row in rows):
            continue
        print(shlex.join(words), flush=True)
        rows.append(measure(words))
        with open(output, "a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    commands = [shlex.join(["python", *words_of(*case)]) for case in CASES]
    rows = {row["command"]: row for row in rows}
    tables.write([columns(rows[command]) for command in commands], output.with_suffix(".csv"))
    print(output.with_suffix(".md").read_text(), end="")


def words_of(slice, recipe, *rest):
    """A case -> the command, after "python"."""
    where = [f"--topology={slice}"] if slice else []
    rest = rest if SEARCH in rest else (*rest, "--nosearch")
    return ["-m", "vit_jax.tools.compile_check", f"--config={recipe}", *where, *rest, "--json"]


def measure(words):
    """Runs the tool. -> its object, and the command. Raises UserError where it fails."""
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"python {shlex.join(words)} ended with code {done.returncode}")
    return {"command": shlex.join(["python", *words])} | json.loads(done.stdout.splitlines()[-1])


def columns(row):
    """A row of tpu.jsonl -> a row of the table."""

    def gib(count):
        return None if count is None else f"{count / 2**30:.2f}"

    memory, sent = row["memory"], row["collectives"]
    recipe = next(w for w in shlex.split(row["command"]) if w.startswith("--config="))
    needed = ("" if sent is not None else "> ") + gib(memory["needed"])
    return {
        "recipe": recipe.removeprefix("--config=configs/"),
        "devices": row["topology"] or f"{row['device']} here",
        "mesh": "x".join(str(count) for count in row["mesh"].values()),
        "batch": row["batch_size"],
        "accum": row["accum_steps"],
        "remat": row["remat"],
        "attn": row["attn"],
        "fits": "yes" if row["fits"] else "no",
        "GiB needed": needed,
        "of": gib(row["limit"]),
        "state": gib(row["state"]),
        "temporaries": gib(memory.get("temporaries")),
        **{kind: sent_by(sent, kind) for kind in KINDS},
        "ms at peak": None if row["least_ms"] is None else f"{row['least_ms']:.1f}",
        "largest batch": row.get("largest_batch"),
    }


def sent_by(sent, kind):
    """GiB of the results of one kind of collective on one device in a step."""
    if sent is None:
        return None
    return f"{sent[kind]['bytes'] / 2**30:.2f}" if kind in sent else 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
