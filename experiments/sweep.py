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
validation split. With --index=I only run I is made, as in an array of cluster jobs:
python -m experiments.sweep ... --index=$SLURM_ARRAY_TASK_ID
"""

import collections
import dataclasses
import hashlib
import itertools
import math
import random
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from experiments import tables
from vit_jax import cli, distributed, log, recipe
from vit_jax.cli import UserError

RETRIES = 3  # of a run that was preempted (75) but not by us


def define_flags():
    cli.define_config()
    flags.DEFINE_string("output", None, "folder of the runs and of their table", required=True)
    flags.DEFINE_multi_string("grid", [], "KEY=VALUE,VALUE,...: every combination of these")
    flags.DEFINE_multi_string("draw", [], "KEY=LOW..HIGH or KEY=VALUE,...: drawn at random")
    flags.DEFINE_integer("draws", 8, "how many times to draw", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "runs at a time", lower_bound=1)
    flags.DEFINE_integer("index", None, "make this run alone, counted from 0")
    flags.DEFINE_bool("dry_run", False, "print the commands and stop")


def main(flags):
    spec, fixed = handed_on(sys.argv[1:])
    runs = plan(spec, fixed, choices(spec, flags), Path(flags.output).expanduser())
    if flags.index is not None:
        if not 0 <= flags.index < len(runs):
            raise UserError(f"--index={flags.index}: the runs are 0 to {len(runs) - 1}")
        runs = [runs[flags.index]]
    if flags.dry_run:
        for run in runs:
            print(shlex.join(["python", *run.command[1:]]))
        return 0
    with distributed.Stop() as stop:
        codes = make(runs, flags.jobs, stop)
    if flags.index is None:
        rows = sorted(map(row_of, runs), key=lambda row: -(row["val"] or -math.inf))
        tables.write(rows, Path(flags.output).expanduser() / "sweep.csv")
        figure = plot(rows, list(runs[0].changes), runs[0].config.best_metric)
        figure.savefig(Path(flags.output).expanduser() / "sweep.png", dpi=150)
        print(tables.markdown(rows), end="")
    return max(codes.values(), default=0)


@dataclasses.dataclass(eq=False)
class Run:
    name: str
    workdir: Path
    config: object
    changes: dict  # what differs between the runs: {"optim.lr": "1e-3", ...}
    command: list

    def finished(self):
        rows = log.read_metrics(self.workdir)
        if not rows or "eval/test/step" not in rows[-1]:
            return False
        return not recipe.config_diff(recipe.load_config(self.workdir), self.config)


def handed_on(argv):
    """-> the recipe, and the --config.KEY=VALUE of the command line. Raises UserError."""
    words = [word for word in argv if re.match(r"--?(no)?config\b", word)]
    if any("=" not in word for word in words):
        raise UserError(
            "write --config=FILE and --config.KEY=VALUE with '=' so they can be handed on"
        )
    pairs = [word.lstrip("-").split("=", 1) for word in words]
    fixed = {key.removeprefix("config."): text for key, text in pairs if key != "config"}
    return next(text for key, text in pairs if key == "config"), fixed


def choices(spec, flags):
    """-> [{"optim.lr": "1e-3", ...}, ...], the values that each run has. Raises UserError."""
    grid, draw = (dict(map(_split, words)) for words in (flags.grid, flags.draw))
    if not grid and not draw:
        module, _ = cli.recipe_module(spec)
        if not callable(getattr(module, "sweep", None)):
            raise UserError(
                f"{spec} defines no sweep(); say --grid=KEY=VALUE,... or --draw=KEY=LOW..HIGH"
            )
        found = [{key: str(value) for key, value in each.items()} for each in module.sweep()]
        if not found:
            raise UserError(f"sweep() of {spec} yields nothing")
        return found
    products = itertools.product(*(_values(text) for text in grid.values()))
    grids = [dict(zip(grid, values, strict=True)) for values in products]
    rng = random.Random(0)  # the same draws when the command is said again
    drawn = [{k: _draw(rng, k, text) for k, text in draw.items()} for _ in range(flags.draws)]
    drawn = {str(each): each for each in drawn}.values() if draw else [{}]  # each of them once
    return [a | b for b in drawn for a in grids]


def _split(word):
    key, equals, text = word.partition("=")
    if not equals or not text:
        raise UserError(f"'{word}' must be KEY=VALUE,VALUE,... or KEY=LOW..HIGH")
    return key.removeprefix("config."), text


def _values(text):
    """Values with commas between them, those inside brackets left alone."""
    return re.findall(r"(?:\([^)]*\)|[^,])+", text)


def _draw(rng, key, text):
    low, dots, high = text.partition("..")
    if not dots:
        return rng.choice(_values(text))
    try:
        low, high = math.log(float(low)), math.log(float(high))
    except ValueError:
        raise UserError(f"--draw={key}={text}: LOW and HIGH must be numbers above 0") from None
    return f"{math.exp(rng.uniform(low, high)):.3g}"


def plan(spec, fixed, changes, output):
    """-> [Run, ...]; each config is checked before any is trained. Raises UserError."""
    runs, swept = [], dict.fromkeys(key for each in changes for key in each)
    for each in changes:
        if both := fixed.keys() & each.keys():
            raise UserError(f"--config.{both.pop()} is fixed by the command line and swept")
        config, values = cli.load_recipe(spec), fixed | each
        for key, text in values.items():
            cli.override(config, key, text)
        cli.check(config)
        name = re.sub(r"[^\w.=,+-]+", "_", ",".join(f"{k}={v}" for k, v in each.items())) or "run"
        if len(name) > 120:
            name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        command = [sys.executable, "-m", "vit_jax.train", f"--config={spec}"]
        command += [f"--workdir={output / name}", *(f"--config.{k}={v}" for k, v in values.items())]
        known = {key: each.get(key, str(recipe.flat(config)[key])) for key in swept}
        runs.append(Run(name, output / name, config, known, command))
    if twice := [n for n, count in collections.Counter(r.name for r in runs).items() if count > 1]:
        raise UserError(f"the sweep has {twice[0]} twice")
    return runs


def make(runs, jobs, stop):
    """Trains what is not finished, `jobs` at a time. -> {name: exit code}

    Stopped, it stops the runs, which save, and raises Preempted. A disk that is full ends it.
    """
    codes = {run.name: 0 for run in runs if run.finished()}
    waiting = collections.deque(run for run in runs if run.name not in codes)
    tries, going = collections.Counter(), {}
    print(f"{len(runs)} runs, {len(codes)} done already", flush=True)
    try:
        while waiting or going:
            if stop():
                raise cli.Preempted(f"stopped with {len(codes)} of {len(runs)} runs done")
            while waiting and len(going) < jobs:
                run = waiting.popleft()
                going[run] = start(run)
            for run, process in list(going.items()):
                code = process.poll()
                if code is None:
                    continue
                del going[run]
                tries[run] += 1
                if code == 75 and tries[run] <= RETRIES:
                    waiting.append(run)
                    continue
                codes[run.name] = 1 if code < 0 else code
                words = f"exit code {code}: {complaint(run)}" if code else score(run)
                print(f"{len(codes)}/{len(runs)}  {run.name}  {words}", flush=True)
                if code == 4:
                    raise OSError(28, "No space left on device", str(run.workdir))
            time.sleep(0.1)
    finally:
        for process in going.values():
            process.terminate()
        for process in going.values():
            process.wait()
    return codes


def start(run):
    run.workdir.mkdir(parents=True, exist_ok=True)
    with open(run.workdir / "log.txt", "ab") as file:
        # A session of its own: Ctrl-C reaches the sweep alone, which then stops its runs.
        return subprocess.Popen(
            run.command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def complaint(run):
    """The last line of its log that begins with "error:", or the last one."""
    lines = (run.workdir / "log.txt").read_text(errors="replace").strip().splitlines()
    return ([x for x in lines if x.startswith("error: ")] or lines or ["it said nothing"])[-1]


def score(run):
    metric, rows = run.config.best_metric, log.read_metrics(run.workdir)
    values = [row[metric] for row in rows if row.get(metric) is not None]
    return f"{metric} {max(values):.4f}" if values else "not evaluated"


def row_of(run):
    """Its line of the table: what changes, the best score on val, that of the same step on test."""
    rows, metric = log.read_metrics(run.workdir), run.config.best_metric
    scores = [row[metric] for row in rows if row.get(metric) is not None]
    test = [row for row in rows if "eval/test/step" in row]
    return run.changes | {
        "val": max(scores) if scores else None,
        "test": test[-1].get(metric.replace("/val/", "/test/")) if test else None,
        "step": rows[-1]["step"] if rows else 0,
        "images_per_s": tables.speed(rows),
        "state": "done" if run.finished() else "not finished",
        "folder": run.name,
    }


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
