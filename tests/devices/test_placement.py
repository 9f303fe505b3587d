"""Batches on the devices, ahead of the steps."""

import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.data.decode import DecodeError
from vit_jax.devices import placement

ROWS = {"image": np.arange(64, dtype=np.uint8).reshape(8, 2, 2, 2), "label": np.arange(8)}
SHARDING = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))


class Numbers:
    """Iterator over 0, 1, ...; 5 is an error, or waits until it is closed."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.count = 0
        self.closed = threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        self.thread = threading.current_thread()
        self.count += 1
        if self.count == 6:
            if self.blocks:
                self.closed.wait()
            raise DecodeError("5.jpg: broken image")
        return self.count - 1

    def close(self):
        self.closed.set()


def test_a_thread_places_two_batches_ahead():
    numbers, placed = Numbers(blocks=False), []
    batches = placement.ahead(numbers, lambda x: placed.append(x) or -x)
    assert next(batches) == 0
    assert numbers.thread is not threading.main_thread()
    deadline = time.monotonic() + 10
    while numbers.count < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert placed == [0, 1, 2] and numbers.count == 4  # one more is not placed
    assert [next(batches) for _ in range(4)] == [-1, -2, -3, -4]
    with pytest.raises(DecodeError, match="5.jpg"):
        next(batches)
    assert numbers.closed.is_set() and next(batches, None) is None
    assert list(placement.ahead(_Finite(), lambda x: x)) == [0, 1, 2]
    unthreaded = _Finite()
    assert list(placement.ahead(unthreaded, lambda x: x, 0)) == [0, 1, 2]
    assert unthreaded.thread is threading.main_thread() and unthreaded.closed.is_set()


class _Finite(Numbers):
    def __init__(self):
        super().__init__(blocks=False)

    def __next__(self):
        if self.count == 3:
            raise StopIteration
        return super().__next__()


def test_closing_ends_a_thread_that_waits_for_data():
    numbers = Numbers(blocks=True)
    batches = placement.ahead(numbers, lambda x: x)
    assert [next(batches) for _ in range(5)] == [0, 1, 2, 3, 4]
    batches.close()
    assert not numbers.thread.is_alive()


def test_first_rows_of_a_batch_on_the_devices():
    for count in (1, 3, 20):
        first = placement.first_rows(placement.to_devices(ROWS, SHARDING), count)
        jax.tree.map(np.testing.assert_array_equal, first, {k: x[:count] for k, x in ROWS.items()})


def test_to_devices_shards_rows_over_the_mesh():
    arrays = placement.to_devices(ROWS, SHARDING)
    jax.tree.map(np.testing.assert_array_equal, arrays, ROWS)
    assert arrays["image"].sharding == SHARDING
    assert placement.to_devices(arrays, SHARDING)["image"] is arrays["image"]
    assert arrays["image"].addressable_shards[0].data.shape[0] == 8 // len(jax.devices())
