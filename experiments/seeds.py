"""Train one recipe with several seeds and report mean, standard deviation and range.

python -m experiments.seeds --config=configs/digits.py --seeds=5 \\
    --output=experiments/quickstart/results/digits_seeds.jsonl

Rerunning the same command skips finished seeds and resumes an interrupted one.
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
    flags.DEFINE_integer("seeds", 5, "number of seeds: 0, 1, ...", lower_bound=1)
    flags.DEFINE_string("output", None, ".jsonl file to write, one row per seed", required=True)
    flags.DEFINE_string("workdir", None, "directory of the runs (default: runs/seeds/CONFIG)")


def main(flags):
    spec, fixed = runs.handed_on(sys.argv[1:])
    if "seed" in fixed:
        raise UserError("--config.seed is set by this command; pass --seeds=N")
    output = Path(flags.output).expanduser()
    name = Path(spec.partition(":")[0]).stem
    root = Path(flags.workdir or f"runs/seeds/{name}").expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with distributed.StopSignal() as stop:
        for seed in range(flags.seeds):
            run = runs.one(spec, fixed | {"seed": str(seed)}, root / str(seed))
            rows.append(train(run, seed, stop))
            log.write_text(output, "".join(json.dumps(row) + "\n" for row in rows))
    print(describe(rows))


def train(run, seed, stop):
    """Train a run unless it is finished, and return its row of the output. Raises UserError."""
    timing = run.workdir / "seconds.json"  # {start: seconds, including imports and compilation}
    print(f"seed {seed}: {run.log}", flush=True)
    before = count_starts(run.workdir)
    began = time.perf_counter()
    code = runs.make([run], 1, stop)[run.name]
    seconds = time.perf_counter() - began
    if code:
        sys.exit(code)
    spent = json.loads(timing.read_text()) if timing.exists() else {}
    if (starts := count_starts(run.workdir)) > before:  # else it was already finished
        spent[str(starts)] = round(seconds, 2)
        log.write_json(timing, spent)
    facts = json.loads((run.workdir / "run.json").read_text())
    return result(log.read_metrics(run.workdir), facts, seed, spent)


def count_starts(workdir):
    """The number of times training was started or resumed in a workdir."""
    path = workdir / "run.json"
    return len(json.loads(path.read_text())["starts"]) if path.exists() else 0


def result(rows, run, seed, spent):
    """Return a row of the output: the final accuracies and how they were obtained.

    Args:
        rows: the rows of metrics.jsonl.
        run: the content of run.json.
        seed: the seed of the run.
        spent: {start: seconds}, the wall-clock time of each start.

    Raises:
        UserError: if there is no test accuracy.
    """
    final = [row for row in rows if SCORES[0] in row]
    if not final:
        raise UserError(f"the metrics of seed {seed} have no {SCORES[0]}")
    best = {row["step"]: row for row in rows if SCORES[1] in row}.get(final[-1]["eval/test/step"])
    return {
        "seed": seed,
        "step": final[-1]["step"],
        SCORES[0]: final[-1][SCORES[0]],
        SCORES[1]: best and best[SCORES[1]],
        "images": final[-1]["eval/test/images"],
        # None if an earlier start was killed: its time is unknown.
        "seconds": round(sum(spent.values()), 2) if len(spent) == len(run["starts"]) else None,
        "devices": run["devices"],
        "code": run["code"],
        "python": run["python"],
        "versions": run["versions"],
        "command": ["python", "-m", "vit_jax.train", *run["command"][1:]],
    }


def describe(rows):
    """Format mean, standard deviation and range of the rows as text."""
    lines = []
    for key in (*SCORES, "seconds"):
        values = [row[key] for row in rows if row[key] is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            form = ".1f" if key == "seconds" else ".2%"
            mean = f"{statistics.fmean(values):{form}} +- {spread:{form}}"
            interval = f"{min(values):{form}} to {max(values):{form}}"
            lines.append(f"{key:15} {mean} ({interval}), {len(values)} seeds")
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
