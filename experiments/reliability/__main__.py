"""Tabulate the results of the fault cases of tests/faults.

python -m experiments.reliability
python -m experiments.reliability --add=kills.jsonl,flips.jsonl

Prints the table from results/KIND.jsonl. --add stores the records that `python -m tests.faults` has
written in these files, without the texts of the cases that passed, and updates the table of
docs/reliability.md.
"""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments import tables
from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.workdir import log

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- python -m experiments.reliability -->\n", "<!-- end -->\n"
MAX_TEXT_CHARS = 20  # of the details of a case that passed


class Kind(NamedTuple):
    """How a kind of fault is tabulated.

    Attributes:
      fault: what was injected.
      counted: what a failed case means.
      figure: name of the measured value.
      key: key of the value in a record, a number or a list of numbers; "": none.
    """

    fault: str
    counted: str
    figure: str = ""
    key: str = ""


KINDS = {
    "kills": Kind(
        "SIGKILL at random times, half of them inside a save, and at every named point of a save",
        "lost",
        "training steps repeated",
        "repeated_steps",
    ),
    "flips": Kind(
        "file of a checkpoint changed in one byte or more, truncated, emptied, zeroed or removed",
        "silent",
    ),
    "full_disk": Kind("full disk: checkpoints, logs or both", "lost"),
    "signals": Kind(
        "SIGTERM or SIGINT in ten phases, one and two processes", "lost", "s to exit", "exit_s"
    ),
    "two_trainers": Kind(
        "two trainers on one workdir", "damaged", "s to refusal", "seconds_to_refusal"
    ),
    "divergence": Kind("NaN or infinity in loss, state or hyperparameters", "saved"),
    "pictures": Kind("corrupt or oversized image", "crashed", "MB of memory", "megabytes"),
    "weights": Kind(
        "corrupt or hostile weight file or dataset", "accepted", "s of CPU time", "cpu_seconds"
    ),
    "commands": Kind("wrong command", "not answered", "s of CPU time", "cpu_seconds"),
}


def define_flags():
    flags.DEFINE_list("add", [], "files written by python -m tests.faults --output=FILE")


def main(flags):
    for name in flags.add:
        if not Path(name).exists():
            raise UserError(f"--add={name}: no such file")
        add(Path(name))
    print(table(), end="")
    if flags.add:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        log.write_text(PAGE, before + BEGIN + table() + END + rest.partition(END)[2])


def add(path):
    """Store the records of a file in results/KIND.jsonl, instead of those of the same kinds."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for kind in {record["kind"] for record in records}:
        lines = [json.dumps(compact(r)) + "\n" for r in records if r["kind"] == kind]
        log.write_text(RESULTS / f"{kind}.jsonl", "".join(lines))


def compact(record):
    """Return a record without long texts if the case passed."""
    texts = {k for k, x in record.items() if isinstance(x, str) and len(x) > MAX_TEXT_CHARS}
    if not record["ok"]:
        texts = set()
    return {key: value for key, value in record.items() if key == "case" or key not in texts}


def table():
    """Return the results as a Markdown table."""
    rows = []
    for kind, (fault, counted, figure, key) in KINDS.items():
        command = f"`python -m tests.faults --kind={kind}`"
        row = {"fault": fault, "tried": "not run", "lost or silent": None, "measured": None}
        path = RESULTS / f"{kind}.jsonl"
        if path.exists():
            records = [json.loads(line) for line in path.read_text().splitlines()]
            failed = [record for record in records if not record["ok"]]
            row["tried"] = f"{sum(record.get('tried', 1) for record in records):,}"
            row["lost or silent"] = f"{len(failed)} {counted}"
            row["measured"] = measured(records, figure, key)
        rows.append(row | {"command": command})
    return tables.markdown(rows)


def measured(records, figure, key):
    """Return the quantiles of a value of the records, or the counts of their outcomes, as text."""
    if not key:
        outcomes = Counter(r["outcome"] for r in records if "outcome" in r)
        return ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())) or None
    values = [record[key] for record in records if record.get(key) is not None]
    values = np.concatenate([np.ravel(value) for value in values]) if values else []
    if not len(values):
        return None
    p50, p95 = np.quantile(values, (0.5, 0.95))
    return f"{figure}: p50 {p50:.3g}, p95 {p95:.3g}, max {np.max(values):.3g}"


if __name__ == "__main__":
    define_flags()
    cli.run(main)
