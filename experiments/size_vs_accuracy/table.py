"""Results of finished runs as JSON rows, as the table of sizes, and as figures."""

import json
import statistics

from experiments import runs, tables
from vit_jax import variants
from vit_jax.config import flat, schema
from vit_jax.errors import UserError
from vit_jax.flops import count_flops, count_params
from vit_jax.workdir import log

# Flags with local paths, which the recorded command leaves out.
PATH_FLAGS = ("--workdir=", "--config.data.dir=", "--config.compilation_cache=")


class Results:
    """The results of a recipe: a row per run, the table of sizes, and two figures.

    Args:
        folder: the directory of the files, a Path.
        sizes: the sizes of the recipe in order. Rows of other sizes are removed.
        published: {size: published top-1 accuracy in percent}.
        timed: whether to report throughput and training time.

    Attributes:
        path: runs.jsonl, a Path.
        rows: see `result`, sorted by size and seed.
    """

    def __init__(self, folder, sizes, published, timed):
        self.folder = folder
        self.path = folder / "runs.jsonl"
        self.sizes = list(sizes)
        self.published = published
        self.timed = timed
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row["size"] in self.sizes]

    def has(self, job):
        """Return whether there is a row of this job."""
        return has(self.rows, job)

    def update(self, jobs):
        """Add the rows of the finished jobs, or replace older ones, and write all files."""
        new = {_key(job.changes): result(job, self.timed) for job in jobs if job.finished()}
        kept = [row for row in self.rows if _key(row) not in new]
        self.rows = sorted(
            [*kept, *new.values()], key=lambda row: (self.sizes.index(row["size"]), row["seed"])
        )
        if new:
            self.write()

    def write(self):
        """Write runs.jsonl, sizes.csv, sizes.md and the figures."""
        from vit_jax.figures import sizes as figures

        self.folder.mkdir(parents=True, exist_ok=True)
        log.write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        groups = group_by_size(self.rows)
        table = [summarize(size, rows, self.published.get(size)) for size, rows in groups.items()]
        tables.write(table, self.folder / "sizes.csv")
        log.write_text(self.folder / "sizes.md", markdown(table))
        points = [
            {
                "model": row["model"],
                "layers": row["layers"],
                "width": row["width"],
                "heads": row["heads"],
                "parameters": row["param_count"] * 1e6,
                "flops": row["gflops"] * 1e9,
                "published": row["published_top1"],
                "top1": [run["top1"] for run in groups[row["model"]]],
            }
            for row in table
        ]
        figures.bars(points).savefig(self.folder / "sizes.png", dpi=150)
        figures.accuracy(points).savefig(self.folder / "accuracy.png", dpi=150)

    def table(self):
        """Return sizes.md as text. Raises UserError if there are no rows."""
        if not self.rows:
            raise UserError("no run is finished, so there is nothing to report")
        return (self.folder / "sizes.md").read_text()


def has(rows, job):
    """Return whether rows of `result` include this job, trained with the same config."""
    expected = job.changes | {"config": changed_keys(job.config)}
    return any({key: row.get(key) for key in expected} == expected for row in rows)


def _key(row):
    """Return the size and the seed of a row, or of the changes of a job."""
    return row["size"], row["seed"]


def changed_keys(config):
    """Return the values of a config that differ from the defaults and determine the result.

    A key that a later version adds with a default does not change them.
    """
    keys = schema(config.objective.name)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flat(config).items()
        if value != keys[name].default and (not keys[name].resumable or name == "total_steps")
    }


