"""The notebooks, from text to what Jupyter and Colab open: python -m experiments.notebooks

Each NAME.py in this folder is a notebook in jupytext's percent format, and NAME.ipynb is made from
it, without outputs. What all of them have, the badge below the title and the cell that installs
vit_jax, is in this file.
"""

from pathlib import Path

from vit_jax import cli, folders

REPOSITORY = "ORG/REPO"  # on GitHub: where Colab finds the notebooks, and the code to install
FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    f"(https://colab.research.google.com/github/{REPOSITORY}/blob/main/experiments/notebooks/%s.ipynb)"
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
    !git clone -q --depth=1 https://github.com/{REPOSITORY} vit_jax-main
    %pip install -q -e vit_jax-main
    sys.path.append(os.path.abspath("vit_jax-main"))

root = Path(find_spec("vit_jax").origin).parents[1]
os.chdir(root)  # configs/ and experiments/ are here
sys.path.append(str(root))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
%matplotlib inline"""


def main(flags):
    del flags
    for name in NAMES:
        path = FOLDER / f"{name}.ipynb"
        folders.write_text(path, notebook(name))
        print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def notebook(name):
    """The text of NAME.ipynb. Raises UserError where jupytext is not installed."""
    try:
        import jupytext
        import nbformat
    except ImportError:
        raise cli.UserError("jupytext is missing; make install, or: pip install jupytext") from None
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
