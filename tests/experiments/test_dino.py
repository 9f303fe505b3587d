"""Test experiments.dino: the exported results of a run, and the committed tables."""

import json
import types

import jax
import pytest

from configs import dino_cifar10
from experiments.dino import baselines, results
from tests import command
from tests.tiny import tiny
from vit_jax import train
from vit_jax.config import check
from vit_jax.workdir import log


@pytest.mark.parametrize("study", results.STUDIES)
def test_committed_table_is_that_of_the_committed_runs(study):
    folder = results.FOLDER / study
    runs = results.read_runs(folder / "results")
    scores = json.loads((folder / "results" / "baselines.json").read_text())["scores"]
    assert len(runs) >= 1
    assert results.table(runs, scores) in (folder / "README.md").read_text()


def test_a_run_is_exported_with_its_scores(tmp_path, monkeypatch):
    study = tmp_path / "cifar10"
    study.mkdir()
    (study / "README.md").write_text("before\n" + "".join(results.MARKERS) + "after\n")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    config = tiny(dino_cifar10.get_config())
    check(config)
    train.train(config, tmp_path / "run", devices=jax.devices()[:1])
    path = study / "results" / "baselines.json"
    baselines.main(types.SimpleNamespace(config=config, output=str(path)))
    assert command.run(results, "--study=cifar10", f"--workdir={tmp_path / 'run'}") == 0
    run = json.loads((study / "results" / "run1.json").read_text())
    rows = log.read_metrics(tmp_path / "run")
    knn = [row["eval/test/knn20"] for row in rows if "eval/test/knn20" in row][-1]
    assert run["scores"]["test/knn20"] == knn
    assert 0 <= run["scores"]["test/linear_acc1"] <= 1
    assert run["steps"] == 2 and run["config"]["model.variant"] == "mu/8"
    before, table, after = (study / "README.md").read_text().partition("| features |")
    assert before.startswith("before") and after.endswith(results.MARKERS[1] + "after\n")
    assert all(f"\n| {name} | " in after for name in ("pixels", "untrained", "run1"))
    assert (study / "knn.png").stat().st_size > 1000