def result(job, timed):
    """Return the row of runs.jsonl of a finished run, with accuracies in percent as in timm."""
    config = job.config
    rows = log.read_metrics(job.workdir)
    test = rows[-1]
    run = json.loads((job.workdir / "run.json").read_text())
    model = variants.from_config(config.model, run["data"]["num_classes"])
    val_scores = runs.scores(job)
    metric = config.best_metric.replace("/val/", "/test/")
    return (
        job.changes
        | {
            "variant": config.model.variant,
            "layers": variants.count_layers(model),
            "width": model.width,
            "heads": getattr(model, "num_heads", None),
            "parameters": count_params(model),
            "flops": count_flops(model),
            "img_size": config.model.image,
            "crop_pct": config.augment.eval_crop,
            "metric": metric,  # reported as top1; a k-NN accuracy if training uses no labels
            "top1": round(100 * test[metric], 3),
            "top5": round(100 * test["eval/test/acc5"], 3) if "eval/test/acc5" in test else None,
            "val_top1": round(100 * max(val_scores), 3) if val_scores else None,
            "best_step": test["eval/test/step"],
            "steps": test["step"],
            "batch_size": config.batch_size,
            "epochs": round(test["step"] / run["steps_per_epoch"], 3),
            "images_per_s": tables.median_throughput(rows) if timed else None,
            "hours": training_hours(rows, config.batch_size) if timed else None,
            "devices": f"{len(run['devices'])} x {run['devices'][0]}",
            "code": run["code"],
            "versions": run["versions"],
            "config": changed_keys(config),
            "command": [arg for arg in job.command[1:] if not arg.startswith(PATH_FLAGS)],
        }
    )


def training_hours(rows, batch_size):
    """Return the hours spent in training steps, without evaluation and compilation.

    Args:
        rows: the rows of metrics.jsonl; the time between two rows follows from their throughput.
        batch_size: images per step.
    """
    seconds = 0.0
    last_step = 0
    for row in rows:
        if row.get("perf/images_per_s"):
            seconds += (row["step"] - last_step) * batch_size / row["perf/images_per_s"]
        last_step = row["step"]
    return round(seconds / 3600, 4)


def group_by_size(rows):
    """Return {size: rows}."""
    groups = {}
    for row in rows:
        groups.setdefault(row["size"], []).append(row)
    return groups


def summarize(size, rows, published):
    """Average the runs of a size into a row of the table. The first columns are those of timm.

    Args:
        size: the name of the size.
        rows: rows of `result`, one per seed.
        published: the published top-1 accuracy in percent, or None.
    """
    first = rows[0]
    scores = [row["top1"] for row in rows]
    top1 = statistics.mean(scores)
    top5 = None if first["top5"] is None else statistics.mean(row["top5"] for row in rows)
    means = {
        key: None if first[key] is None else statistics.mean(row[key] for row in rows)
        for key in ("images_per_s", "hours")
    }
    return {
        "model": size,
        "img_size": first["img_size"],
        "top1": round(top1, 3),
        "top1_err": round(100 - top1, 3),
        "top5": None if top5 is None else round(top5, 3),
        "top5_err": None if top5 is None else round(100 - top5, 3),
        "param_count": first["parameters"] / 1e6,
        "crop_pct": first["crop_pct"],
        "interpolation": "bicubic",
        "layers": first["layers"],
        "width": first["width"],
        "heads": first["heads"],
        "gflops": first["flops"] / 1e9,
        "published_top1": published,
        "epochs": first["epochs"],
        "seeds": len(scores),
        "top1_min": min(scores),
        "top1_max": max(scores),
        "images_per_s": means["images_per_s"],
        "hours": means["hours"],
    }


def spread(row):
    """Format the range over the seeds of a row of the table."""
    if row["seeds"] == 1:
        return "1 seed"
    return f"{row['top1_min']:.2f} to {row['top1_max']:.2f}, {row['seeds']} seeds"


def markdown(table):
    """Format the table of sizes as Markdown, with fewer columns and rounded values."""
    rows = [
        {
            "model": row["model"],
            "layers": row["layers"],
            "width": row["width"],
            "heads": row["heads"],
            "parameters, M": f"{row['param_count']:.3g}",
            "GFLOPs": f"{row['gflops']:.3g}",
            "epochs": f"{row['epochs']:.3g}",
            "published top-1": row["published_top1"],
            "ours, test top-1": f"{row['top1']:.2f} ({spread(row)})",
            "images/s": row["images_per_s"] and f"{row['images_per_s']:,.0f}",
            "hours": row["hours"] and f"{row['hours']:.2g}",
        }
        for row in table
    ]
    return tables.markdown(rows)
