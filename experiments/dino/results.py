"""Export the results of a DINO run on a CPU, and update the table and the figure of its study.

python -m experiments.dino.results --study=cifar10 --workdir=runs/dino_cifar10 --name=run1

A study is a directory of this package with a README.md, and with the scores of
experiments.dino.baselines in results/baselines.json. Writes results/run1.json and
results/run1_curve.jsonl, then updates the table in README.md and knn.png from all files in
results/. Without --workdir, only the table and the figure are updated.
"""

import json
import re
from pathlib import Path

from absl import flags

from configs import dino
from experiments import tables
from vit_jax import cli
from vit_jax.config import defaults, flat, load_config
from vit_jax.figures.curves import BLUE, GREEN, ORANGE, PURPLE
from vit_jax.workdir import log

FOLDER = Path(__file__).parent
STUDIES = ("fashion_mnist", "cifar10", "imagenette")
MARKERS = ("<!-- table -->\n", "<!-- end -->")
SCORES = ("val/knn10", "val/knn20", "test/knn10", "test/knn20", "test/linear_acc1")
DIAGNOSTICS = ("train/teacher_entropy", "train/mean_entropy", "train/feature_std")


def define_flags():
    flags.DEFINE_enum("study", STUDIES[0], STUDIES, "directory of the results")
    flags.DEFINE_string("workdir", None, "workdir of the run to export")
    flags.DEFINE_string("name", "run1", "name of the exported run")
    flags.DEFINE_string("device", "2 CPU cores", "device that the run was trained on")


def main(flags):
    study = FOLDER / flags.study
    results = study / "results"
    if flags.workdir:
        export_run(Path(flags.workdir), study, flags.name, flags.device)
    runs = read_runs(results)
    curves = {
        name: [json.loads(line) for line in (results / f"{name}_curve.jsonl").open()]
        for name in runs
    }
    baselines = json.loads((results / "baselines.json").read_text())["scores"]
    readme = study / "README.md"
    pattern = re.compile(f"({re.escape(MARKERS[0])}).*?({re.escape(MARKERS[1])})", re.DOTALL)
    text = table(runs, baselines)
    readme.write_text(pattern.sub(lambda match: match[1] + text + match[2], readme.read_text()))
    print(text, end="")
    draw(curves, baselines).savefig(study / "knn.png", dpi=150)


def read_runs(results):
    """Return the exported runs in a directory: {"run1": the contents of run1.json, ...}."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("run*.json"))}


def export_run(workdir, study, name, device):
    """Write results/NAME.json, the config and scores, and results/NAME_curve.jsonl, the metrics."""
    from vit_jax import inference
    from vit_jax.tools import evaluate

    config = load_config(workdir)
    run = log.read_run_json(workdir)
    rows = log.read_metrics(workdir)
    last = {key: row[key] for row in rows for key in row if key.startswith("eval/")}
    linear = evaluate.evaluate(inference.load(workdir), evaluator="linear_probe")
    last["eval/test/linear_acc1"] = linear["linear_acc1"]
    record = {
        "command": f"python -m vit_jax.train --config=configs/dino_{study.name}.py --workdir=W",
        "config": changed_keys(config),
        "versions": run["versions"],
        "device": device,
        "steps": rows[-1]["step"],
        "total_steps": config.total_steps,
        "images_per_s_median": tables.median_throughput(rows),
        "scores": {key: last.get(f"eval/{key}") for key in SCORES},
    }
    results = study / "results"
    (results / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (results / f"{name}_curve.jsonl").write_text(lines)


def changed_keys(config):
    """Return the entries that differ from the defaults of DINO, such as {"optim.lr": 1e-3}."""
    default = defaults()
    dino.self_distillation(default)
    default_values = flat(default)
    values = flat(config)
    return {
        key: value
        for key, value in values.items()
        if default_values.get(key) != value and key != "data.dir"
    }


def table(runs, baselines):
    """Format a Markdown table with a row for raw pixels, the untrained network, and each run."""
    all_scores = {
        name: {f"{split}/{key}": x for split in scores for key, x in scores[split].items()}
        for name, scores in baselines.items()
    } | {name: run["scores"] for name, run in runs.items()}
    lines = ["| features | " + " | ".join(SCORES) + " |", "|---" * (1 + len(SCORES)) + "|"]
    for name, scores in all_scores.items():
        cells = [f"{scores[key]:.2%}" if scores.get(key) is not None else "-" for key in SCORES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(curves, baselines):
    """Plot k-NN accuracy over steps with both baselines, and DINO's collapse diagnostics.

    Args:
        curves: {name of a run: rows of its metrics}.
        baselines: {"pixels": {"val": {"knn20": accuracy}}, "untrained": ...}.

    Returns:
        A matplotlib Figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for name, color in (("pixels", ORANGE), ("untrained", PURPLE)):
        score = baselines[name]["val"]["knn20"]
        top.axhline(score, color=color, linestyle="--", label=f"{name} {score:.1%}")
    colors = (BLUE, GREEN, "#E69F00", "#56B4E9", "0.3")
    for (name, rows), color in zip(curves.items(), colors, strict=False):
        curve = [(row["step"], row["eval/val/knn20"]) for row in rows if "eval/val/knn20" in row]
        top.plot(*zip(*curve, strict=True), color=color, marker="o", markersize=4, label=name)
        rows = [row for row in rows if DIAGNOSTICS[0] in row]
        for key, style in zip(DIAGNOSTICS, ("-", "--", ":"), strict=True):
            label = f"{name}: {key.removeprefix('train/').replace('_', ' ')}"
            values = [row[key] for row in rows]
            bottom.plot([row["step"] for row in rows], values, style, color=color, label=label)
    top.set_ylabel("k-NN accuracy on val, k = 20")
    top.yaxis.set_major_formatter(PercentFormatter(1))
    bottom.set_ylabel("entropy / log k, feature std")
    bottom.set_ylim(0, 1.35)  # room for the legend
    bottom.set_xlabel("optimizer step")
    for axis in (top, bottom):
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    top.legend(frameon=False, fontsize=9)
    bottom.legend(frameon=False, fontsize=9, loc="upper center", ncols=len(DIAGNOSTICS))
    return figure


if __name__ == "__main__":
    define_flags()
    cli.run(main)
