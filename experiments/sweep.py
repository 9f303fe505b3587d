"""Many runs of one recipe: a grid or random draws of its keys, some at a time, and their table.

python -m experiments.sweep --config=configs/digits.py --output=runs/sweep --jobs=2 \\
    --grid=optim.lr=1e-3,3e-3 --grid=seed=0,1,2
python -m experiments.sweep --config=configs/digits.py --output=runs/random --draws=8 \\
    --draw=optim.lr=1e-4..1e-2 --draw=model.drop_path=0,0.1,0.2

--grid: every combination. --draw: of LOW..HIGH a number, evenly in its logarithm, or one of a list.
A recipe may say itself what its sweep is: sweep() yields dicts such as {"optim.lr": 1e-3}, one a
run, taken where there is neither --grid nor --draw.

Runs are ordinary runs, in folders of --output by their values; what is done is not done again, and
what was stopped goes on. --output gets sweep.csv, sweep.md and sweep.png, best first, by the
validation split; with --table nothing is trained for that. With --index=I only run I is made, as in
an array of cluster jobs: python -m experiments.sweep ... --index=$SLURM_ARRAY_TASK_ID.
experiments.launch --sweep makes such an array, or a TPU slice for each run.
"""

import itertools
import math
import random
import re
import sys
from pathlib import Path

from absl import flags

from experiments import runs, tables
from vit_jax import cli
from vit_jax.devices import distributed
from vit_jax.errors import UserError


def define_flags():
    cli.define_config()
    flags.DEFINE_string("output", None, "folder of the runs and of their table", required=True)
    define_choices()
    flags.DEFINE_integer("index", None, "make this run alone, counted from 0")
    flags.DEFINE_bool("table", False, "train nothing: the table of what is there")
    flags.DEFINE_bool("dry_run", False, "print the commands and stop")


def define_choices():
    flags.DEFINE_multi_string("grid", [], "KEY=VALUE,VALUE,...: every combination of these")
    flags.DEFINE_multi_string("draw", [], "KEY=LOW..HIGH or KEY=VALUE,...: drawn at random")
    flags.DEFINE_integer("draws", 8, "how many times to draw", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "runs at a time", lower_bound=1)


def main(flags):
    spec, fixed = runs.handed_on(sys.argv[1:])
    cli.check_local("output", flags.output)
    output = Path(flags.output).expanduser()
    planned = runs.pick(runs.plan(spec, fixed, choices(spec, flags), output), flags.index)
    if flags.dry_run:
        return runs.show(planned)
    codes = {}
    if not flags.table:
        with distributed.Stop() as stop:
            codes = runs.make(planned, flags.jobs, stop)
    if flags.index is None:
        metric = planned[0].config.best_metric
        print(
            write(map(runs.row_of, planned), planned[0].changes, metric, output / "sweep"), end=""
        )
    return max(codes.values(), default=0)


def write(rows, keys, metric, path):
    """The rows, best first, as path.csv, path.md and path.png. -> what path.md says"""
    rows = sorted(rows, key=lambda row: math.inf if row["val"] is None else -row["val"])
    tables.write(rows, path.with_suffix(".csv"))
    plot(rows, list(keys), metric).savefig(path.with_suffix(".png"), dpi=150)
    return tables.markdown(rows)


def choices(spec, flags):
    """-> [{"optim.lr": "1e-3", ...}, ...], the values that each run has. Raises UserError."""
    grid, draw = parse(flags.grid), spaces(flags.draw)
    if not grid and not draw:
        module, _ = cli.recipe_module(spec)
        if not callable(getattr(module, "sweep", None)):
            raise UserError(
                f"{spec} defines no sweep(); pass --grid=KEY=VALUE,... or --draw=KEY=LOW..HIGH"
            )
        found = [{key: str(value) for key, value in each.items()} for each in module.sweep()]
        if not found:
            raise UserError(f"sweep() of {spec} yields nothing")
        return found
    products = itertools.product(*(_values(text) for text in grid.values()))
    grids = [dict(zip(grid, values, strict=True)) for values in products]
    rng = random.Random(0)  # the same draws when the command is said again
    drawn = [{key: _draw(rng, of) for key, of in draw.items()} for _ in range(flags.draws)]
    drawn = {str(each): each for each in drawn}.values() if draw else [{}]  # each of them once
    return [a | b for b in drawn for a in grids]


def parse(words):
    """["KEY=TEXT", ...] -> {KEY: TEXT}. Raises UserError."""
    pairs = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not text:
            raise UserError(f"'{word}' must be KEY=VALUE,VALUE,... or KEY=LOW..HIGH")
        pairs[key.removeprefix("config.")] = text
    return pairs


def spaces(words):
    """["KEY=LOW..HIGH", "KEY=A,B"] -> {KEY: (low, high), KEY: ["A", "B"]}. Raises UserError."""
    found = {}
    for key, text in parse(words).items():
        low, dots, high = text.partition("..")
        if not dots:
            found[key] = _values(text)
            continue
        try:
            found[key] = low, high = float(low), float(high)
            good = 0 < low <= high < math.inf
        except ValueError:
            good = False
        if not good:
            raise UserError(f"--draw={key}={text}: LOW and HIGH must be numbers above 0")
    return found


def number(value):
    """A value from a range as a run has it, and as folders and tables say it: short."""
    return f"{value:.3g}"


def _values(text):
    """Values with commas between them, those inside brackets left alone."""
    return re.findall(r"(?:\([^)]*\)|[^,])+", text)


def _draw(rng, of):
    if isinstance(of, list):
        return rng.choice(of)
    return number(math.exp(rng.uniform(*map(math.log, of))))


def plot(rows, keys, metric):
    """The validation score against each key that changes, a point a run."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["val"] is not None]
    figure = Figure(figsize=(3.4 * max(len(keys), 1), 3.2), layout="constrained")
    axes = figure.subplots(1, max(len(keys), 1), sharey=True, squeeze=False)[0]
    for axis, key in zip(axes, keys, strict=False):
        values = [row[key] for row in rows]
        try:
            values = [float(value) for value in values]
            if min(values) > 0 and max(values) / min(values) >= 10:
                axis.set_xscale("log")
        except ValueError:
            pass  # names are drawn as categories
        axis.plot(values, [row["val"] for row in rows], "o", color="#0072B2", alpha=0.7)
        axis.set_xlabel(key)
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(metric)
    return figure


if __name__ == "__main__":
    define_flags()
    cli.run(main)
