"""Checkpoints are verified after saving and on restoring; damage is found, and nothing is lost."""

import collections
import itertools
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.devices import sharding
from vit_jax.errors import Diverged, NoSpace, UserError, WorkdirLost
from vit_jax.step import BadSteps, TrainState
from vit_jax.workdir import checkpoint, checksum, manifest, owner, readback

METRIC = "eval/val/acc1"


def state(step, value=None, mesh=None):
    kernel = jnp.arange(3 * 64 * 96, dtype=jnp.float32).reshape(3, 64, 96) + step
    params = {
        "blocks": {"mlp": {"fc1": {"kernel": kernel}}},
        "head": {"bias": jnp.full([7], step if value is None else value, jnp.bfloat16)},
    }
    opt_state = {"m": jax.tree.map(jnp.copy, params)}
    bad = BadSteps(*(jnp.asarray(i, jnp.int32) for i in (0, 0, 0)))
    result = TrainState(jnp.asarray(step, jnp.int32), params, {}, opt_state, bad)
    mesh = mesh or sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return jax.device_put(result, sharding.state_shardings(result, mesh))


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save(workdir, *steps, **options):
    """Save checkpoints, and return the warnings."""
    said = []
    with checkpoint.Checkpoints(workdir, say=said.append, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
        checkpoints.wait()
    return said


def restore(workdir):
    """Return the step and the state of the latest checkpoint that verifies, and the warnings."""
    said = []
    with checkpoint.Checkpoints(workdir, say=said.append) as checkpoints:
        step, restored = checkpoints.restore_latest(abstract(state(0)))
    if step:
        jax.tree.map(np.testing.assert_array_equal, restored, state(step))
    return step, said


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_nothing_is_created_before_the_first_save(tmp_path):
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps() == [] and checkpoints.best() is None
        assert checkpoints.restore_latest(abstract(state(0))) == (0, None)
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
            assert checkpoints.saved == 5 and checkpoints.best() == (2, 0.75)
    assert [record.getMessage() for record in caplog.records] == []
    assert names(tmp_path) == ["2", "4", "5"]
    assert restore(tmp_path) == (5, [])


@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (3, 8, 10)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_checksum_of_blocks(shape, dtype):
    """On devices, in NumPy, and summed over any blocks; a change of one element changes it."""
    values = np.asarray(np.random.default_rng(0).normal(size=shape) * 9).astype(jnp.dtype(dtype))
    whole = checksum.of_block(values, (0,) * len(shape), shape)
    assert int(checksum.of_tree([jnp.asarray(values)])[0][0]) == whole
    halves = [[(0, n // 2), (n // 2, n)] for n in shape]
    parts = [
        checksum.of_block(values[tuple(slice(*x) for x in block)], [x[0] for x in block], shape)
        for block in itertools.product(*halves)
    ]
    assert sum(parts) % 2**32 == whole
    changed = values.copy()
    index = tuple(n // 2 for n in shape)
    changed.view(np.uint8 if dtype == "bool" else f"u{values.dtype.itemsize}")[index] ^= 1
    assert checksum.of_block(changed, (0,) * len(shape), shape) != whole


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_other_meshes_restore_the_same_values(tmp_path, sizes):
    """Saved on a mesh of 4 devices; restored, saved again, and restored on 4 devices."""

    def make_mesh(sizes):
        devices = jax.devices()[: int(np.prod(sizes))]
        return sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), devices)

    original = state(1, mesh=make_mesh((1, 2, 2)))
    for step, (source, target) in enumerate([((1, 2, 2), sizes), (sizes, (1, 2, 2))], 1):
        with checkpoint.Checkpoints(tmp_path / str(step)) as checkpoints:
            checkpoints.save_now(
                1, jax.device_put(original, sharding.state_shardings(original, make_mesh(source)))
            )
            _, restored = checkpoints.restore_latest(abstract(state(1, mesh=make_mesh(target))))
        jax.tree.map(np.testing.assert_array_equal, restored, original)
        assert restored.params["blocks"]["mlp"]["fc1"]["kernel"].sharding.mesh.size == np.prod(
            target
        )


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def data_file(directory):
    """Return the largest file of a checkpoint, which has data of arrays."""
    return max(directory.rglob("d/*"), key=lambda path: path.stat().st_size)


DAMAGES = {
    "a flipped bit in an array": lambda path: flip(data_file(path)),
    "a flipped bit in the metadata": lambda path: flip(path / "model/_METADATA"),
    "a flipped bit in the manifest": lambda path: flip(path / "manifest.json"),
    "a truncated file": lambda path: data_file(path).write_bytes(b""),
    "a removed file": lambda path: (path / "optimizer/manifest.ocdbt").unlink(),
    "a removed manifest": lambda path: (path / "manifest.json").unlink(),
    "an empty directory": lambda path: (shutil.rmtree(path), path.mkdir()),
    "another step": lambda path: (shutil.rmtree(path), shutil.copytree(path.parent / "5", path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_previous_checkpoint_is_used(tmp_path, damage):
    save(tmp_path, 5, 10)
    DAMAGES[damage](tmp_path / "checkpoints/10")
    step, said = restore(tmp_path)
    assert step == 5 and names(tmp_path) == ["10.damaged", "5"]
    assert len(said) == 1 and "of step 10 is damaged: " in said[0]
    assert said[0].endswith("It is now 10.damaged; using step 5 instead")
    assert save(tmp_path, 10) == [] and restore(tmp_path) == (10, [])


def test_an_older_checkpoint_with_a_damaged_manifest_is_set_aside(tmp_path):
    """Otherwise, the best checkpoint would be unknown."""
    save(tmp_path, 5, 10)
    flip(tmp_path / "checkpoints/5/manifest.json")
    step, (warning,) = restore(tmp_path)
    assert step == 10 and names(tmp_path) == ["10", "5.damaged"]
    assert "of step 5 is damaged: manifest.json" in warning


def test_no_fresh_start_if_no_checkpoint_verifies(tmp_path):
    save(tmp_path, 5, 10)
    for step in ("5", "10"):
        flip(data_file(tmp_path / "checkpoints" / step))
    for _ in range(2):
        with pytest.raises(UserError, match="no checkpoint in .*/checkpoints verifies .*step 10"):
            restore(tmp_path)
    assert names(tmp_path) == ["10", "5"]
    shutil.rmtree(tmp_path / "checkpoints/5")
    (tmp_path / "checkpoints/10").rename(tmp_path / "checkpoints/10.damaged")
    with pytest.raises(UserError, match=r"verifies \(10.damaged\)"):
        restore(tmp_path)


def test_foreign_and_temporary_directories(tmp_path):
    """Only what interrupted saves and deletions left is removed, and nothing foreign is read."""
    save(tmp_path, 5)
    folder = tmp_path / "checkpoints"
    for name in ("7.saving", "8.saving.orbax-checkpoint-tmp", "3.deleting"):
        (folder / name).mkdir()
    foreign = ["009", "11 (copy)", "notes.txt"]
    for name in foreign[:2]:
        shutil.copytree(folder / "5", folder / name)
    (folder / foreign[2]).write_text("text")
    assert restore(tmp_path) == (5, [])
    assert names(tmp_path) == sorted([*foreign, "5"])


def test_old_checkpoints_stay_until_the_new_one_verifies(tmp_path, monkeypatch):
    """What is on disk differs from the devices: it is no checkpoint, and leaves nothing."""
    save(tmp_path, 5, keep=1)
    monkeypatch.setattr(readback, "checksum_of", lambda *_: 1)
    said = save(tmp_path, 10, keep=1)
    assert len(said) == 1 and said[0].startswith(
        "warning: could not save the checkpoint of step 10"
    )
    assert "was not written as it is on the devices" in said[0]
    assert names(tmp_path) == ["5"]
    monkeypatch.undo()
    assert save(tmp_path, 15, keep=1) == [] and names(tmp_path) == ["15"]


def test_a_full_disk(tmp_path, monkeypatch):
    """Nothing is written; the next save succeeds if there is space, `save_now` raises otherwise."""
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage(1e5))
    (warning,) = save(tmp_path, 5)
    assert "(no space left: 0.2 MB needed, 0.1 MB free); trying again at the next one" in warning
    with checkpoint.Checkpoints(tmp_path, say=lambda _: None) as checkpoints:
        with pytest.raises(NoSpace, match="of step 5 could not be saved .*no space left"):
            checkpoints.save_now(5, state(5))
        monkeypatch.undo()
        checkpoints.save_now(10, state(10))
    assert names(tmp_path) == ["10"]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Diverged, match="model/params/head/bias is not finite at step 5"):
            checkpoints.save(5, state(5, np.nan))
    assert list(tmp_path.iterdir()) == []


def test_the_workdir_is_replaced(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with owner.Owner(workdir) as owned, checkpoint.Checkpoints(workdir, owner=owned) as checkpoints:
        checkpoints.save_now(5, state(5))
        workdir.rename(tmp_path / "moved")
        with pytest.raises(WorkdirLost, match="deleted or renamed"):
            checkpoints.save_now(10, state(10))
        assert not workdir.exists()
        workdir.mkdir()
        with pytest.raises(WorkdirLost, match="replaced"):
            checkpoints.save_now(10, state(10))
        assert list(workdir.iterdir()) == []


def test_a_checkpoint_of_another_model(tmp_path):
    save(tmp_path, 5)
    other = abstract(state(0))
    other.params["head"]["bias"] = jax.ShapeDtypeStruct(
        (9,), jnp.float32, sharding=other.params["head"]["bias"].sharding
    )
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        text = r"model/params/head/bias is bfloat16 \[7\], expected float32 \[9\]"
        with pytest.raises(UserError, match=text):
            checkpoints.restore_latest(other)
    assert names(tmp_path) == ["5"]


def test_metrics_of_a_pending_evaluation(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_now(5, state(5), pending=True)
        assert checkpoints.is_pending(5)
        checkpoints.set_metrics(5, {METRIC: 0.5})
        assert not checkpoints.is_pending(5) and checkpoints.best() == (5, 0.5)
        assert manifest.check(tmp_path / "checkpoints/5", 5)["metrics"] == {METRIC: 0.5}
