"""Data loading: source -> views -> batches. Batch k is a pure function of (seed, k).

Process p of P reads rows p*B/P to (p+1)*B/P of every global batch of B images, and the random
augmentation of an image depends only on the seed and its row. The pixels of a batch are therefore
independent of the numbers of processes, workers and threads, and the only state of the loader is k.
Every epoch is a new permutation of the data; a batch may span two epochs.

Worker processes and threads load chunks of a batch in parallel. One more thread, that of
`placement.ahead`, joins the chunks and copies the batches to the devices, while the main thread
dispatches the steps.
"""

import contextlib
import math
import multiprocessing
import os
import threading
from multiprocessing import connection
from typing import NamedTuple

import grain
import jax
import numpy as np
from absl import flags

from vit_jax import augment
from vit_jax.errors import UserError
from vit_jax.schema import pair

MAX_ROWS = 2**48  # rows of all epochs together
AUTO = -1  # of data.workers and data.threads
SMALL_VIEW = 64  # pixels; below, loading an example from memory takes less than 0.1 ms
RESERVED_CORES = 2  # for the threads that dispatch steps and copy batches, if there are more
MAX_THREADS = 4  # of a process without workers: more would wait for Python's lock
THREADS_PER_WORKER = 2
MIN_IMAGES_FOR_WORKERS = 20_000  # worker processes start in about 10 s
MIN_CHUNK_PIXELS = 2**16  # receiving a chunk from a worker takes 0.6 ms, whatever its size


class Parallelism(NamedTuple):
    """How examples are loaded.

    Attributes:
      workers: number of worker processes; 0: none.
      threads: number of threads, in each worker or, without workers, in this process; 0: the thread
        that asks for a batch loads it.
      chunk: smallest number of rows that are loaded together, unless the batch is smaller.
    """

    workers: int
    threads: int
    chunk: int = 1


