"""Data loading: source -> views -> batches. Batch k is a pure function of (seed, k).

Process p of P reads rows p*B/P to (p+1)*B/P of every global batch of B images, and the random
augmentation of an image depends only on the seed and its row. The pixels of a batch are therefore
independent of the numbers of processes and workers, and the only state of the loader is k. Every
epoch is a new permutation of the data; a batch may span two epochs.
"""

import multiprocessing
import os
import threading
from multiprocessing import connection

import grain
import jax
import numpy as np
from absl import flags

from vit_jax import augment
from vit_jax.errors import UserError

MAX_ROWS = 2**48  # rows of all epochs together


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
      workers: number of worker processes that load and augment images; 0: threads. Processes are
        spawned, so a script needs `if __name__ == "__main__":`.
      threads: number of threads if `workers` is 0.
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
    if balance == "sample":
        rows = grain.MapDataset.range(len(source)).seed(seed).repeat(epochs)
        rows = rows.random_map(_DrawClass(source))
    else:
        rows = grain.MapDataset.source(source).seed(seed).shuffle().repeat(epochs)
    if repeats > 1:
        rows = _Repeated(rows, len(source), len(source) // batch_size * batch_size, repeats)
    weights = class_weights(source) if balance == "loss" else None
    rows = rows.random_map(_TrainRow(view, weights, reports_replaced(source)))
    batches = rows.batch(local)[process_index::process_count][start:]
    if not workers:
        return _Batches(_prefetch(batches, threads), source)
    if not flags.FLAGS.is_parsed():  # in a notebook: grain reads absl flags
        flags.FLAGS.mark_as_parsed()
    # Otherwise, multiprocessing warns of shared memory after a worker was killed.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    # Each worker buffers one batch and prepares the next.
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    batches = iter(batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))
    return _Batches(batches, source)


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
    return train_batches(
        source,
        view,
        seed=config.seed,
        batch_size=config.batch_size,
        start=start,
        repeats=config.augment.repeats,
        balance=config.data.balance,
        workers=config.data.workers,
        threads=config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def eval_batches(source, view, *, batch_size, threads=4, process_index=0, process_count=1):
    """Iterate once over a split, in order: this process's rows of every global batch.

    Every image is in exactly one batch of one process, and all processes get the same number of
    batches.

    Args:
      source: data source with images and labels, see `vit_jax.data`.
      view: function image -> uint8 [s, s, c].
      batch_size: images per global batch, B.
      threads: number of threads that load images.
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
    batches = rows.batch(local)[process_index::process_count]
    return _Batches(_prefetch(batches, threads), source)


def to_devices(batch, sharding):
    """Convert this process's rows, a tree of NumPy arrays, to global JAX arrays."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


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
    """Iterator over batches that reports the images that were replaced."""

    def __init__(self, batches, source):
        self.batches = batches
        self.source = source

    def __iter__(self):
        return self

    def __next__(self):
        rows = next(self.batches)
        replaced = rows.pop("replaced", np.array([], np.int32))
        for i in replaced[replaced >= 0]:
            self.source.report(int(i))
        return rows

    def close(self):
        self.batches.close()


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
    """Replace an index by an image of a random class."""

    def __init__(self, source):
        labels = np.asarray(source.read_labels())
        self.source = source
        self.rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __call__(self, _, rng):
        rows = self.rows[rng.integers(len(self.rows))]
        return self.source[int(rows[rng.integers(len(rows))])]


class _TrainRow:
    def __init__(self, view, weights, replaced):
        self.view, self.weights, self.replaced = view, weights, replaced

    def __setstate__(self, state):
        self.__dict__ = state
        end_with_parent()

    def __call__(self, example, rng):
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


def _prefetch(batches, threads):
    # The buffer size is in batches: one per thread.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(batches.to_iter_dataset(options))


def _local_batch_size(batch_size, process_count):
    if batch_size % process_count:
        raise UserError(
            f"the batch size {batch_size} must be a multiple of the number of processes, "
            f"{process_count}"
        )
    return batch_size // process_count
