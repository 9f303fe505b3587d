"""The spread between seeds: one recipe, trained again and again by the ordinary command.

python -m experiments.seeds --config=configs/digits.py --seeds=5 \\
    --output=experiments/quickstart/results/digits_seeds.jsonl

What is done stays done: the same command goes on where it was stopped.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from absl import flags

from experiments import runs
from vit_jax import cli
from vit_jax.devices import distributed
from vit_jax.errors import UserError
from vit_jax.workdir import log

SCORES = ("eval/test/acc1", "eval/val/acc1")


def define_flags():
    cli.define_config()
    flags.DEFINE_integer("seeds", 5, "how many: 0, 1, ...", lower_bound=1)
    flags.DEFINE_string("output", None, ".jsonl to write, a row a seed", required=True)
    flags.DEFINE_string("workdir", None, "folder of the runs (default: runs/seeds/CONFIG)")


def main(flags):
    spec, fixed = runs.handed_on(sys.argv[1:])
    if "seed" in fixed:
        raise UserError("--config.seed is what changes from run to run; pass --seeds=N")
    output = Path(flags.output).expanduser()
    name = Path(spec.partition(":")[0]).stem
    root = Path(flags.workdir or f"runs/seeds/{name}").expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with distributed.Stop() as stop:
        for seed in range(flags.seeds):
            run = runs.one(spec, fixed | {"seed": str(seed)}, root / str(seed))
            rows.append(train(run, seed, stop))
            log.write_text(output, "".join(json.dumps(row) + "\n" for row in rows))
    print(describe(rows))


def train(run, seed, stop):
    """Trains, unless that is done, and waits. -> the row of its result. Raises UserError."""
    timing = run.workdir / "seconds.json"  # {start: seconds, importing and compiling included}
    print(f"seed {seed}: {run.log}", flush=True)
    before, began = count_starts(run.workdir), time.perf_counter()
    code = runs.make([run], 1, stop)[run.name]
    seconds = time.perf_counter() - began
    if code:
        sys.exit(code)
    spent = json.loads(timing.read_text()) if timing.exists() else {}
    if (starts := count_starts(run.workdir)) > before:  # else the run was done already
        spent[str(starts)] = round(seconds, 2)
        log.write_json(timing, spent)
    rows, facts = log.read_metrics(run.workdir), json.loads((run.workdir / "run.json").read_text())
    return result(rows, facts, seed, spent)


def count_starts(workdir):
    """How often training was started or resumed there."""
    path = workdir / "run.json"
    return len(json.loads(path.read_text())["starts"]) if path.exists() else 0


def result(rows, run, seed, spent):
    """A row of the output: accuracies at the end of training, and how they came about."""
    final = [row for row in rows if SCORES[0] in row]
    if not final:
        raise UserError(f"the run of seed {seed} has no {SCORES[0]} in its metrics")
    best = {row["step"]: row for row in rows if SCORES[1] in row}.get(final[-1]["eval/test/step"])
    return {
        "seed": seed,
        "step": final[-1]["step"],
        SCORES[0]: final[-1][SCORES[0]],
        SCORES[1]: best and best[SCORES[1]],
        "images": final[-1]["eval/test/images"],
        # Where an earlier start was cut short, its time is not known: None.
        "seconds": round(sum(spent.values()), 2) if len(spent) == len(run["starts"]) else None,
        "devices": run["devices"],
        "code": run["code"],
        "python": run["python"],
        "versions": run["versions"],
        "command": ["python", "-m", "vit_jax.train", *run["command"][1:]],
    }


def describe(rows):
    """Mean, standard deviation and range, as text."""
    lines = []
    for key in (*SCORES, "seconds"):
        values = [row[key] for row in rows if row[key] is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            digits = ".1f" if key == "seconds" else ".2%"
            mean, spread, low, high = (
                format(x, digits)
                for x in (statistics.fmean(values), spread, min(values), max(values))
            )
            lines.append(f"{key:15} {mean} +- {spread} ({low} to {high}), {len(values)} seeds")
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
