"""Train a recipe with several seeds and report the mean, standard deviation and range.

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
    flags.DEFINE_integer("seeds", 5, "number of seeds; seeds are 0, 1, ...", lower_bound=1)
    flags.DEFINE_string("output", None, ".jsonl file to write, one line per seed", required=True)
    flags.DEFINE_string("workdir", None, "directory of the runs (default: runs/seeds/CONFIG)")


def main(flags):
    spec, fixed = runs.recipe_and_overrides(sys.argv[1:])
    if "seed" in fixed:
        raise UserError("--config.seed is set by this command; pass --seeds=N")
    output = runs.output_path("output", flags.output)
    name = Path(spec.partition(":")[0]).stem
    workdir = flags.workdir or f"runs/seeds/{name}"
    root = runs.output_path("workdir", workdir, directory=True)
    rows = []
    with distributed.StopSignal() as stop:
        for seed in range(flags.seeds):
            job = runs.make_job(spec, fixed | {"seed": str(seed)}, root / str(seed))
            code, row = train(job, seed, stop)
            if code:
                return code
            rows.append(row)
            log.write_text(output, "".join(json.dumps(row) + "\n" for row in rows))
    print(describe(rows))
    return 0


def train(job, seed, stop):
    """Train a seed unless it is finished.

    Returns:
        The exit code of training, and the row of the output; None if the code is not 0.

    Raises:
        UserError: if the metrics of the run have no test accuracy.
    """
    path = job.workdir / "seconds.json"  # {start: seconds, including imports and compilation}
    print(f"seed {seed}: {job.log}", flush=True)
    starts_before = count_starts(job.workdir)
    start_time = time.perf_counter()
    code = runs.run_all([job], 1, stop)[job.name]
    elapsed = time.perf_counter() - start_time
    if code:
        return code, None
    seconds = json.loads(path.read_text()) if path.exists() else {}
    if (starts := count_starts(job.workdir)) > starts_before:  # else the run was already finished
        seconds[str(starts)] = round(elapsed, 2)
        log.write_json(path, seconds)
    run = log.read_run_json(job.workdir)
    return 0, result(log.read_metrics(job.workdir), run, seed, seconds)


def count_starts(workdir):
    """Return the number of times training was started or resumed in a workdir."""
    exists = (workdir / "run.json").exists()
    return len(log.read_run_json(workdir)["starts"]) if exists else 0


def result(rows, run, seed, seconds):
    """Return a row of the output: the final accuracies and how they were obtained.

    Args:
        rows: the rows of metrics.jsonl.
        run: the contents of run.json.
        seed: the seed of the run.
        seconds: {start: seconds}, the wall-clock time of each start.

    Raises:
        UserError: if the metrics contain no test accuracy.
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
        # None if an earlier start was killed, since its time is unknown.
        "seconds": round(sum(seconds.values()), 2) if len(seconds) == len(run["starts"]) else None,
        "devices": run["devices"],
        "code": run["code"],
        "python": run["python"],
        "versions": run["versions"],
        "command": ["python", "-m", "vit_jax.train", *run["command"][1:]],
    }


def describe(rows):
    """Format the mean, sample standard deviation and range over the rows as text."""
    lines = []
    for key in (*SCORES, "seconds"):
        values = [row[key] for row in rows if row[key] is not None]
        if values:
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            spec = ".1f" if key == "seconds" else ".2%"
            mean = f"{statistics.fmean(values):{spec}} +- {std:{spec}}"
            interval = f"{min(values):{spec}} to {max(values):{spec}}"
            lines.append(f"{key:15} {mean} ({interval}), {len(values)} seeds")
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
