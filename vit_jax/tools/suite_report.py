"""The flags and the report of `evaluate --suite`: a table, and rows as CSV or JSON, in percent."""

import csv
import io
import json
import math
import os
import sys
from pathlib import Path

from vit_jax.config import defaults, flat
from vit_jax.data.class_names import readable
from vit_jax.errors import UserError, printable
from vit_jax.evaluators import suites
from vit_jax.schema import one_of, size_text
from vit_jax.workdir import storage

SUFFIXES = (".json", ".csv")
LISTED = 5  # classes and pairs of classes per suite on the terminal
COLUMNS = {"top1": "top-1", "top5": "top-5", "ece": "ECE", "ece_scaled": "ECE at T", "mce": "mCE"}


def check_flags(flags, run_config):
    """Check the flags and that the datasets of --suite exist, before JAX is imported.

    Args:
      flags: those of `evaluate`.
      run_config: config of the run; None for a weight file.

    Returns:
      The directory that holds the datasets; None if it is not needed.

    Raises:
      UserError: if flags cannot be combined, or a dataset is missing.
    """
    known = (*suites.table(), suites.SPLIT)
    if unknown := [name for name in flags.suite if name not in known]:
        raise UserError(f"--suite={unknown[0]} must be {one_of(known, unknown[0])}")
    if flags.evaluator:
        raise UserError("--evaluator and --suite exclude each other; leave out one of them")
    names = [name for name in flags.suite if name != suites.SPLIT]
    if len(names) < len(flags.suite) and run_config is None and flags.config is None:
        raise UserError(
            "--suite=split requires the dataset of the weights: --config=FILE, or "
            "--config.data.name=folder --config.data.dir=DIR --config.data.test=SPLIT"
        )
    if run_config is not None and flags.config is not None:
        values, default = flat(flags.config), flat(defaults())
        changed = [key for key in values if key != "data.dir" and values[key] != default[key]]
        if changed:
            raise UserError(f"--config.{changed[0]} requires a weight file; a run determines it")
    configs = [config for config in (flags.config, run_config) if config is not None]
    root = next((config.data.dir for config in configs if config.data.dir), None)
    if names and root is None:
        folders = dict.fromkeys(suites.table()[name].folder for name in names)
        raise UserError(f"pass --config.data.dir=DIR, the directory that has {', '.join(folders)}")
    root = root and os.path.expanduser(root)
    suites.check(root, names)
    if flags.output:
        path = Path(flags.output).expanduser()
        if path.suffix not in SUFFIXES or path.is_dir():
            raise UserError(f"--output={path} must be a {' or '.join(SUFFIXES)} file")
        path.parent.mkdir(parents=True, exist_ok=True)
    return root


def check_model(model, names):
    """Raise UserError if a model does not have the classes of the suites."""
    count = model.module.config.num_classes
    if not count:
        raise UserError(f"{model.name} has no classifier; use --evaluator=knn instead of --suite")
    others = [name for name in names if name != suites.SPLIT]
    if others and count != suites.NUM_CLASSES:
        raise UserError(
            f"--suite={others[0]} requires a classifier of the 1,000 classes of ImageNet-1k, but "
            f"{model.name} has {count:,} classes; fine-tune it on ImageNet-1k first"
        )


def report(model, flags, results):
    """Print the table of the suites, and write --output after each of them.

    Args:
      model: the `inference.LoadedModel`.
      flags: those of `evaluate`.
      results: iterable over the scores and the class names of each suite of --suite; see
        `evaluate.evaluate_suites`.
    """
    table = suites.table()
    titles = [
        table[name].title if name in table else f"{flags.split} split" for name in flags.suite
    ]
    rows, details = [], []
    for name, title, (scores, class_names) in zip(flags.suite, titles, results, strict=True):
        rows.append(make_row(model, name if name in table else f"split:{flags.split}", scores))
        details.append(make_details(scores, class_names))
        if len(rows) == 1:
            print(header(titles))
        print(as_line(rows[-1], title, titles), flush=True)
        if name in table and scores["images"] != table[name].images:
            expected = f"{title} has {table[name].images:,} images"
            print(f"note: {expected}; {scores['images']:,} were found", file=sys.stderr)
        if flags.output:
            write(Path(flags.output).expanduser(), rows, details)
    for title, items in zip(titles, details, strict=True):
        for line in describe(items, title):
            print(line)


