"""Tables of results as CSV and Markdown files."""

import csv
import io
import statistics
from pathlib import Path

from vit_jax.workdir import log


def write(rows, path):
    """Write rows, dicts with the same keys, to `path` (.csv) and to the .md file next to it."""
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    log.write_text(Path(path), buffer.getvalue())
    log.write_text(Path(path).with_suffix(".md"), markdown(rows))


def markdown(rows):
    """Format rows as a Markdown table; None becomes a dash, floats have four decimals."""

    def cell(value):
        if value is None:
            return "-"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(map(cell, row.values())) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def speed(rows):
    """Median images per second over rows of metrics.jsonl, rounded; None if there are none."""
    speeds = [row["perf/images_per_s"] for row in rows if row.get("perf/images_per_s")]
    return round(statistics.median(speeds)) if speeds else None
