"""Write tables of results as CSV and Markdown files."""

import csv
import io
import re
import statistics
from pathlib import Path

from vit_jax.workdir import log


def write(rows, path):
    """Write a table as CSV, and as Markdown next to it.

    Args:
        rows: list of dicts with the same keys.
        path: the .csv file to write; the Markdown file has the same name with suffix .md.
    """
    write_csv(rows, path)
    log.write_text(Path(path).with_suffix(".md"), markdown(rows))


def write_csv(rows, path):
    """Write a table, a list of dicts with the same keys, as CSV."""
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    log.write_text(Path(path), buffer.getvalue())


def markdown(rows):
    """Format rows as a Markdown table; None becomes a dash, floats have four decimals."""

    def cell(value):
        if value is None:
            return "-"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(map(cell, row.values())) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def median_throughput(rows):
    """Return the median of perf/images_per_s over metrics rows, rounded; None without values."""
    values = [row["perf/images_per_s"] for row in rows if row.get("perf/images_per_s")]
    return round(statistics.median(values)) if values else None


def is_accuracy(metric):
    """Return whether a metric is an accuracy as a fraction, which tables show in percent."""
    return re.fullmatch(r".*/(\w+_)?(acc|knn)\d+", metric) is not None


def scaled(value, metric):
    """Return a score in the unit of tables, percent for accuracies; None stays None."""
    return 100 * value if value is not None and is_accuracy(metric) else value


def format_score(value, metric):
    """Format a score: "98.3%" for accuracies, "0.1234" for other metrics."""
    return f"{value:.1%}" if is_accuracy(metric) else f"{value:.4f}"
