"""Predict the speed of the ImageNet recipes on TPUs and on one H100; nothing is measured.

python -m experiments.compile_check.predictions

Compiles with `make install EXTRA=tpu` for TPU slices and with EXTRA=cuda13 for the GPU, one to ten
minutes per row. Writes one row per command to results/predictions.jsonl, and the table to
predictions.csv and predictions.md. Commands that already have a row are skipped, and those whose
compiler is not installed.
"""

import json
import math
import shlex
from pathlib import Path

from absl import flags

from experiments import tables
from experiments.compile_check.__main__ import RESULTS, make_args, measure
from vit_jax import cli
from vit_jax.errors import UserError

RECIPES = {
    "Ti": ("configs/deit.py:Ti", 1024, 256),
    "S": ("configs/deit.py:S", 1024, 256),
    "B": ("configs/deit.py:B", 1024, 256),
    "L/16": ("configs/mae_scratch.py:L", 512, 128),
    "H/14": ("configs/mae_scratch.py:H", 256, 64),
    "DINO S/16": ("configs/dino.py:s16_100", 256, 32),
}
# Overrides with which a recipe fits on eight v5e chips.
TPU_FLAGS = {"B": ("--config.accum_steps=2",), "H/14": ("--config.mesh.fsdp=8",)}


def cases():
    """Return (topology, recipe, flags) of each row, the cheapest rows first."""
    rows = []
    for name, (recipe, tpu_batch, gpu_batch) in RECIPES.items():
        options = (f"--config.batch_size={tpu_batch}", *TPU_FLAGS.get(name, ()))
        rows.append(("v5e:2x4", recipe, *options))
        rows.append(("h100", recipe, f"--config.batch_size={gpu_batch}"))
    for topology in ("v5e:8x8", "v6e:2x4"):
        for name in ("S", "B"):
            rows.append((topology, RECIPES[name][0], "--config.batch_size=4096"))
    return rows


def define_flags():
    flags.DEFINE_string(
        "output", str(RESULTS / "predictions.jsonl"), ".jsonl file to write, one row per command"
    )
    flags.DEFINE_string("only", "", "compile only for this topology, such as h100")


def main(flags):
    output = Path(flags.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = output.read_text().splitlines() if output.exists() else []
    rows = {row["command"]: row for row in map(json.loads, lines)}
    commands = []
    for case in cases():
        args = make_args(*case)
        commands.append(shlex.join(["python", *args]))
        if commands[-1] in rows or flags.only not in ("", case[0]):
            continue
        print(shlex.join(args), flush=True)
        try:
            row = measure(args)
        except UserError as error:
            print(error, flush=True)
            continue
        rows[row["command"]] = row
        with open(output, "a") as file:
            file.write(json.dumps(row) + "\n")
    table = [table_row(rows[command]) for command in commands if command in rows]
    if table:
        tables.write(table, output.with_suffix(".csv"))
        print(output.with_suffix(".md").read_text(), end="")


def table_row(row):
    """Convert a row of predictions.jsonl to a row of the table."""

    def text(value, form):
        return None if value is None else format(value, form)

    bound = "bound_ms" in row
    ms = row.get("bound_ms" if bound else "predicted_ms")
    mfu = row.get("mfu_bound" if bound else "mfu")
    chips = math.prod(row["mesh"].values())
    found = row["flops_found"] * chips / row["flops"] if "flops_found" in row else None
    recipe = next(arg for arg in shlex.split(row["command"]) if arg.startswith("--config="))
    costly = list(row.get("groups", {}).items())[:3]
    return {
        "recipe": recipe.removeprefix("--config=configs/"),
        "devices": row["topology"],
        "batch": row["batch_size"],
        "accum": row["accum_steps"],
        "remat": row["remat"],
        "scan": row["scan"],
        "attn": row["attn"],
        "fits": "yes" if row["fits"] else "no",
        "GiB": text(row["memory"]["needed"] / 2**30, ".2f"),
        "ms": None if ms is None else ("at least " if bound else "") + f"{ms:,.1f}",
        "MFU": None if mfu is None else ("at most " if bound else "") + f"{mfu:.1%}",
        "FLOPs found": text(found, ".1%"),
        "costliest": ", ".join(f"{name} {group['ms']:.1f} ms" for name, group in costly),
        "kernels": row.get("kernels"),
        "compile s": f"{row['seconds']:.0f}",
    }


if __name__ == "__main__":
    define_flags()
    cli.run(main)
