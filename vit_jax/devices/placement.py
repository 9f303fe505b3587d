"""Batches on the devices: global arrays from the rows of each process, ahead of the steps."""

import contextlib
import queue
import threading

import jax
import numpy as np

BATCHES_AHEAD = 2  # on the devices, before the step that uses them
CLOSE_SECONDS = 5  # to wait for the thread of `ahead`, which may be in a read that does not return


def num_ahead(batches):
    """Return for `ahead` how many of the `batch.train_batches` to place before they are needed.

    Loading small images from memory on the cores that run the steps gains nothing: with a thread,
    the quick start is 8% slower.
    """
    return (
        0 if jax.default_backend() == "cpu" and not batches.loads_in_background else BATCHES_AHEAD
    )


def ahead(batches, place, size=BATCHES_AHEAD):
    """Iterate over place(batch) for each batch. A thread calls it `size` batches ahead.

    Args:
      batches: iterator with a method `close`, which only the thread uses.
      place: function of a batch, such as `to_devices`.
      size: number of placed batches before the one that was last returned; 0: no thread.

    Returns:
      A generator. It starts the thread at the first batch and raises the errors of the thread. Its
      .close() ends the thread and closes `batches`.
    """
    if not size:
        with contextlib.closing(batches):
            yield from map(place, batches)
        return
    free = threading.Semaphore(size)
    placed = queue.SimpleQueue()
    closed = threading.Event()

    def fill():
        try:
            for batch in batches:
                free.acquire()
                if closed.is_set():
                    return
                placed.put((place(batch), None))
                del batch
            placed.put((None, None))
        except BaseException as error:
            placed.put((None, error))

    thread = threading.Thread(target=fill, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = placed.get()
            if error is not None:
                raise error
            if batch is None:
                return
            free.release()
            yield batch
            del batch
    finally:
        closed.set()
        free.release()
        batches.close()  # ends a wait for a chunk
        thread.join(CLOSE_SECONDS)


def to_devices(batch, sharding):
    """Convert this process's rows, a tree of arrays, to global JAX arrays.

    Arrays that are on the devices already are returned unchanged.
    """

    def place(x):
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(place, batch)


def first_rows(batch, count):
    """Return at most the first `count` of this process's rows of a batch, in NumPy."""

    def fetch(x):
        if isinstance(x, np.ndarray):
            return x[:count]
        shards = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
        rows, missing = [], count
        for _, shard in sorted(shards.items()):
            rows.append(np.asarray(shard.data)[:missing])
            missing -= len(rows[-1])
            if not missing:
                break
        return np.concatenate(rows)

    return jax.tree.map(fetch, batch)
