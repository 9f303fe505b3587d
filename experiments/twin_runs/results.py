"""Rows, tables and the figure of experiments.twin_runs."""

import json
import math
import statistics
from importlib import metadata

from matplotlib.figure import Figure

from experiments import tables
from vit_jax.errors import UserError
from vit_jax.figures import style
from vit_jax.workdir import log

BOUND = 1.5  # of |difference of the means| + 2 standard errors, in points of accuracy
PACKAGES = ("jax", "flax", "optax", "grain", "pillow", "numpy")
# Name, and the setting and metric of both sides.
COMPARISONS = (
    ("vit_jax and timm, EMA", ("vit_jax", "test_ema"), ("timm", "test_ema")),
    ("vit_jax and timm, weights", ("vit_jax", "test_raw"), ("timm", "test_raw")),
    ("change: no EMA", ("vit_jax", "test_raw"), ("timm", "test_ema")),
    (
        "change: weight decay of all parameters, EMA",
        ("vit_jax_decay_all", "test_ema"),
        ("timm", "test_ema"),
    ),
    (
        "change: weight decay of all parameters, weights",
        ("vit_jax_decay_all", "test_raw"),
        ("timm", "test_raw"),
    ),
)
KNN_COMPARISONS = tuple(
    (f"{name}, k = {k}", ("vit_jax", f"{name}_knn{k}"), ("reference", f"{name}_knn{k}"))
    for name in ("trained", "untrained")
    for k in (10, 20)
)
CURVES = {
    "train_loss": "training loss",
    "val_ema": "validation accuracy of the EMA, %",
    "val_raw": "validation accuracy of the weights, %",
}
COLORS = {"vit_jax": style.BLUE, "timm": style.ORANGE, "vit_jax_decay_all": style.GREEN}


def read(path, shared):
    """Return the rows of runs.jsonl.

    Args:
        path: the file; it may be missing.
        shared: `recipe.SHARED`.

    Raises:
        UserError: if a row was measured with other values.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for row in rows:
        if row["shared"] != shared:
            raise UserError(f"{path} has runs with other values of SHARED; pass another --output")
    return rows


def versions():
    """Return the versions of the packages that vit_jax trains with."""
    return {name: metadata.version(name) for name in PACKAGES}


def write(rows, folder):
    """Write runs.jsonl, comparisons.csv, curves.csv, their Markdown, and curves.png."""
    log.write_text(folder / "runs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_comparisons(rows, COMPARISONS, folder / "comparisons.csv")
    tables.write(curves(rows), folder / "curves.csv")
    draw(rows).savefig(folder / "curves.png", dpi=120)


def write_knn(rows, folder):
    """Write dino_knn.jsonl, dino_knn.csv and its Markdown."""
    log.write_text(folder / "dino_knn.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_comparisons(rows, KNN_COMPARISONS, folder / "dino_knn.csv")


def write_comparisons(rows, comparisons, path):
    """Write the comparisons whose settings have two seeds, if any, as CSV and Markdown."""
    compared = [compare(rows, *comparison) for comparison in comparisons]
    if compared := [row for row in compared if row]:
        tables.write(compared, path)


def compare(rows, name, a, b):
    """Return a row of a comparison; None unless both sides have two seeds.

    Args:
        rows: rows of runs.jsonl or dino_knn.jsonl.
        name: name of the comparison.
        a: setting and metric of one side.
        b: those of the other side.
    """
    x, y = (
        [row[metric] for row in rows if row["setting"] == setting] for setting, metric in (a, b)
    )
    if min(len(x), len(y)) < 2:
        return None
    difference = statistics.fmean(x) - statistics.fmean(y)
    error = math.sqrt(statistics.variance(x) / len(x) + statistics.variance(y) / len(y))
    bound = abs(difference) + 2 * error
    return {
        "comparison": name,
        "a": " ".join(a),
        "b": " ".join(b),
        "seeds_a": len(x),
        "seeds_b": len(y),
        "mean_a": statistics.fmean(x),
        "mean_b": statistics.fmean(y),
        "std_a": statistics.stdev(x),
        "std_b": statistics.stdev(y),
        "difference": difference,
        "standard_error": error,
        "bound": bound,
        "equivalent": "yes" if bound <= BOUND else "no",
        "detected": "yes" if abs(difference) > 2 * error else "no",
    }


def curves(rows):
    """Return a row per epoch: mean and standard deviation over the seeds of each setting."""
    table = []
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    for epoch in range(len(rows[0]["epochs"])):
        result = {"epoch": epoch + 1}
        for metric in CURVES:
            for setting in settings:
                values = [row["epochs"][epoch][metric] for row in rows if row["setting"] == setting]
                result[f"{metric} {setting}"] = statistics.fmean(values)
                std = statistics.stdev(values) if len(values) > 1 else None
                result[f"{metric} {setting} std"] = std
        table.append(result)
    return table


def draw(rows):
    """Draw the training loss and both validation accuracies per epoch: means, and all seeds."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for ax, (metric, label) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for setting, color in COLORS.items():
            lines = [
                [epoch[metric] for epoch in row["epochs"]]
                for row in rows
                if row["setting"] == setting
            ]
            if not lines:
                continue
            epochs = range(1, len(lines[0]) + 1)
            for line in lines:
                ax.plot(epochs, line, color=color, linewidth=0.6, alpha=0.5)
            mean = [statistics.fmean(values) for values in zip(*lines, strict=True)]
            name = f"{setting} ({len(lines)} seed{'s' if len(lines) > 1 else ''})"
            ax.plot(epochs, mean, color=color, marker="o", markersize=4, label=name)
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        style.integer_ticks(ax)
        style.despine(ax)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return style.finish(figure)
