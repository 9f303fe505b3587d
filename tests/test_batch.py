"""Data loading: determinism, resuming, worker processes and several hosts."""

import itertools
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import grain
import jax
import numpy as np
import pytest

from configs import digits
from tests import GOLDEN, ROOT
from vit_jax import batch
from vit_jax.data.decode import DecodeError
from vit_jax.errors import UserError


class Indices:
    """n images of one pixel. Its value is the index of the image."""

    num_classes = 10

    def __init__(self, n, broken=None):
        self.n = n
        self.broken = broken

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.broken:
            raise DecodeError(f"{i}.jpg: broken image")
        return {"image": np.full((1, 1, 1), i, np.uint8), "label": i % 10}


def random_view(image, rng):
    """Append a random pixel to the image."""
    return np.concatenate([image, rng.integers(0, 256, (1, 1, 1), np.uint8)], 1)


def take(n, source=None, **keys):
    keys = {"seed": 1, "batch_size": 8, "threads": 2} | keys
    batches = batch.train_batches(source or Indices(20), random_view, **keys)
    result = list(itertools.islice(batches, n))
    batches.close()
    return result


def assert_batches_equal(a, b):
    assert len(a) == len(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_shapes_and_dtypes():
    first = take(1)[0]
    assert first["image"].shape == (8, 1, 2, 1) and first["image"].dtype == np.uint8
    assert first["label"].shape == (8,) and first["label"].dtype == np.int32
    np.testing.assert_array_equal(first["label"], first["image"][:, 0, 0, 0] % 10)


def test_repeated_augmentation():
    """With 3 copies of each of 20 images, an epoch has the first 7 images of a new permutation."""
    batches = take(10, repeats=3, batch_size=10)
    epochs = np.concatenate([b["image"] for b in batches]).reshape(5, 20, 2)
    indices = epochs[:, ::3, 0]
    np.testing.assert_array_equal(epochs[..., 0], np.repeat(indices, 3, axis=1)[:, :20])
    assert all(len(set(row)) == 7 for row in indices)
    assert len({tuple(row) for row in indices}) == 5
    plain = take(10, batch_size=10)
    order = np.concatenate([b["image"] for b in plain]).reshape(5, 20, 2)[..., 0]
    np.testing.assert_array_equal(indices, order[:, :7])
    views = epochs[0, :18, 1].reshape(6, 3)
    assert all(len(set(row)) > 1 for row in views)  # the copies are augmented independently
    assert_batches_equal(take(8, repeats=3, start=2, batch_size=10), batches[2:])
    assert_batches_equal(take(2, repeats=3, workers=1, batch_size=10), batches[:2])
    halves = [take(10, repeats=3, process_index=i, process_count=2, batch_size=10) for i in (0, 1)]
    joined = [np.concatenate([a["image"], b["image"]]) for a, b in zip(*halves, strict=True)]
    np.testing.assert_array_equal(joined, [b["image"] for b in batches])


def test_repeated_augmentation_matches_deit():
    """The rows of 4 processes of DeiT's RASampler are those of 3 global batches of 256."""
    golden = np.load(GOLDEN / "deit3/repeated_aug.npz")
    order = golden["epoch5/permutation"]
    length = len(order) // 256 * 256
    rows = batch._Repeated(grain.MapDataset.source(order), len(order), length, 3)
    rows = np.array([rows[i] for i in range(length)])
    np.testing.assert_array_equal(rows, golden["epoch5/ranks"].T.ravel())
    assert len(set(rows)) == 256


def multi_view(image, rng):
    views = np.stack([random_view(image, rng)] * 2)
    return {"global": views, "local": random_view(image, rng)[None]}


def test_view_returns_a_dict():
    def take(n, **keys):
        batches = batch.train_batches(Indices(20), multi_view, seed=1, batch_size=8, **keys)
        result = list(itertools.islice(batches, n))
        batches.close()
        return result

    whole = take(4)
    assert {key: x.shape for key, x in whole[0].items()} == {
        "global": (8, 2, 1, 2, 1),
        "local": (8, 1, 1, 2, 1),
        "label": (8,),
    }
    for views in (whole[0]["global"], whole[0]["local"]):
        np.testing.assert_array_equal(whole[0]["label"], views[:, 0, 0, 0, 0] % 10)
    assert_batches_equal(take(2, start=2, threads=0), whole[2:])


def test_resume_at_batch_k():
    whole = take(9)
    for start in (0, 1, 5):
        assert_batches_equal(take(9 - start, start=start), whole[start:])


def test_every_epoch_is_a_new_permutation():
    rows = np.concatenate([b["image"][:, 0, 0, 0] for b in take(15)]).reshape(6, 20)
    for epoch in rows:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in rows}) == 6


def test_augmentation_depends_only_on_seed_and_row():
    assert_batches_equal(take(4, threads=0), take(4, threads=3))
    draws = np.concatenate([b["image"][:, 0, 1, 0] for b in take(15)])
    assert len(set(draws)) > 80  # of 120 independent draws from 256 values
    other = np.concatenate([b["image"][:, 0, 1, 0] for b in take(15, seed=2)])
    assert (draws != other).mean() > 0.9


