"""Test experiments.twin_runs, without the peers, which need torch."""

import json
import math

import numpy as np
import pytest

from configs import deit
from experiments.twin_runs import __main__ as twin_runs
from experiments.twin_runs import dino, dino_knn, recipe, results, train
from tests import ROOT, command
from tests.tiny import tiny
from vit_jax import data, evaluators
from vit_jax.config import check, config_diff
from vit_jax.run import Run

RESULTS = ROOT / "experiments" / "twin_runs" / "results"
SHARED_BY_KNN = json.loads(json.dumps(dino_knn.SHARED))  # as read from a file


def run_row(setting, seed, test, shared=recipe.SHARED):
    epochs = [
        {"epoch": i + 1, "train_loss": 2.3 - i, "val_raw": test - 2 + i, "val_ema": test - 1 + i}
        for i in range(2)
    ]
    row = {"setting": setting, "seed": seed, "shared": shared, "epochs": epochs}
    return row | {"test_raw": test, "test_ema": test + 1}


def test_recipe_keeps_the_list_of_deit():
    """Only the data, the model's size and the length of the run differ from configs/deit.py."""
    config = recipe.get_config()
    check(config)
    changed = {line.partition(":")[0] for line in config_diff(deit.get_config("Ti"), config)}
    size = {"variant", "width", "depth", "num_heads", "image", "dtype"}
    assert changed == {
        *("data.dataset", "data.train", "data.val", "data.test", "data.cache"),
        *(f"model.{key}" for key in size),
        *("optim.lr", "optim.lr_batch", "optim.warmup", "optim.schedule_by", "optim.decay_rule"),
        *("objective.ema", "batch_size", "eval_batch_size", "total_steps"),
    }
    other = recipe.get_config("decay_all")
    assert config_diff(config, other) == ["optim.decay_rule: timm -> all"]


def test_training_reports_every_epoch():
    config = tiny(recipe.get_config())
    config.model.depth = 1
    config.augment.mixup = config.augment.cutmix = config.augment.erase = 0.0  # slow to compile
    config.total_steps = "2ep"
    config.objective.ema = 0.5
    check(config)
    rows = []
    train.train_here(config, rows.append)
    *epochs, test = rows
    assert [(row["epoch"], row["steps"]) for row in epochs] == [(1, 2), (2, 4)]
    for row in epochs:
        assert 1 < row["train_loss"] < 4
        assert row.keys() == {"epoch", "steps", "train_loss", "train_seconds", "val_raw", "val_ema"}
    assert test.keys() == {"test_raw", "test_ema", "parameters"}
    accuracies = [row[f"val_{name}"] for row in epochs for name in ("raw", "ema")]
    assert all(0 <= x <= 100 for x in accuracies) and any(x > 1 for x in accuracies)


def test_comparison_is_the_bound_of_the_difference():
    rows = [run_row("vit_jax", seed, 40.0 + seed) for seed in range(4)]
    rows += [run_row("timm", seed, 40.5 + seed) for seed in range(4)]
    row = results.compare(rows, "ours and timm", ("vit_jax", "test_raw"), ("timm", "test_raw"))
    error = math.sqrt(2 * (5 / 3) / 4)
    assert row["difference"] == -0.5 and row["standard_error"] == pytest.approx(error)
    assert row["bound"] == pytest.approx(0.5 + 2 * error)
    assert (row["equivalent"], row["detected"]) == ("no", "no")
    # The same difference with a tenth of the spread is within 1.5 points, and is detected.
    rows = [r | {"test_raw": 40 + (r["test_raw"] - 40) / 10} for r in rows[:4]]
    rows += [run_row("timm", seed, 40.5 + seed / 10) for seed in range(4)]
    row = results.compare(rows, "ours and timm", ("vit_jax", "test_raw"), ("timm", "test_raw"))
    assert (row["equivalent"], row["detected"]) == ("yes", "yes")
    assert (
        results.compare(rows[:5], "one seed", ("vit_jax", "test_raw"), ("timm", "test_raw")) is None
    )


