"""Checkpoints leave no trace before the first save, and are checked on disk after it."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.step import TrainState
from vit_jax.workdir import checkpoint

METRIC = "eval/val/acc1"


def state(step):
    params = {"kernel": jnp.full([2, 3], float(step))}
    values = dict(params=params, extra={}, opt_state={"m": params}, step=jnp.asarray(step))
    return TrainState(**{name: values.get(name) for name in TrainState._fields})


def test_nothing_is_created_before_the_first_save(tmp_path):
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest() is None and checkpoints.best() is None
        checkpoints.wait()
    assert list(tmp_path.iterdir()) == []


def test_latest_and_best_without_warnings(tmp_path, caplog):
    scores = {1: 0.5, 2: 0.75, 3: None, 4: 0.25, 5: None}
    with caplog.at_level(logging.WARNING):
        with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
            for step, score in scores.items():
                metrics = {} if score is None else {METRIC: score, "eval/val/loss": 1.0}
                checkpoints.save(step, state(step), metrics)
            checkpoints.wait()
            assert checkpoints.latest() == 5 and checkpoints.best() == (2, 0.75)
    assert [record.getMessage() for record in caplog.records] == []
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["2", "4", "5"]
    with checkpoint.Checkpoints(tmp_path, write=False) as checkpoints:
        assert checkpoints.latest() == 5 and checkpoints.best() == (2, 0.75)
        restored = checkpoints.restore(state(0))
    np.testing.assert_array_equal(restored.params["kernel"], np.full([2, 3], 5.0))


def test_no_best_checkpoint_without_evaluation(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
        checkpoints.wait()
        assert checkpoints.best() is None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


@pytest.mark.parametrize("damage", ["1", "1/model/_METADATA"])
def test_checkpoint_missing_after_saving(tmp_path, damage):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.manager.wait_until_finished()
        path = tmp_path / "checkpoints" / damage
        path.rename(tmp_path / "removed")
        with pytest.raises(UserError, match="of step 1 is incomplete or not in .*/checkpoints"):
            checkpoints.wait()


def test_workdir_with_a_pattern_is_not_reported_as_saved(tmp_path):
    """Orbax lists files with a glob pattern that includes the path, and then skips the manifest."""
    with checkpoint.Checkpoints(tmp_path / "[ab]") as checkpoints:
        checkpoints.save(1, state(1))
        with pytest.raises(UserError, match="of step 1 is incomplete or not in"):
            checkpoints.wait()
