"""The notebooks: in step with their text, and run from top to bottom."""

import pytest

from experiments.notebooks import __main__ as notebooks

INSTALL = "make test-long installs it, or: pip install -e .[long]"


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_it_is_what_its_text_makes(name):
    pytest.importorskip("jupytext", reason="make install installs it")
    text = (notebooks.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert text == notebooks.notebook(name), "say: make notebooks"
    assert f"/{notebooks.REPOSITORY}/blob/main/experiments/notebooks/{name}.ipynb)" in text


def test_the_badges_lead_to_the_same_repository():
    readmes = sorted(notebooks.ROOT.glob("README*.md"))
    assert len(readmes) == 2
    for path in readmes:
        text = path.read_text(encoding="utf-8")
        assert all(notebooks.BADGE % name in text for name in notebooks.NAMES)
        assert notebooks.with_links(path) == text, "say: make notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.NAMES)
def test_it_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    """In the folder and with the Python that a person has; nothing of it stays behind."""
    nbclient = pytest.importorskip("nbclient", reason=INSTALL)
    pytest.importorskip("ipykernel", reason=INSTALL)
    import nbformat

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # these programs run long enough to optimize
    book = nbformat.read(notebooks.FOLDER / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(notebooks.FOLDER)}}
    nbclient.NotebookClient(book, timeout=900, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) >= 2
