"""README.md and README.ko.md say the same, and the Python in them runs."""

import re
import shutil
from collections import Counter

import jax
import numpy as np
import pytest

from configs import dino_digits
from tests import ROOT
from vit_jax import train
from vit_jax.run import Run
from vit_jax.workdir import checkpoint, log

LANGUAGES = "README.md", "README.ko.md"
FENCE = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text):
    """A page without its code blocks and without the line that links to the other language."""
    return re.sub(r"^\[\S+\]\(README\S*\)$", "", FENCE.sub("", text), flags=re.MULTILINE)


def headings(text):
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(text), re.MULTILINE)]


def tables(text):
    """The number of cells in each row of each table, in order."""
    found = re.findall(r"(?:^\|.*\n)+", prose(text), re.MULTILINE)
    return [[len(re.split(r"(?<!\\)\|", row)) - 2 for row in t.splitlines()] for t in found]


def targets(text):
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def commands(text):
    """The lines of each code block up to their comments; of the map of the code, the file names."""
    blocks = []
    for block in FENCE.findall(text):
        if block.startswith("vit_jax/\n"):
            blocks.append(sorted(re.findall(r"[\w/<>]+(?:\.py|/\*)", block)))
        else:
            blocks.append([re.sub(r"(^|\s+)# .*", "", line) for line in block.splitlines()])
    return blocks


def pieces(text):
    """Its paragraphs, bullets and rows of tables."""
    return [p for p in re.split(r"\n\n|\n(?=[|*] )", prose(text)) if p.strip()]


def facts(piece):
    """The code and numbers of a piece, counted: their order is the language's."""
    code = [" ".join(span.split()) for span in CODE.findall(piece)]
    return Counter(code + re.findall(r"\d+(?:[.,]\d+)*", CODE.sub("", piece)))


@pytest.mark.parametrize("part", [headings, tables, targets, commands])
def test_same_structure(part):
    english, korean = (part(read(name)) for name in LANGUAGES)
    assert english and korean == english


def test_same_facts():
    for english, korean in zip(*(pieces(read(name)) for name in LANGUAGES), strict=True):
        assert facts(korean) == facts(english), f"{english}\n\n{korean}"


@pytest.mark.parametrize("name", LANGUAGES)
def test_links_exist(name):
    # of the whole page, so that the link to the other language counts too
    found = {t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(name)))}
    local = sorted(t for t in found if t and "://" not in t)
    assert local and [t for t in local if not (ROOT / t).exists()] == []


def test_the_python_in_it_runs(tmp_path, monkeypatch):
    """Block by block, with a run that was never trained and small weights under the names there."""
    config = dino_digits.get_config()
    config.compilation_cache = ""
    folder = tmp_path / "runs/dino_digits"
    train.claim(folder, config)
    run = Run(config, jax.devices()[:1])
    with checkpoint.Checkpoints(folder, metric=config.best_metric) as saved:
        saved.save(0, run.init())
        saved.wait()
    log.write_run_json(folder, mesh=run.mesh, **run.facts())
    weights = ROOT / "tests/golden/vit/vit_cls/state_dict.safetensors"
    shutil.copy(weights, tmp_path / "model.safetensors")
    shutil.copytree(folder, tmp_path / "runs/digits")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", read("README.md"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names = {"images": np.zeros((1, 32, 32, 3), np.float32), "rng": jax.random.key(0)}
        names["picture"] = np.zeros((20, 30, 3), np.uint8)
        exec(block, names)
    assert names["masks"].shape == names["maps"].shape == names["seen"].maps.swapaxes(0, 1).shape
    assert (tmp_path / "seen.png").stat().st_size > 10_000
