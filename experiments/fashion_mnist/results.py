"""Update the table of the Fashion-MNIST runs in README.md from results/run*.json.

python -m experiments.fashion_mnist.results
"""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent
MARKERS = ("<!-- table -->\n", "<!-- end -->")


def table():
    """Format the committed runs as a Markdown table."""
    lines = ["| run | recipe | val | test | images/s | wall time |", "|---|---|---|---|---|---|"]
    for path in sorted((FOLDER / "results").glob("run*.json")):
        run = json.loads(path.read_text())
        lines.append(
            f"| {path.stem} | {run['recipe']} | {run['val_acc1']:.2%} | {run['test_acc1']:.2%} "
            f"| {run['images_per_s_median']} | {run['wall_s'] / 60:.1f} min |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    readme = FOLDER / "README.md"
    pattern = re.compile(f"({re.escape(MARKERS[0])}).*?({re.escape(MARKERS[1])})", re.DOTALL)
    text = pattern.sub(lambda match: match[1] + table() + match[2], readme.read_text())
    readme.write_text(text)
    print(table(), end="")
