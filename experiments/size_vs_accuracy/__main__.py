"""Train all model sizes of a recipe with several seeds, and tabulate accuracy against size.

python -m experiments.size_vs_accuracy --config=configs/fashion_ladder.py --config.data.dir=DIR
python -m experiments.size_vs_accuracy --config=configs/deit.py --sizes=Ti,S --seeds=1 --output=DIR
python -m experiments.size_vs_accuracy --smoke

--config is a recipe whose argument is a model size, such as configs/deit.py:Ti. The recipe lists
its sizes in SIZES (or RUNS), and optionally published accuracies in PUBLISHED.

Each run is an ordinary training run in a subdirectory of --output. Finished runs are skipped and
interrupted runs are resumed. When a run ends, the command writes to --results, by default
OUTPUT/results: a row per run (runs.jsonl), the table of sizes (sizes.csv with timm's column names,
sizes.md) and two figures. A run whose row is in runs.jsonl is not trained again, even if its
workdir no longer exists. --index=I trains only run I, for use in a job array. --smoke runs the same
on digits with a short schedule, in a temporary directory, and leaves out the timings.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

from absl import flags

from experiments import runs
from experiments.size_vs_accuracy import table
from vit_jax import cli
from vit_jax.devices import distributed
from vit_jax.errors import UserError

SMOKE_OVERRIDES = {
    "data.name": "digits",
    "data.train": "train",
    "data.val": "val",
    "data.test": "test",
    "model.image": "8",
    "total_steps": "4ep",
    "eval_every": "4ep",
    "checkpoint_every": "1ep",
    "optim.warmup": "1ep",
    "objective.ema": "0.9",
    "log_every": "10",
}
SMOKE_SIZES = ("pico", "mu", "nano", "resnet8")


def define_flags():
    cli.define_config(required=False)
    flags.DEFINE_list("sizes", [], "sizes to train (default: all sizes of the recipe)")
    flags.DEFINE_integer("seeds", 2, "number of seeds; seeds are 0, 1, ...", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "number of runs to train at a time", lower_bound=1)
    flags.DEFINE_integer("index", None, "train only the run with this index (from 0)")
    flags.DEFINE_bool("dry_run", False, "print the training commands and exit")
    flags.DEFINE_bool("smoke", False, "short runs on digits, in a temporary directory")
    flags.DEFINE_string(
        "output",
        None,
        "directory of the runs and results (default: runs/size_vs_accuracy/RECIPE)",
    )
    flags.DEFINE_string("results", None, "directory of the results (default: OUTPUT/results)")


def main(flags):
    if flags.smoke:
        if flags.config is not None or flags.sizes:
            raise UserError("--smoke cannot be combined with --config or --sizes")
        spec = "configs/fashion_ladder.py"
        fixed = SMOKE_OVERRIDES
        sizes = SMOKE_SIZES
        max_parallel = 2
    elif flags.config is None:
        raise UserError("pass --config=FILE or --smoke; see --help")
    else:
        spec, fixed = runs.recipe_and_overrides(sys.argv[1:])
        sizes = flags.sizes
        max_parallel = flags.jobs
    module, argument = cli.recipe_module(spec)
    if argument is not None:
        raise UserError(f"--config={spec}: pass the size as --sizes={argument}")
    known = tuple(getattr(module, "SIZES", getattr(module, "RUNS", ())))
    if not known:
        raise UserError(f"{spec} does not define SIZES; see configs/deit.py for an example")
    if unknown := [size for size in sizes if size not in known]:
        raise UserError(f"--sizes={unknown[0]} must be one of {', '.join(known)}")
    if "seed" in fixed:
        raise UserError("--config.seed is set by this command; pass --seeds=N")
    default = smoke_output(spec) if flags.smoke else f"runs/size_vs_accuracy/{Path(spec).stem}"
    output = Path(flags.output or default).expanduser()
    jobs = runs.select(plan(spec, fixed, sizes or known, flags.seeds, output), flags.index)
    folder = Path(flags.results or output / "results").expanduser()
    results = table.Results(folder, known, getattr(module, "PUBLISHED", {}), timed=not flags.smoke)
    pending = [job for job in jobs if not results.has(job)]
    if flags.dry_run:
        return runs.print_commands(pending)
    if len(pending) < len(jobs):
        print(f"{len(jobs) - len(pending)} of {len(jobs)} runs have a row in {results.path}")
    with distributed.StopSignal() as stop:
        update = results.update if flags.index is None else lambda _: None
        codes = runs.run_all(pending, max_parallel, stop, ended=lambda job: update([job]))
    if flags.index is None:
        update(pending)
        print(results.table(), end="")
        print(f"wrote {folder}")
    return max(codes.values(), default=0)


def smoke_output(spec):
    """Return a temporary directory that depends only on the recipe, so that a rerun resumes."""
    text = Path(spec).read_bytes() + repr((SMOKE_OVERRIDES, SMOKE_SIZES)).encode()
    name = f"vit_jax-smoke-{hashlib.sha256(text).hexdigest()[:12]}"
    return Path(tempfile.gettempdir()) / name


def plan(spec, fixed, sizes, seeds, output):
    """Check all configs and return their Jobs: all sizes with seed 0 first, then with seed 1, ...

    Args:
        spec: the recipe, as passed to --config, without argument.
        fixed: overrides shared by all runs, {"optim.lr": "1e-3", ...}.
        sizes: arguments of the recipe.
        seeds: the number of seeds.
        output: the parent directory of the workdirs, a Path.

    Raises:
        UserError: if a config is invalid.
    """
    jobs = []
    for seed in range(seeds):
        for size in sizes:
            overrides = fixed | {"seed": str(seed)}
            jobs.append(runs.make_job(f"{spec}:{size}", overrides, output / f"{size}-{seed}"))
            jobs[-1].changes = {"size": size, "seed": seed}
    return jobs


if __name__ == "__main__":
    define_flags()
    cli.run(main)
