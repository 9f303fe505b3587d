"""Model size against accuracy: all sizes of a recipe, with several seeds, and their table.

python -m experiments.size_vs_accuracy --config=configs/fashion_ladder.py --config.data.dir=DIR
python -m experiments.size_vs_accuracy --config=configs/deit.py --sizes=Ti,S --seeds=1 --output=DIR
python -m experiments.size_vs_accuracy --smoke

--config is a recipe whose argument is a size, such as configs/deit.py:Ti; its SIZES (or RUNS) lists
them, and its PUBLISHED, where it has one, says what others report. Runs are ordinary runs, in
folders of --output: what is done is not done again, and what was stopped goes on. --output/results
gets a line a run (.jsonl), the table of sizes (.csv with timm's column names, .md) and two figures.
With --index=I only run I is made, as in an array of cluster jobs. --smoke is all that in small, on
digits, in a temporary folder; of that nothing is timed.
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

SMOKE = {
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
    flags.DEFINE_list("sizes", [], "some of the recipe's sizes (default: all)")
    flags.DEFINE_integer("seeds", 2, "how many: 0, 1, ...", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "runs at a time", lower_bound=1)
    flags.DEFINE_integer("index", None, "make this run alone, counted from 0")
    flags.DEFINE_bool("dry_run", False, "print the commands and stop")
    flags.DEFINE_bool("smoke", False, "in small, on digits, in a temporary folder")
    flags.DEFINE_string(
        "output", None, "folder of the runs and results (default: runs/size_vs_accuracy/RECIPE)"
    )


def main(flags):
    if flags.smoke:
        if flags.config is not None or flags.sizes:
            raise UserError("--smoke has its own recipe and sizes; leave --config and --sizes out")
        spec, fixed, sizes, jobs = "configs/fashion_ladder.py", SMOKE, SMOKE_SIZES, 2
    elif flags.config is None:
        raise UserError("--config=FILE is missing, or --smoke; see --help")
    else:
        (spec, fixed), sizes, jobs = runs.handed_on(sys.argv[1:]), flags.sizes, flags.jobs
    module, argument = cli.recipe_module(spec)
    if argument is not None:
        raise UserError(f"--config={spec}: pass the size as --sizes={argument}")
    known = tuple(getattr(module, "SIZES", getattr(module, "RUNS", ())))
    if not known:
        raise UserError(f"{spec} lists no SIZES; configs/deit.py is an example of one that does")
    if strange := [size for size in sizes if size not in known]:
        raise UserError(f"--sizes={strange[0]} must be among {', '.join(known)}")
    if "seed" in fixed:
        raise UserError("--config.seed is what changes from run to run; pass --seeds=N")
    usual = smoke_folder(spec) if flags.smoke else f"runs/size_vs_accuracy/{Path(spec).stem}"
    output = Path(flags.output or usual).expanduser()
    planned = runs.pick(plan(spec, fixed, sizes or known, flags.seeds, output), flags.index)
    if flags.dry_run:
        return runs.show(planned)
    with distributed.StopSignal() as stop:
        codes = runs.make(planned, jobs, stop)
    if flags.index is None:
        table.report(
            planned, getattr(module, "PUBLISHED", {}), output / "results", timed=not flags.smoke
        )
    return max(codes.values(), default=0)


def smoke_folder(spec):
    """A folder that is the same when the command is said again, and another for another recipe."""
    text = Path(spec).read_bytes() + repr((SMOKE, SMOKE_SIZES)).encode()
    name = f"vit_jax-smoke-{hashlib.sha256(text).hexdigest()[:12]}"
    return Path(tempfile.gettempdir()) / name


def plan(spec, fixed, sizes, seeds, output):
    """-> [Job, ...], all sizes with seed 0 first. Raises UserError."""
    planned = []
    for seed in range(seeds):
        for size in sizes:
            values = fixed | {"seed": str(seed)}
            planned.append(runs.one(f"{spec}:{size}", values, output / f"{size}-{seed}"))
            planned[-1].changes = {"size": size, "seed": seed}
    return planned


if __name__ == "__main__":
    define_flags()
    cli.run(main)
