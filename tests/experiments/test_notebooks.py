"""Test that the notebooks match their sources, and that they run."""

import pytest

from experiments.notebooks import __main__ as notebooks

INSTALL = "make test-long installs it, or: pip install -e .[long]"


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_notebook_matches_its_source(name):
    pytest.importorskip("jupytext", reason="make install installs it")
    text = (notebooks.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert text == notebooks.notebook(name), "run: make notebooks"
    assert f"/{notebooks.REPOSITORY}/blob/main/experiments/notebooks/{name}.ipynb)" in text


def test_colab_links_lead_to_the_repository():
    pages = sorted(notebooks.ROOT.glob("docs/**/look-inside.md"))
    assert len(pages) == 2
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert text.count(f"{notebooks.COLAB}/github/") == len(notebooks.NAMES)
        assert notebooks.update_links(path) == text, "run: make notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.NAMES)
def test_notebook_runs(name, tmp_path, monkeypatch):
    """Run in the notebook's directory with the current Python; write only to tmp_path."""
    nbclient = pytest.importorskip("nbclient", reason=INSTALL)
    pytest.importorskip("ipykernel", reason=INSTALL)
    import nbformat

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # training takes long enough to need XLA -O3
    book = nbformat.read(notebooks.FOLDER / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(notebooks.FOLDER)}}
    client = nbclient.NotebookClient(book, timeout=900, kernel_name="python3", resources=resources)
    client.execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) >= 2