def make_row(model, name, scores):
    """Return the row of a suite. Columns with the names of timm's result tables mean the same.

    Args:
      model: the `inference.LoadedModel`.
      name: name of the suite.
      scores: those of `suite_scores.run`; a value that is missing or not finite becomes None.
    """
    percent = {key: _round(100 * scores.get(key, math.nan)) for key in COLUMNS}
    error = {f"{k}_err": _round(100 - 100 * scores.get(k, math.nan)) for k in ("top1", "top5")}
    return {
        "model": model.variant,
        "weights": printable(model.short_name),
        "step": model.step,
        "suite": name,
        "img_size": size_text(model.image) if isinstance(model.image, tuple) else model.image,
        "top1": percent["top1"],
        "top1_err": error["top1_err"],
        "top5": percent["top5"],
        "top5_err": error["top5_err"],
        "param_count": round(model.parameters / 1e6, 3),
        "crop_pct": scores["crop"],
        "interpolation": model.interpolation,
        "images": scores["images"],
        "skipped": scores.get("skipped", 0),
        "loss": _round(scores.get("loss", math.nan), 5),
        "ece": percent["ece"],
        "temperature": _round(scores.get("temperature", math.nan), 5),
        "loss_scaled": _round(scores.get("loss_scaled", math.nan), 5),
        "ece_scaled": percent["ece_scaled"],
        "mce": percent["mce"],
    }


def make_details(scores, class_names):
    """Return what a JSON row has in addition: accuracy of each class, mistakes, bins, corruptions.

    Args:
      scores: those of `suite_scores.run`.
      class_names: names of the classes of the suite.
    """
    details = {}
    if "class_top1" in scores:
        details["class_top1"] = {
            name: _round(100 * x) for name, x in zip(class_names, scores["class_top1"], strict=True)
        }
        details["confused"] = [
            {"class": class_names[label], "predicted": class_names[predicted], "count": count}
            for label, predicted, count in scores["confused"]
        ]
        details["bins"] = {
            name: [_round(x, 6) for x in values.tolist()] for name, values in scores["bins"].items()
        }
    if "corruptions" in scores:
        details["corruptions"] = {
            name: {key: _round(100 * x) for key, x in values.items()}
            for name, values in scores["corruptions"].items()
        }
    return details


def _round(x, digits=3):
    """Round a number; None if it is not finite, which JSON cannot express."""
    return round(x, digits) if math.isfinite(x) else None


def header(titles):
    """Return the first line of the table; `titles` are those of all rows."""
    width = _width(titles)
    names = [*COLUMNS.values()]
    names.insert(3, "T")
    return f"{'in percent':{width}}  {'images':>9}" + "".join(f"{name:>10}" for name in names)


def as_line(row, title, titles):
    """Format a row as a line of the table; see `header`."""
    width = _width(titles)
    cells = [_cell(row[key]) for key in COLUMNS]
    cells.insert(3, _cell(row["temperature"], 3))
    return f"{title:{width}}  {row['images']:>9,}" + "".join(f"{cell:>10}" for cell in cells)


def _width(titles):
    return max(map(len, ["in percent", *titles]))


def _cell(x, digits=2):
    return "-" if x is None else f"{x:.{digits}f}"


def describe(details, title):
    """Return lines of text with the classes of lowest accuracy and the most confused classes."""
    if not details.get("class_top1"):
        return []
    accuracy = {name: x for name, x in details["class_top1"].items() if x is not None}
    lowest = sorted(accuracy, key=accuracy.get)[:LISTED]
    names = [f"{printable(readable([name])[0])} ({accuracy[name]:.1f})" for name in lowest]
    lines = [f"{title}: lowest accuracy: {', '.join(names)}"]
    pairs = [
        " as ".join(printable(name) for name in readable([pair["class"], pair["predicted"]]))
        + f" ({pair['count']:,})"
        for pair in details["confused"][:LISTED]
    ]
    if pairs:
        lines.append(f"{title}: most confused: {', '.join(pairs)}")
    return lines


def write(path, rows, details):
    """Write rows to a .csv file, or with their details to a .json file."""
    if path.suffix == ".json":
        items = [row | more for row, more in zip(rows, details, strict=True)]
        text = json.dumps(items, indent=1) + "\n"
    else:
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        text = buffer.getvalue()
    storage.write_text(path, text)