def test_finished_runs_are_skipped(tmp_path, capsys):
    rows = [run_row(name, seed, 40.0 + seed) for name in twin_runs.SETTINGS for seed in (0, 1)]
    output = tmp_path / "results"
    output.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (output / "runs.jsonl").write_text(text)
    flags = [f"--output={output}", f"--workdir={tmp_path}/w", "--seeds=0,1"]
    assert command.run(twin_runs, *flags) == 0
    assert (output / "runs.jsonl").read_text() == text
    assert "vit_jax and timm, EMA" in capsys.readouterr().out
    (output / "runs.jsonl").write_text(json.dumps(run_row("timm", 0, 40.0, {"epochs": 1})) + "\n")
    assert command.run(twin_runs, *flags) == 2
    assert "other values of SHARED; pass another --output" in capsys.readouterr().err


def test_committed_tables_are_those_of_the_committed_runs(tmp_path):
    results.write(results.read(RESULTS / "runs.jsonl", recipe.SHARED), tmp_path)
    results.write_knn(results.read(RESULTS / "dino_knn.jsonl", SHARED_BY_KNN), tmp_path)
    written = {path.name for path in tmp_path.iterdir() if path.suffix in (".csv", ".md")}
    assert written >= {"comparisons.csv", "curves.csv", "curves.md", "dino_knn.csv", "dino_knn.md"}
    for name in written:
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text()


def test_knn_of_both_teachers(monkeypatch):
    """Features are in the order of the labels, and one-hot labels as features classify all."""
    monkeypatch.setitem(dino_knn.SHARED, "steps_per_epoch", 1)
    config = tiny(dino.make_config(dino_knn.SHARED))
    config.data.synthetic.images = 40
    check(config)
    losses, features = dino_knn.train_here(config)
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    names = ("untrained_train", "untrained_test", "trained_train", "trained_test")
    assert sorted(features) == sorted(names)
    assert not np.array_equal(features["untrained_test"], features["trained_test"])
    scores = dino_knn.accuracies(config, features)
    assert scores.keys() == {f"{a}_knn{k}" for a in ("untrained", "trained") for k in (10, 20)}

    def labels(split):
        source = data.make(config, config.data[split])
        return np.array([source[i]["label"] for i in range(len(source))])

    run = Run(config)
    for split in ("train", "test"):
        rows = evaluators.features(run.model, config, split, run.mesh)(run.weights(run.init()))
        np.testing.assert_array_equal(rows["label"], labels(split))
    one_hot = {name: np.eye(10)[labels(name.partition("_")[2])] for name in names}
    assert set(dino_knn.accuracies(config, one_hot).values()) == {100.0}


def test_finished_knn_runs_are_skipped(tmp_path, capsys):
    (tmp_path / "main_dino.py").touch()
    output = tmp_path / "results"
    output.mkdir()
    rows = [
        {"setting": side, "seed": seed, "shared": SHARED_BY_KNN}
        | {f"{a}_knn{k}": 30.0 + seed for a in ("untrained", "trained") for k in (10, 20)}
        for side in dino_knn.SIDES
        for seed in (0, 1)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (output / "dino_knn.jsonl").write_text(text)
    flags = [f"--checkout={tmp_path}", f"--output={output}", f"--workdir={tmp_path}/w"]
    assert command.run(dino_knn, *flags, "--seeds=0,1") == 0
    assert (output / "dino_knn.jsonl").read_text() == text
    assert "trained, k = 20 | vit_jax trained_knn20 | reference" in capsys.readouterr().out


def test_unknown_setting_and_missing_checkout_are_refused(tmp_path, capsys):
    assert command.run(twin_runs, "--settings=ours") == 2
    assert "--settings=ours must be one of vit_jax, timm" in capsys.readouterr().err
    assert command.run(dino, f"--checkout={tmp_path}") == 2
    assert "has no main_dino.py" in capsys.readouterr().err
