"""Train a recipe over a grid or random samples of its config keys, and tabulate the results.

python -m experiments.sweep --config=configs/digits.py --output=runs/sweep --jobs=2 \\
    --grid=optim.lr=1e-3,3e-3 --grid=seed=0,1,2
python -m experiments.sweep --config=configs/digits.py --output=runs/random --draws=8 \\
    --draw=optim.lr=1e-4..1e-2 --draw=model.drop_path=0,0.1,0.2

--grid trains every combination of values. --draw samples log-uniformly from LOW..HIGH, or uniformly
from a list of values. Without either, the recipe must define sweep(), which yields the overrides of
each run, such as {"optim.lr": 1e-3}.

Each run is an ordinary training run in a subdirectory of --output, named after its values. Finished
runs are skipped and interrupted runs are resumed. On a terminal, a table with the progress of every
run is updated in place. Rows are settings: scores are averaged over the values of the key "seed".

Writes sweep.md, sweep.csv and sweep.png to --output, best validation score first, from the finished
runs; sweep_runs.csv has a row per run. --table writes them without training, and prints the state
of all runs, also while another process trains them. --index=I trains only run I, for use in a job
array: python -m experiments.sweep ... --index=$SLURM_ARRAY_TASK_ID.
experiments.launch --sweep submits such an array, or creates one TPU slice per run.
"""

import itertools
import math
import random
import re
import sys
from pathlib import Path

from absl import flags

from experiments import runs, sweep_results, sweep_status, tables
from vit_jax import cli
from vit_jax.devices import distributed
from vit_jax.errors import UserError
from vit_jax.workdir import log


def define_flags():
    cli.define_config()
    flags.DEFINE_string("output", None, "directory of the runs and the table", required=True)
    define_sweep_flags()
    flags.DEFINE_integer("index", None, "train only the run with this index (from 0)")
    flags.DEFINE_bool("table", False, "write the table without training")
    flags.DEFINE_bool("dry_run", False, "print the training commands and exit")


def define_sweep_flags():
    """Define the flags that specify a sweep, shared with experiments.launch."""
    flags.DEFINE_multi_string("grid", [], "KEY=VALUE,VALUE,...: train every combination")
    flags.DEFINE_multi_string("draw", [], "KEY=LOW..HIGH (log-uniform) or KEY=VALUE,...: sample")
    flags.DEFINE_integer("draws", 8, "number of samples of --draw", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "number of runs to train at a time", lower_bound=1)


def main(flags):
    spec, fixed = runs.recipe_and_overrides(sys.argv[1:])
    if flags.index is not None and flags.table:
        raise UserError("--table is about all runs of the sweep; leave out --index")
    cli.check_local("output", flags.output)
    output = Path(flags.output).expanduser()
    jobs = runs.plan_sweep(spec, fixed, sweep_overrides(spec, flags), output)
    jobs = runs.select(jobs, flags.index)
    if flags.dry_run:
        return runs.print_commands(jobs)
    runs.output_path("output", flags.output, directory=True)
    if flags.index is not None:  # the other runs of a job array write to the same directory
        with distributed.StopSignal() as stop:
            return max(runs.run_all(jobs, flags.jobs, stop).values())
    metric = jobs[0].config.best_metric
    settings = sweep_results.make_reader(jobs)
    codes = {}

    def ended(_):
        write_tables(settings(), metric, output / "sweep")

    if not flags.table:
        with distributed.StopSignal() as stop, sweep_status.Display(settings, metric) as display:
            codes = runs.run_all(jobs, flags.jobs, stop, ended, display.update)
    print(write(settings(), metric, output / "sweep"), end="")
    return max(codes.values(), default=0)


