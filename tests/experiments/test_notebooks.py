"""Test that the notebooks match their sources, and that they run."""

import json
import os
import signal
import subprocess
import sys

import pytest

from experiments.notebooks import __main__ as notebooks
from experiments.notebooks import _install
from tests import ROOT

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


NVIDIA = """#!/bin/sh
echo '{}'
exit {}
"""


@pytest.mark.parametrize(
    ("line", "code", "expected"),
    [
        ("Tesla T4, 550.54.15, 7.5", 0, ("Tesla T4", "cuda12")),
        ("NVIDIA L4, 580.82.07, 8.9", 0, ("NVIDIA L4", "cuda13")),
        ("Tesla P100-PCIE-16GB, 580.82.07, 6.0", 0, ("Tesla P100-PCIE-16GB", "cuda12")),
        ("NVIDIA-SMI has failed", 9, ("no accelerator", "")),
    ],
)
def test_the_extra_fits_the_accelerator(line, code, expected, tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(NVIDIA.format(line, code))
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert _install.find_accelerator() == expected
    extra = expected[1]
    assert not extra or extra in notebooks.PROJECT["optional-dependencies"]


def test_the_kernel_restarts_only_for_packages_in_use():
    """In a process that has imported numpy, whose version is reported to have changed, or not."""
    script = (
        "import numpy\nfrom experiments.notebooks import _install\n"
        "versions = _install.imported_versions()\nassert 'numpy' in versions and 'jax' not in "
        "versions\n_install.restart_if_changed(versions)\n"
        "_install.restart_if_changed(versions | {'numpy': '1.0'})\nprint('not reached')"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert process.stdout == "restarting the session for the new numpy; run the notebook again\n"


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "tpu"])
def test_the_extras_resolve_to_one_version_of_jax(extra, tmp_path):
    """As in Colab's Python 3.13, where an older JAX and its plugin are installed."""
    report = tmp_path / "report.json"
    target = ["--target", str(tmp_path / "site"), "--python-version=3.13", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", f"--report={report}"]
    requirements = notebooks.PROJECT["optional-dependencies"][extra]
    process = subprocess.run([*command, *target, *requirements], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    packages = {
        package["metadata"]["name"].lower(): package["metadata"]["version"]
        for package in json.loads(report.read_text())["install"]
    }
    plugin = {"tpu": "libtpu"}.get(extra, f"jax-{extra}-plugin")
    assert plugin in packages and packages["jax"] == packages["jaxlib"]
    if extra != "tpu":
        assert packages[plugin] == packages["jax"] == packages[f"jax-{extra}-pjrt"]