def choose_parallelism(cores, rows, view, *, in_memory, accelerator, images=None):
    """Choose the numbers of worker processes and threads.

    Args:
      cores: CPU cores that this process may use.
      rows: rows of a batch that this process loads.
      view: side of the largest view of an image, in pixels.
      in_memory: whether the decoded examples are in memory or will be, see `data.Slice`. Every
        worker would have a copy.
      accelerator: whether the training step runs on accelerators, and not on the same cores.
      images: number of images to load; None: no limit.

    Returns:
      A `Parallelism`.
    """
    if in_memory and view < SMALL_VIEW:
        return Parallelism(0, 0)
    available = max(1, cores - RESERVED_CORES if accelerator else cores)
    few = images is not None and images < MIN_IMAGES_FOR_WORKERS
    if in_memory or few or not accelerator or available <= MAX_THREADS:
        return Parallelism(0, min(available, MAX_THREADS, rows))
    return Parallelism(max(1, min(available, rows) // THREADS_PER_WORKER), THREADS_PER_WORKER)


def available_cores():
    """Return the number of CPU cores that this process may use, with the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = map(int, file.read().split())  # a quota "max" is a ValueError
        cores = min(cores, max(1, quota // period))
    return cores


def train_batches(
    source,
    view,
    *,
    seed,
    batch_size,
    start=0,
    repeats=1,
    balance="none",
    workers=0,
    threads=4,
    chunk=1,
    process_index=0,
    process_count=1,
):
    """Iterate over this process's rows of global batches start, start + 1, ..., indefinitely.

    Args:
      source: data source with images and labels, see `vit_jax.data`.
      view: function (image, rng) -> uint8 [s, s, c], or a dict of several views.
      seed: seed of shuffling and augmentation.
      batch_size: images per global batch, B.
      start: index of the first batch.
      repeats: augmented copies of each image per batch (repeated augmentation, arXiv:1901.09335).
        As in DeiT's sampler, an epoch uses 1 / repeats of the images, a new random subset each
        time; see `data.steps_per_epoch`.
      balance: "none"; "sample", to draw a class and then one of its images, both uniformly and with
        replacement; or "loss", to add "weight", float32 [B/P], the `class_weights` of the labels.
      workers: number of worker processes that load and augment images; 0: none. Processes are
        spawned, so a script needs `if __name__ == "__main__":`.
      threads: number of threads per worker or, without workers, of this process; 0: batches are
        loaded when they are asked for.
      chunk: smallest number of rows that a worker or thread loads together.
      process_index: p.
      process_count: P.

    Returns:
      An iterator over dicts of NumPy arrays {"image": uint8 [B/P, s, s, c], "label": int32 [B/P]}.
      If `view` returns a dict, its keys replace "image". Close the iterator with .close().

    Raises:
      UserError: if the batch is not divisible by the number of processes.
    """
    local = _local_batch_size(batch_size, process_count)
    # Bounded, because the length of an infinite dataset overflows in grain if batches are small.
    epochs = MAX_ROWS // len(source)
    rows = grain.MapDataset.range(len(source)).seed(seed)
    if balance == "sample":
        rows = rows.repeat(epochs).random_map(_DrawClass(source))
    else:
        rows = rows.shuffle().repeat(epochs)
    if repeats > 1:
        rows = _Repeated(rows, len(source), len(source) // batch_size * batch_size, repeats)
    weights = class_weights(source) if balance == "loss" else None
    rows = rows.random_map(_TrainRow(source, view, weights, reports_replaced(source)))
    parallelism = Parallelism(workers, threads, chunk)
    return _Batches(rows, source, local, process_index, process_count, parallelism, start)


def class_weights(source):
    """Return the weight of each class in the loss, float32 [k]: 1 / its number of images.

    Normalized to a mean of 1 over the images. Classes without images have the weight 0.
    """
    counts = np.bincount(source.read_labels(), minlength=source.num_classes)
    inverse = np.divide(1.0, counts, where=counts > 0, out=np.zeros(len(counts)))
    return (inverse * (counts.sum() / (counts > 0).sum())).astype(np.float32)


def from_config(source, config, start=0):
    """Return the `train_batches` of a config for this process."""
    view, _ = augment.transforms(config)
    parallelism = parallelism_of(source, config, config.batch_size)
    return train_batches(
        source,
        view,
        seed=config.seed,
        batch_size=config.batch_size,
        start=start,
        repeats=config.augment.repeats,
        balance=config.data.balance,
        **parallelism._asdict(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def eval_from_config(source, config, batch_size):
    """Return the `eval_batches` of a config for this process."""
    _, view = augment.transforms(config)
    parallelism = parallelism_of(source, config, batch_size, len(source))
    return eval_batches(
        source,
        view,
        batch_size=batch_size,
        **parallelism._asdict(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def parallelism_of(source, config, batch_size, images=None):
    """Return the `Parallelism` that a config sets, or that is chosen for this host.

    Args:
      source: the `data.Slice` to load.
      config: the run's config.
      batch_size: images per global batch.
      images: number of images to load; None: no limit.
    """
    workers, threads = config.data.workers, config.data.threads
    height, width = pair(config.model.image)
    chosen = choose_parallelism(
        available_cores(),
        max(1, batch_size // jax.process_count()),
        max(height, width),
        in_memory=source.in_memory,
        accelerator=jax.default_backend() != "cpu",
        images=images and images // jax.process_count(),
    )
    if workers == AUTO:
        workers = chosen.workers if threads == AUTO else 0
    if threads == AUTO:
        threads = THREADS_PER_WORKER if workers else chosen.threads
    return Parallelism(workers, threads, math.ceil(MIN_CHUNK_PIXELS / (height * width)))


def eval_batches(
    source, view, *, batch_size, workers=0, threads=4, chunk=1, process_index=0, process_count=1
):
    """Iterate once over a split, in order: this process's rows of every global batch.

    Every image is in exactly one batch of one process, and all processes get the same number of
    batches.

    Args:
      source: data source with images and labels, see `vit_jax.data`.
      view: function image -> uint8 [s, s, c].
      batch_size: images per global batch, B.
      workers: number of worker processes, see `train_batches`.
      threads: number of threads, see `train_batches`.
      chunk: number of rows, see `train_batches`.
      process_index: p.
      process_count: P.

    Returns:
      An iterator over dicts of NumPy arrays {"image": uint8 [B/P, s, s, c], "label": int32 [B/P],
      "mask": bool [B/P]}. The mask is False for the zero images that pad the last batch. Call
      .close() to stop before the end.

    Raises:
      UserError: if the batch is not divisible by the number of processes.
    """
    local = _local_batch_size(batch_size, process_count)
    padded = -(-len(source) // batch_size) * batch_size
    rows = grain.MapDataset.range(padded).map(_EvalRow(source, view, reports_replaced(source)))
    parallelism = Parallelism(workers, threads, chunk)
    return _Batches(rows, source, local, process_index, process_count, parallelism)


def end_with_parent():
    """End this worker process when its parent ends, even if the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None and threading.current_thread() is threading.main_thread():
        sentinel = [parent.sentinel]
        watch = threading.Thread(target=lambda: connection.wait(sentinel) and os._exit(1))
        watch.daemon = True
        watch.start()


def reports_replaced(source):
    """Return whether unreadable images of a source are replaced, see `data.Slice`."""
    return getattr(source, "on_error", "raise") == "skip"


class _Batches:
    """Iterator over the batches of this process, in NumPy.

    Reports the images that were replaced.

    Args:
      rows: grain.MapDataset of the rows of all global batches.
      source: the data source, for reports.
      local: rows per batch of this process.
      index: index of this process.
      count: number of processes.
      parallelism: a `Parallelism`.
      start: index of the first batch.
    """

    def __init__(self, rows, source, local, index, count, parallelism, start=0):
        workers, threads, chunk = parallelism
        self.loads_in_background = bool(workers or threads)
        self.source = source
        # One chunk or more for each thread, all of the same size, unless they would be too small.
        wanted = max(1, min(local // chunk, max(1, workers) * max(1, threads)))
        self.chunks = next(n for n in range(wanted, local + 1) if local % n == 0)
        chunks = _Local(rows.batch(local // self.chunks), self.chunks, index, count)
        chunks = chunks[start * self.chunks :]
        buffer = threads if workers else max(self.chunks, threads)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        chunks = chunks.to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # in a notebook: grain reads absl flags
                flags.FLAGS.mark_as_parsed()
            # Otherwise, multiprocessing warns of shared memory after a worker was killed.
            os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
            chunks = chunks.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        self.iterator = iter(chunks)

    def __iter__(self):
        return self

    def __next__(self):
        chunks = [next(self.iterator) for _ in range(self.chunks)]
        rows = chunks[0]
        if len(chunks) > 1:
            rows = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in rows}
        replaced = rows.pop("replaced", np.array([], np.int32))
        for i in replaced[replaced >= 0]:
            self.source.report(int(i))
        return rows

    def close(self):
        self.iterator.close()


class _Local(grain.MapDataset):
    """The chunks of one of `processes`: each global batch has `chunks` chunks per process."""

    def __init__(self, parent, chunks, index, processes):
        super().__init__(parent)
        self.chunks, self.index, self.processes = chunks, index, processes

    def __len__(self):
        return len(self._parent) // self.processes

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, chunk = divmod(index, self.chunks)
        return self._parent[(batch * self.processes + self.index) * self.chunks + chunk]


class _Repeated(grain.MapDataset):
    """Repeat each row `repeats` times. An epoch of `length` rows uses only its first images."""

    def __init__(self, parent, size, length, repeats):
        super().__init__(parent)
        self.size, self.length, self.repeats = size, length, repeats

    def __len__(self):
        return len(self._parent)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        epoch, row = divmod(index, self.length)
        return self._parent[epoch * self.size + row // self.repeats]


class _DrawClass:
    """Replace an index by that of an image of a random class."""

    def __init__(self, source):
        labels = np.asarray(source.read_labels())
        self.rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __call__(self, _, rng):
        rows = self.rows[rng.integers(len(self.rows))]
        return int(rows[rng.integers(len(rows))])


class _TrainRow:
    def __init__(self, source, view, weights, replaced):
        self.source, self.view, self.weights, self.replaced = source, view, weights, replaced

    def __setstate__(self, state):
        self.__dict__ = state
        end_with_parent()

    def __call__(self, i, rng):
        example = self.source[i]
        view = self.view(example["image"], rng)
        row = view if isinstance(view, dict) else {"image": view}
        row["label"] = np.int32(example["label"])
        if self.weights is not None:
            row["weight"] = self.weights[row["label"]]
        if self.replaced:
            row["replaced"] = np.int32(example.get("replaced", -1))
        return row


class _EvalRow:
    def __init__(self, source, view, replaced):
        self.source, self.view, self.replaced = source, view, replaced

    def __setstate__(self, state):
        self.__dict__ = state
        end_with_parent()

    def __call__(self, i):
        padding = i >= len(self.source)
        example = self.source[0 if padding else i]
        image = self.view(example["image"])
        row = {"image": image, "label": np.int32(example["label"]), "mask": np.bool_(True)}
        if padding:
            row = {"image": np.zeros_like(image), "label": np.int32(0), "mask": np.bool_(False)}
        if self.replaced:
            row["replaced"] = np.int32(-1 if padding else example.get("replaced", -1))
        return row


def _local_batch_size(batch_size, process_count):
    if batch_size % process_count:
        raise UserError(
            f"the batch size {batch_size} must be a multiple of the number of processes, "
            f"{process_count}"
        )
    return batch_size // process_count