@pytest.mark.parametrize("count", [2, 4])
def test_processes_split_each_global_batch(count):
    parts = [take(5, process_index=p, process_count=count) for p in range(count)]
    joined = [jax.tree.map(lambda *x: np.concatenate(x), *k) for k in zip(*parts, strict=True)]
    assert_batches_equal(joined, take(5))


def assert_decode_error(function):
    with pytest.raises(DecodeError) as e:
        function()
    assert str(e.value) == "7.jpg: broken image"


KILLED_LOADER = """
import os, signal
from tests.test_batch import Indices, random_view
from vit_jax import batch

if __name__ == "__main__":
    batches = batch.train_batches(Indices(20), random_view, seed=1, batch_size=8, workers=2)
    next(batches)
    for task in os.listdir("/proc/self/task"):
        print(open(f"/proc/self/task/{task}/children").read(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_worker_processes_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "load.py"
    script.write_text(KILLED_LOADER)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(tmp_path / "pids", "w") as file:  # a pipe would be open as long as the workers live
        code = subprocess.run([sys.executable, script], env=environment, stdout=file).returncode
    workers = (tmp_path / "pids").read_text().split()
    assert code == -signal.SIGKILL and len(workers) >= 2
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_worker_processes_give_the_same_batches_and_errors():
    whole = take(7, threads=0)
    assert_batches_equal(take(5, workers=2, start=2), whole[2:])  # a batch is four chunks
    assert_batches_equal(take(5, workers=2, chunk=99, start=2), whole[2:])  # and one
    for threads in (1, 3, 5, 9):
        halves = [
            take(4, threads=threads, start=3, process_index=p, process_count=2) for p in (0, 1)
        ]
        joined = [jax.tree.map(lambda *x: np.concatenate(x), *k) for k in zip(*halves, strict=True)]
        assert_batches_equal(joined, whole[3:])
    assert_decode_error(lambda: take(3, source=Indices(20, broken=7), workers=1))


def test_threads_propagate_errors():
    broken = Indices(20, broken=7)
    assert_decode_error(lambda: take(3, source=broken))
    assert_decode_error(lambda: list(batch.eval_batches(broken, lambda x: x, batch_size=4)))


@pytest.mark.parametrize("n", [1, 5, 16, 21])
@pytest.mark.parametrize("count", [1, 2])
def test_eval_batches_visit_every_image_once(n, count):
    parts = [
        list(
            batch.eval_batches(
                Indices(n), lambda x: x, batch_size=4, process_index=p, process_count=count
            )
        )
        for p in range(count)
    ]
    assert {len(part) for part in parts} == {-(-n // 4)}
    indices = []
    for b in itertools.chain(*parts):
        assert b["image"].shape == (4 // count, 1, 1, 1) and b["mask"].dtype == bool
        assert b["label"].dtype == np.int32 and not b["image"][~b["mask"]].any()
        np.testing.assert_array_equal(b["label"], b["image"][:, 0, 0, 0] % 10)
        indices += b["image"][b["mask"]].ravel().tolist()
    assert sorted(indices) == list(range(n))


def test_invalid_batch_sizes_are_rejected():
    with pytest.raises(UserError, match="multiple of the number of processes, 3"):
        take(1, process_count=3)
    with pytest.raises(UserError, match="multiple of the number of processes, 3"):
        batch.eval_batches(Indices(20), lambda x: x, batch_size=8, process_count=3)


def test_evaluation_with_worker_processes_gives_the_same_batches():
    def read(**keys):
        return list(batch.eval_batches(Indices(21), identity, batch_size=6, **keys))

    assert_batches_equal(read(workers=1, threads=2), read(threads=0))
    assert_batches_equal(read(threads=4), read(threads=0))


def identity(image):
    return image


@pytest.mark.parametrize(
    "cores, rows, view, facts, expected",
    [
        # The host of an H100; a TPU v5e host of 4 chips; 2 cores.
        (26, 256, 224, {}, (12, 2)),
        (112, 1024, 224, {}, (55, 2)),
        (2, 1024, 224, {}, (0, 1)),
        (6, 1024, 224, {}, (0, 4)),
        (112, 16, 224, {}, (8, 2)),  # not more than one row for each thread
        (112, 1024, 224, {"images": 10_000}, (0, 4)),  # an evaluation, faster than workers start
        (112, 1024, 224, {"images": 50_000}, (55, 2)),
        (112, 1024, 224, {"accelerator": False}, (0, 4)),
        (2, 128, 224, {"accelerator": False}, (0, 2)),
        (112, 64, 28, {"in_memory": True}, (0, 0)),
        (112, 64, 224, {"in_memory": True}, (0, 4)),  # a cache is not shared by processes
        (1, 1, 224, {}, (0, 1)),
    ],
)
def test_parallelism_follows_the_host(cores, rows, view, facts, expected):
    facts = {"in_memory": False, "accelerator": True} | facts
    assert batch.choose_parallelism(cores, rows, view, **facts) == (*expected, 1)


def test_chunks_of_small_images_have_many_rows():
    config = digits.get_config()
    for image, rows in ((28, 84), ((24, 40), 69), (224, 2)):
        config.model.image = image
        assert batch.parallelism_of(SimpleNamespace(in_memory=True), config, 64).chunk == rows
