import itertools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import batch
from vit_jax.data.decode import DecodeError
from vit_jax.errors import UserError


class Numbers:
    """n images of one pixel that say which they are."""

    num_classes = 10

    def __init__(self, n, broken=None):
        self.n, self.broken = n, broken

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.broken:
            raise DecodeError(f"{i}.jpg: broken image")
        return {"image": np.full((1, 1, 1), i, np.uint8), "label": i % 10}


def stamp(image, rng):
    """The image's number beside a random one."""
    return np.concatenate([image, rng.integers(0, 256, (1, 1, 1), np.uint8)], 1)


def take(n, source=None, **keys):
    keys = {"seed": 1, "batch_size": 8, "threads": 2} | keys
    it = batch.train_batches(source or Numbers(20), stamp, **keys)
    found = list(itertools.islice(it, n))
    it.close()
    return found


def equal(a, b):
    assert len(a) == len(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_shapes_and_types():
    first = take(1)[0]
    assert first["image"].shape == (8, 1, 2, 1) and first["image"].dtype == np.uint8
    assert first["label"].shape == (8,) and first["label"].dtype == np.int32
    np.testing.assert_array_equal(first["label"], first["image"][:, 0, 0, 0] % 10)


def test_repeated_views_lie_side_by_side():
    """20 images, 3 views of each: a pass of 20 rows has the 7 first of a new permutation."""
    batches = take(10, repeats=3, batch_size=10)
    passes = np.concatenate([b["image"] for b in batches]).reshape(5, 20, 2)
    firsts = passes[:, ::3, 0]
    np.testing.assert_array_equal(passes[..., 0], np.repeat(firsts, 3, axis=1)[:, :20])
    assert all(len(set(row)) == 7 for row in firsts)
    assert len({tuple(row) for row in firsts}) == 5
    plain = take(10, batch_size=10)
    order = np.concatenate([b["image"] for b in plain]).reshape(5, 20, 2)[..., 0]
    np.testing.assert_array_equal(firsts, order[:, :7])
    views = passes[0, :18, 1].reshape(6, 3)
    assert all(len(set(row)) > 1 for row in views)  # each copy has its own view
    equal(take(8, repeats=3, start=2, batch_size=10), batches[2:])
    equal(take(2, repeats=3, workers=1, batch_size=10), batches[:2])
    halves = [take(10, repeats=3, process_index=i, process_count=2, batch_size=10) for i in (0, 1)]
    joined = [np.concatenate([a["image"], b["image"]]) for a, b in zip(*halves, strict=True)]
    np.testing.assert_array_equal(joined, [b["image"] for b in batches])


def several(image, rng):
    return {"global": np.stack([stamp(image, rng)] * 2), "local": stamp(image, rng)[None]}


def test_a_view_may_be_several_arrays():
    def take(n, **keys):
        it = batch.train_batches(Numbers(20), several, seed=1, batch_size=8, **keys)
        found = list(itertools.islice(it, n))
        it.close()
        return found

    whole = take(4)
    assert {key: x.shape for key, x in whole[0].items()} == {
        "global": (8, 2, 1, 2, 1),
        "local": (8, 1, 1, 2, 1),
        "label": (8,),
    }
    for views in (whole[0]["global"], whole[0]["local"]):
        np.testing.assert_array_equal(whole[0]["label"], views[:, 0, 0, 0, 0] % 10)
    equal(take(2, start=2, threads=0), whole[2:])


def test_starting_at_k_is_having_come_to_k():
    whole = take(9)
    for start in (0, 1, 5):
        equal(take(9 - start, start=start), whole[start:])


def test_every_pass_is_a_new_permutation():
    rows = np.concatenate([b["image"][:, 0, 0, 0] for b in take(15)]).reshape(6, 20)
    for one in rows:
        assert sorted(one) == list(range(20))
    assert len({tuple(one) for one in rows}) == 6


def test_views_depend_on_seed_and_row_alone():
    equal(take(4, threads=0), take(4, threads=3))
    draws = np.concatenate([b["image"][:, 0, 1, 0] for b in take(15)])
    assert len(set(draws)) > 80  # of 120 draws of 256 values: a new one each row, each pass
    other = np.concatenate([b["image"][:, 0, 1, 0] for b in take(15, seed=2)])
    assert (draws != other).mean() > 0.9


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_global_batch(count):
    parts = [take(5, process_index=p, process_count=count) for p in range(count)]
    joined = [jax.tree.map(lambda *x: np.concatenate(x), *k) for k in zip(*parts, strict=True)]
    equal(joined, take(5))


def fails_by_name(run):
    with pytest.raises(DecodeError) as e:
        run()
    assert str(e.value) == "7.jpg: broken image"


def test_workers_give_the_same_batches_and_pass_errors_on():
    equal(take(5, workers=2, start=2), take(5, start=2))
    fails_by_name(lambda: take(3, source=Numbers(20, broken=7), workers=1))


def test_errors_of_threads_arrive_as_themselves():
    broken = Numbers(20, broken=7)
    fails_by_name(lambda: take(3, source=broken))
    fails_by_name(lambda: list(batch.eval_batches(broken, lambda x: x, batch_size=4)))


@pytest.mark.parametrize("n", [1, 5, 16, 21])
@pytest.mark.parametrize("count", [1, 2])
def test_eval_sees_every_image_once(n, count):
    parts = [
        list(
            batch.eval_batches(
                Numbers(n), lambda x: x, batch_size=4, process_index=p, process_count=count
            )
        )
        for p in range(count)
    ]
    assert {len(part) for part in parts} == {-(-n // 4)}
    seen = []
    for b in itertools.chain(*parts):
        assert b["image"].shape == (4 // count, 1, 1, 1) and b["mask"].dtype == bool
        assert b["label"].dtype == np.int32 and not b["image"][~b["mask"]].any()
        np.testing.assert_array_equal(b["label"], b["image"][:, 0, 0, 0] % 10)
        seen += b["image"][b["mask"]].ravel().tolist()
    assert sorted(seen) == list(range(n))


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="multiple of 3"):
        take(1, process_count=3)
    with pytest.raises(UserError, match="multiple of 3"):
        batch.eval_batches(Numbers(20), lambda x: x, batch_size=8, process_count=3)
    with pytest.raises(UserError, match="has 7 images, config.batch_size is 8: .* 7 or less"):
        take(1, source=Numbers(7))


def test_to_devices_splits_rows_over_the_mesh():
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    host = take(1)[0]
    placed = batch.to_devices(host, sharding)
    equal([jax.tree.map(np.asarray, placed)], [host])
    assert placed["image"].sharding == sharding
    assert placed["image"].addressable_shards[0].data.shape[0] == 8 // len(jax.devices())
