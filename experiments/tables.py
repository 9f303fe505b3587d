"""Rows of results as files: what every experiment here writes."""

import csv
import io
import statistics
from pathlib import Path

from vit_jax.workdir import log


def write(rows, path):
    """Rows, dicts with the same keys, as `path` (.csv) and beside it as Markdown (.md)."""
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    log.write_text(Path(path), buffer.getvalue())
    log.write_text(Path(path).with_suffix(".md"), markdown(rows))


def markdown(rows):
    """A table with a line a row; what is None is a dash, and a fraction has four digits."""

    def cell(value):
        return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(map(cell, row.values())) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def speed(rows):
    """Median images a second of the rows of metrics.jsonl, a whole number; None without any."""
    speeds = [row["perf/images_per_s"] for row in rows if row.get("perf/images_per_s")]
    return round(statistics.median(speeds)) if speeds else None
