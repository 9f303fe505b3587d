"""Generate the .ipynb notebooks from their Python sources.

python -m experiments.notebooks

Each NAME.py in this directory is a notebook in jupytext's percent format. NAME.ipynb is generated
from it, without outputs and with two additions: an "Open in Colab" badge below the title, and a
cell that installs vit_jax. The badges link to the repository in pyproject.toml; the Colab links in
look-inside.md of every language are updated as well.
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
# The directory of the clone must not be a valid module name, or Python imports it as a package.
INSTALL = f"""\
# @title Install {{ display-mode: "form" }}
# Installs vit_jax and JAX for the accelerator of this machine, which takes a minute or two in Colab
# or Kaggle. If a package that is in use changes, the session restarts: run the notebook again.
import os
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("vit_jax") is None:
    !git clone -q --depth=1 {PROJECT["urls"]["Repository"]} vit_jax-main
    sys.path.append(os.path.abspath("vit_jax-main"))
    from experiments.notebooks import _install

    accelerator, extra = _install.find_accelerator()
    print(f"found: {{accelerator}}; installing vit_jax[{{extra}}]")
    versions, stale = _install.imported_versions(), " ".join(_install.stale_plugins(extra))
    if stale:
        %pip uninstall -q -y {{stale}}
    %pip install -q -e vit_jax-main[{{extra}}]
    _install.restart_if_changed(versions)

root = Path(find_spec("vit_jax").origin).parents[1]
os.chdir(root)  # configs/ and experiments/ are here
sys.path.append(str(root))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
%matplotlib inline"""


def main(flags):
    del flags
    texts = {FOLDER / f"{name}.ipynb": notebook(name) for name in NAMES}
    texts |= {path: update_links(path) for path in ROOT.glob("docs/**/look-inside.md")}
    for path, text in texts.items():
        storage.write_text(path, text)
        print(path.relative_to(ROOT))


def update_links(path):
    """Return the text of a file with the Colab links pointing to the current repository."""
    link = re.compile(rf"(?<={re.escape(COLAB)}/github/)[^/]+/[^/]+(?=/blob/)")
    return link.sub(REPOSITORY, path.read_text(encoding="utf-8"))


def notebook(name):
    """Return the text of NAME.ipynb. Raises UserError if jupytext is not installed."""
    try:
        import jupytext
        import nbformat
    except ImportError:
        raise UserError("jupytext is not installed; run: pip install jupytext") from None
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    book = jupytext.reads(text, fmt="py:percent")
    title, newline, rest = book.cells[0].source.partition("\n")
    book.cells[0].source = f"{title}\n\n{BADGE % name}{newline}{rest}"
    book.cells.insert(1, nbformat.v4.new_code_cell(INSTALL))
    for i, cell in enumerate(book.cells):
        # Make the output reproducible: nbformat draws random ids for new cells, and jupytext
        # records the layout of the source.
        cell.id = f"{name}-{i}"
        cell.metadata = {}
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    book.nbformat = 4
    book.nbformat_minor = 5
    return nbformat.writes(book) + "\n"


if __name__ == "__main__":
    cli.run(main)
