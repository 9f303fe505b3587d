"""The notebooks, from text to what Jupyter and Colab open: python -m experiments.notebooks

Each NAME.py in this folder is a notebook in jupytext's percent format, and NAME.ipynb is made from
it, without outputs. What all of them have, the badge below the title and the cell that installs
vit_jax, is in this file. They lead to the repository that pyproject.toml names, and so do the
badges in the READMEs, which are written again too.
"""

import re
import tomllib
from pathlib import Path

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.workdir import storage

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
COLAB = "https://colab.research.google.com"
BADGE = (
    f"[![Open In Colab]({COLAB}/assets/colab-badge.svg)]"
    f"({COLAB}/github/{REPOSITORY}/blob/main/experiments/notebooks/%s.ipynb)"
)
# The clone's folder must have no name that could be imported: Python would take it for a package.
INSTALL = f"""\
# @title Install {{ display-mode: "form" }}
# Where vit_jax is installed, this only finds it. In Colab it takes a minute or two; if it asks for
# a restart of the session, do that and run the notebook from the top again.
import os
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("vit_jax") is None:
    !git clone -q --depth=1 {PROJECT["urls"]["Repository"]} vit_jax-main
    %pip install -q -e vit_jax-main
    sys.path.append(os.path.abspath("vit_jax-main"))

root = Path(find_spec("vit_jax").origin).parents[1]
os.chdir(root)  # configs/ and experiments/ are here
sys.path.append(str(root))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
%matplotlib inline"""


def main(flags):
    del flags
    texts = {FOLDER / f"{name}.ipynb": notebook(name) for name in NAMES}
    texts |= {path: with_links(path) for path in ROOT.glob("README*.md")}
    for path, text in texts.items():
        storage.write_text(path, text)
        print(path.relative_to(ROOT))


def with_links(path):
    """The text of a file with badges, which lead to the repository of now."""
    link = re.compile(rf"(?<={re.escape(COLAB)}/github/)[^/]+/[^/]+(?=/blob/)")
    return link.sub(REPOSITORY, path.read_text(encoding="utf-8"))


def notebook(name):
    """The text of NAME.ipynb. Raises UserError where jupytext is not installed."""
    try:
        import jupytext
        import nbformat
    except ImportError:
        raise UserError("jupytext is missing; make install, or: pip install jupytext") from None
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    book = jupytext.reads(text, fmt="py:percent")
    title, below, rest = book.cells[0].source.partition("\n")
    book.cells[0].source = f"{title}\n\n{BADGE % name}{below}{rest}"
    book.cells.insert(1, nbformat.v4.new_code_cell(INSTALL))
    for i, cell in enumerate(book.cells):
        # Ids of new cells are drawn at random, and jupytext notes how the text was laid out.
        cell.id, cell.metadata = f"{name}-{i}", {}
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    book.nbformat, book.nbformat_minor = 4, 5
    return nbformat.writes(book) + "\n"


if __name__ == "__main__":
    cli.run(main)
