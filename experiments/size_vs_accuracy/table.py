"""Results of finished runs as JSON rows, as the table of sizes, and as figures."""

import json
import statistics

from experiments import runs, tables
from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.flops import count_flops, count_params
from vit_jax.workdir import log

# Flags with local paths, which the recorded command leaves out.
PATH_FLAGS = ("--workdir=", "--config.data.dir=", "--config.compilation_cache=")


def report(jobs, published, folder, timed):
    """Write the results of the finished runs and print their table.

    Args:
        jobs: list of runs.Job.
        published: {size: published top-1 accuracy in percent}.
        folder: the directory to write to, a Path.
        timed: whether to report throughput and training time.

    Raises:
        UserError: if no run is finished.
    """
    rows = [result(job, timed) for job in jobs if job.finished()]
    if not rows:
        raise UserError("no run is finished, so there is nothing to report")
    folder.mkdir(parents=True, exist_ok=True)
    log.write_text(folder / "runs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    groups = group_by_size(rows)
    table = [summarize(size, group, published.get(size)) for size, group in groups.items()]
    tables.write(table, folder / "sizes.csv")
    log.write_text(folder / "sizes.md", markdown(table))
    from vit_jax.figures import sizes as figures

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
    figures.bars(points).savefig(folder / "sizes.png", dpi=150)
    figures.accuracy(points).savefig(folder / "accuracy.png", dpi=150)
    print((folder / "sizes.md").read_text(), end="")
    print(f"wrote {folder}")


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
        "seeds": len(scores),
        "top1_min": min(scores),
        "top1_max": max(scores),
        "images_per_s": means["images_per_s"],
        "hours": means["hours"],
    }


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
            "published top-1": row["published_top1"],
            "ours, test top-1": f"{row['top1']:.2f} ({row['top1_min']:.2f} to {row['top1_max']:.2f}"
            f", {row['seeds']} seeds)",
            "images/s": row["images_per_s"] and f"{row['images_per_s']:,.0f}",
            "hours": row["hours"] and f"{row['hours']:.2g}",
        }
        for row in table
    ]
    return tables.markdown(rows)
