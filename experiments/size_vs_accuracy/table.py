"""Finished runs as data, as the table of sizes, and as figures."""

import json
import statistics

from experiments import runs, tables
from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.flops import count_flops, count_params
from vit_jax.workdir import log

PLACES = ("--workdir=", "--config.data.dir=", "--config.compilation_cache=")


def report(planned, published, folder, timed):
    """Writes the results of the runs that are finished, and prints their table. Raises UserError
    where none is."""
    rows = [result(run, timed) for run in planned if run.finished()]
    if not rows:
        raise UserError("no run is finished, so that there is nothing to report")
    folder.mkdir(parents=True, exist_ok=True)
    log.write_text(folder / "runs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    table = [summary(size, group, published.get(size)) for size, group in by_size(rows).items()]
    tables.write(table, folder / "sizes.csv")
    log.write_text(folder / "sizes.md", markdown(table))
    from vit_jax.figures import sizes as figures

    drawn = [
        {
            "model": row["model"],
            "layers": row["layers"],
            "width": row["width"],
            "heads": row["heads"],
            "parameters": row["param_count"] * 1e6,
            "flops": row["gflops"] * 1e9,
            "published": row["published_top1"],
            "top1": [each["top1"] for each in rows if each["size"] == row["model"]],
        }
        for row in table
    ]
    figures.bars(drawn).savefig(folder / "sizes.png", dpi=150)
    figures.accuracy(drawn).savefig(folder / "accuracy.png", dpi=150)
    print((folder / "sizes.md").read_text(), end="")
    print(f"written: {folder}")


def result(run, timed):
    """A finished run as a line of runs.jsonl: accuracies in percent, as timm has them."""
    rows, config = log.read_metrics(run.workdir), run.config
    facts = json.loads((run.workdir / "run.json").read_text())
    model, test = variants.from_config(config.model, facts["data"]["num_classes"]), rows[-1]
    metric = config.best_metric.replace("/val/", "/test/")
    return (
        run.changes
        | {
            "variant": config.model.variant,
            "layers": variants.count_layers(model),
            "width": model.width,
            "heads": getattr(model, "num_heads", None),
            "parameters": count_params(model),
            "flops": count_flops(model),
            "img_size": config.model.image,
            "crop_pct": config.augment.eval_crop,
            "metric": metric,  # of top1; without labels it is k-NN's
            "top1": round(100 * test[metric], 3),
            "top5": round(100 * test["eval/test/acc5"], 3) if "eval/test/acc5" in test else None,
            "val_top1": round(100 * max(runs.scores(run)), 3) if runs.scores(run) else None,
            "best_step": test["eval/test/step"],
            "steps": test["step"],
            "batch_size": config.batch_size,
            "epochs": round(test["step"] / facts["steps_per_epoch"], 3),
            "images_per_s": tables.speed(rows) if timed else None,
            "hours": hours(rows, config.batch_size) if timed else None,
            "devices": f"{len(facts['devices'])} x {facts['devices'][0]}",
            "code": facts["code"],
            "versions": facts["versions"],
            # Without where it lay and where the data are, which is nobody else's business.
            "command": [w for w in run.command[1:] if not w.startswith(PLACES)],
        }
    )


def hours(rows, batch_size):
    """Hours of training steps, by the speed between two rows; evaluation and compiling apart."""
    seconds, last = 0.0, 0
    for row in rows:
        if row.get("perf/images_per_s"):
            seconds += (row["step"] - last) * batch_size / row["perf/images_per_s"]
        last = row["step"]
    return round(seconds / 3600, 4)


def by_size(rows):
    groups = {}
    for row in rows:
        groups.setdefault(row["size"], []).append(row)
    return groups


def summary(size, rows, published):
    """The runs of a size as a line of the table. The first columns are those of timm's results."""
    first, scores = rows[0], [row["top1"] for row in rows]
    top1 = statistics.mean(scores)
    top5 = None if first["top5"] is None else statistics.mean(row["top5"] for row in rows)
    times = {
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
        "images_per_s": times["images_per_s"],
        "hours": times["hours"],
    }


def markdown(table):
    """The table as a person reads it."""
    shown = [
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
    return tables.markdown(shown)
