"""The committed runs on Fashion-MNIST as a table, between the marks in README.md beside this.

python -m experiments.fashion_mnist.results
"""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent
MARKS = "<!-- table -->\n", "<!-- end -->"


def table():
    lines = ["| run | recipe | val | test | images/s | wall time |", "|---|---|---|---|---|---|"]
    for path in sorted((FOLDER / "results").glob("run*.json")):
        run = json.loads(path.read_text())
        lines.append(
            f"| {path.stem} | {run['recipe']} | {run['val_acc1']:.2%} | {run['test_acc1']:.2%} "
            f"| {run['images_per_s_median']} | {run['wall_s'] / 60:.1f} min |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = FOLDER / "README.md"
    between = re.compile(f"({re.escape(MARKS[0])}).*?({re.escape(MARKS[1])})", re.DOTALL)
    text = between.sub(lambda match: match[1] + table() + match[2], page.read_text())
    page.write_text(text)
    print(table(), end="")