def write(settings, metric, path):
    """Write the tables of a sweep and its figure, and return the table for the terminal.

    There is no figure before the first run is finished.

    Args:
        settings: list of sweep_results.Setting, in the order in which they were planned.
        metric: the name of the validation score.
        path: a Path without suffix; .csv, _runs.csv, .md and .png are appended.

    Returns:
        The table with the state of all runs, as Markdown.
    """
    from experiments import sweep_figure  # matplotlib

    write_tables(settings, metric, path)
    if any(setting.scores() for setting in settings):
        sweep_figure.plot(settings, metric).savefig(path.with_suffix(".png"), dpi=150)
    return sweep_results.format_table(sweep_results.best_first(settings), metric, live=True)


def write_tables(settings, metric, path):
    """Write the table of settings as CSV and Markdown, best first, and one of runs as CSV."""
    best = sweep_results.best_first(settings)
    tables.write_csv(sweep_results.csv_rows(best, metric), path.with_suffix(".csv"))
    runs_path = path.with_name(f"{path.name}_runs.csv")
    tables.write_csv(sweep_results.csv_runs(best, metric), runs_path)
    log.write_text(path.with_suffix(".md"), sweep_results.format_table(best, metric))


def sweep_overrides(spec, flags):
    """Return the config overrides of each run of a sweep.

    Args:
        spec: the recipe, as passed to --config.
        flags: the flags of `define_sweep_flags`.

    Returns:
        [{"optim.lr": "1e-3", ...}, ...].

    Raises:
        UserError: if a flag is malformed, or neither the flags nor the recipe define a sweep.
    """
    grid = parse_assignments(flags.grid)
    space = parse_space(flags.draw)
    if not grid and not space:
        module, _ = cli.recipe_module(spec)
        if not callable(getattr(module, "sweep", None)):
            raise UserError(
                f"{spec} defines no sweep(); pass --grid=KEY=VALUE,... or --draw=KEY=LOW..HIGH"
            )
        overrides = [{key: str(value) for key, value in run.items()} for run in module.sweep()]
        if not overrides:
            raise UserError(f"sweep() of {spec} yields no runs")
        return overrides
    products = itertools.product(*(_split_values(text) for text in grid.values()))
    combinations = [dict(zip(grid, values, strict=True)) for values in products]
    if not space:
        return combinations
    rng = random.Random(0)  # fixed seed: a rerun of the command draws the same values
    samples = [
        {key: _sample(rng, domain) for key, domain in space.items()} for _ in range(flags.draws)
    ]
    distinct = {str(sample): sample for sample in samples}.values()
    return [combination | sample for sample in distinct for combination in combinations]


def parse_assignments(args):
    """Parse ["KEY=TEXT", ...] into {KEY: TEXT}. Raises UserError."""
    pairs = {}
    for arg in args:
        key, equals, text = arg.partition("=")
        if not equals or not text:
            raise UserError(f"'{arg}' must be KEY=VALUE,VALUE,... or KEY=LOW..HIGH")
        pairs[key.removeprefix("config.")] = text
    return pairs


def parse_space(args):
    """Parse a search space: ["KEY=LOW..HIGH", "KEY=A,B"] to {KEY: (low, high), KEY: ["A", "B"]}.

    Raises:
        UserError: unless 0 < LOW <= HIGH.
    """
    space = {}
    for key, text in parse_assignments(args).items():
        low, dots, high = text.partition("..")
        if not dots:
            space[key] = _split_values(text)
            continue
        try:
            low, high = float(low), float(high)
        except ValueError:
            low, high = math.nan, math.nan
        if not 0 < low <= high < math.inf:
            raise UserError(f"--draw={key}={text}: LOW and HIGH must be numbers, 0 < LOW <= HIGH")
        space[key] = low, high
    return space


def format_number(value):
    """Format a sampled value as text, rounded to three significant digits."""
    return f"{value:.3g}"


def _split_values(text):
    """Split text at commas, except inside parentheses."""
    return re.findall(r"(?:\([^)]*\)|[^,])+", text)


def _sample(rng, domain):
    if isinstance(domain, list):
        return rng.choice(domain)
    return format_number(math.exp(rng.uniform(*map(math.log, domain))))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
