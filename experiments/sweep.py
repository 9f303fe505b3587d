"""Train many variants of one recipe, from a grid or random draws of its keys, and tabulate them.

python -m experiments.sweep --config=configs/digits.py --output=runs/sweep --jobs=2 \\
    --grid=optim.lr=1e-3,3e-3 --grid=seed=0,1,2
python -m experiments.sweep --config=configs/digits.py --output=runs/random --draws=8 \\
    --draw=optim.lr=1e-4..1e-2 --draw=model.drop_path=0,0.1,0.2

--grid trains every combination. --draw samples LOW..HIGH log-uniformly, or one value of a list.
Without either, the recipe's sweep() yields the overrides of each run, such as {"optim.lr": 1e-3}.

Each run is an ordinary training run in a subdirectory of --output, named after its values. Finished
runs are skipped and interrupted runs are resumed. Writes sweep.csv, sweep.md and sweep.png to
--output, best validation score first; --table writes them without training. --index=I trains run I
alone, for an array of cluster jobs: python -m experiments.sweep ... --index=$SLURM_ARRAY_TASK_ID.
experiments.launch --sweep submits such an array, or creates one TPU slice per run.
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
    flags.DEFINE_string("output", None, "directory of the runs and the table", required=True)
    define_choices()
    flags.DEFINE_integer("index", None, "train only this run, counted from 0")
    flags.DEFINE_bool("table", False, "write the table without training")
    flags.DEFINE_bool("dry_run", False, "print the training commands and exit")


def define_choices():
    """Declare the flags that say what is swept, shared with experiments.launch."""
    flags.DEFINE_multi_string("grid", [], "KEY=VALUE,VALUE,...: train every combination")
    flags.DEFINE_multi_string("draw", [], "KEY=LOW..HIGH (log-uniform) or KEY=VALUE,...: sample")
    flags.DEFINE_integer("draws", 8, "number of samples of --draw", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "number of runs to train at a time", lower_bound=1)


def main(flags):
    spec, fixed = runs.handed_on(sys.argv[1:])
    cli.check_local("output", flags.output)
    output = Path(flags.output).expanduser()
    planned = runs.pick(runs.plan(spec, fixed, choices(spec, flags), output), flags.index)
    if flags.dry_run:
        return runs.show(planned)
    codes = {}
    if not flags.table:
        with distributed.StopSignal() as stop:
            codes = runs.make(planned, flags.jobs, stop)
    if flags.index is None:
        rows = [runs.row_of(run) for run in planned]
        table = write(rows, planned[0].changes, planned[0].config.best_metric, output / "sweep")
        print(table, end="")
    return max(codes.values(), default=0)


def write(rows, keys, metric, path):
    """Write path.csv, path.md and path.png, best score first, and return the text of path.md.

    Args:
        rows: list of dicts, see runs.row_of.
        keys: the keys that differ between the rows, one plot each.
        metric: the name of the score.
        path: a Path without suffix.
    """
    rows = sorted(rows, key=lambda row: math.inf if row["val"] is None else -row["val"])
    tables.write(rows, path.with_suffix(".csv"))
    plot(rows, list(keys), metric).savefig(path.with_suffix(".png"), dpi=150)
    return tables.markdown(rows)


def choices(spec, flags):
    """Return the overrides of each run, [{"optim.lr": "1e-3", ...}, ...]. Raises UserError."""
    grid = parse(flags.grid)
    draw = spaces(flags.draw)
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
    if not draw:
        return grids
    rng = random.Random(0)  # a rerun of the command draws the same values
    samples = [{key: _draw(rng, of) for key, of in draw.items()} for _ in range(flags.draws)]
    distinct = {str(each): each for each in samples}.values()
    return [combination | sample for sample in distinct for combination in grids]


def parse(words):
    """Parse ["KEY=TEXT", ...] into {KEY: TEXT}. Raises UserError."""
    pairs = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not text:
            raise UserError(f"'{word}' must be KEY=VALUE,VALUE,... or KEY=LOW..HIGH")
        pairs[key.removeprefix("config.")] = text
    return pairs


def spaces(words):
    """Parse ["KEY=LOW..HIGH", "KEY=A,B"] into {KEY: (low, high), KEY: ["A", "B"]}.

    Raises:
        UserError: if LOW and HIGH are not positive numbers in this order.
    """
    found = {}
    for key, text in parse(words).items():
        low, dots, high = text.partition("..")
        if not dots:
            found[key] = _values(text)
            continue
        try:
            low, high = float(low), float(high)
        except ValueError:
            low, high = math.nan, math.nan
        if not 0 < low <= high < math.inf:
            raise UserError(f"--draw={key}={text}: LOW and HIGH must be numbers, 0 < LOW <= HIGH")
        found[key] = low, high
    return found


def number(value):
    """Format a sampled value as text, rounded to three significant digits."""
    return f"{value:.3g}"


def _values(text):
    """Split text at commas, except inside parentheses."""
    return re.findall(r"(?:\([^)]*\)|[^,])+", text)


def _draw(rng, of):
    if isinstance(of, list):
        return rng.choice(of)
    return number(math.exp(rng.uniform(*map(math.log, of))))


def plot(rows, keys, metric):
    """Plot the validation score against each key, one point per run; return the Figure."""
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
            pass  # text becomes a categorical axis
        axis.plot(values, [row["val"] for row in rows], "o", color="#0072B2", alpha=0.7)
        axis.set_xlabel(key)
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(metric)
    return figure


if __name__ == "__main__":
    define_flags()
    cli.run(main)
