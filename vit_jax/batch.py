"""Source -> views -> batches. Batch k is a pure function of (seed, k).

Process p of P reads rows p*B/P to (p+1)*B/P of every global batch of B, and the views' randomness
belongs to the row, so neither the number of processes nor of workers changes a pixel. The only
state is k. A pass over the data is a new permutation; batches run across the ends of passes.
"""

import grain
import jax
import numpy as np
from absl import flags

from vit_jax import augment
from vit_jax.errors import UserError


def train_batches(
    source,
    view,
    *,
    seed,
    batch_size,
    start=0,
    repeats=1,
    workers=0,
    threads=4,
    process_index=0,
    process_count=1,
):
    """Iterator over this process's rows of global batches start, start + 1, ... without end.

    Args:
      source: images and labels, as in `data.sources`.
      view: function (image, rng) -> uint8 [s, s, c], or a dict of several views.
      seed: of shuffling and augmentation.
      batch_size: images per global batch, B.
      start: number of the first batch.
      repeats: augmented copies of each image per batch (repeated augmentation, arXiv:1901.09335).
        A pass has as many batches as without: it takes 1 / repeats of the images, drawn anew for
        each pass, as DeiT's sampler does.
      workers: processes that read and augment. They are spawned, so a script needs
        `if __name__ == "__main__":`; with 0, `threads` threads do it.
      process_index, process_count: p and P.

    Returns:
      An iterator of numpy {"image": uint8 [B/P, s, s, c], "label": int32 [B/P]}, with the keys of
      the dict in place of "image". Call .close() at the end.

    Raises:
      UserError: if the batch is larger than the split or does not divide over the processes.
    """
    local = _local_size(batch_size, process_count)
    if len(source) < batch_size:
        raise UserError(
            f"the training split has {len(source)} images, config.batch_size is {batch_size}: "
            f"set config.batch_size to {len(source)} or less"
        )
    rows = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
    rows = _Repeated(rows, len(source), repeats) if repeats > 1 else rows
    rows = rows.random_map(_TrainRow(view))
    batches = rows.batch(local)[process_index::process_count][start:]
    if not workers:
        return _read(batches, threads)
    if not flags.FLAGS.is_parsed():  # a notebook; grain reads its own flags
        flags.FLAGS.mark_as_parsed()
    # Each worker has a batch in the making and one ready.
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    return iter(batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))


def from_config(source, config, start=0):
    """The `train_batches` of a config, for this process."""
    view, _ = augment.transforms(config)
    return train_batches(
        source,
        view,
        seed=config.seed,
        batch_size=config.batch_size,
        start=start,
        repeats=config.augment.repeats,
        workers=config.data.workers,
        threads=config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def eval_batches(source, view, *, batch_size, threads=4, process_index=0, process_count=1):
    """Iterator over this process's rows of every global batch of one pass, in order.

    view(image) -> uint8 [s, s, c]. Yields numpy dicts as train_batches, with "mask", bool [B/P]:
    False in the black rows that fill up the last batch. Every image is in exactly one batch of one
    process, and all processes get the same number of batches. Close it if you leave early.
    """
    local = _local_size(batch_size, process_count)
    padded = -(-len(source) // batch_size) * batch_size
    rows = grain.MapDataset.range(padded).map(_EvalRow(source, view))
    return _read(rows.batch(local)[process_index::process_count], threads)


def to_devices(batch, sharding):
    """This process's rows, a tree of numpy arrays -> global jax arrays with that sharding."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


class _Repeated(grain.MapDataset):
    """Rows of the first images of each pass of `length`, each `repeats` times."""

    def __init__(self, parent, length, repeats):
        super().__init__(parent)
        self.length, self.repeats = length, repeats

    def __len__(self):
        return len(self._parent)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        epoch, row = divmod(index, self.length)
        return self._parent[epoch * self.length + row // self.repeats]


class _TrainRow:
    def __init__(self, view):
        self.view = view

    def __call__(self, example, rng):
        view = self.view(example["image"], rng)
        views = view if isinstance(view, dict) else {"image": view}
        return views | {"label": np.int32(example["label"])}


class _EvalRow:
    def __init__(self, source, view):
        self.source, self.view = source, view

    def __call__(self, i):
        real = i < len(self.source)
        example = self.source[i if real else 0]
        image = self.view(example["image"])
        if not real:
            return {"image": np.zeros_like(image), "label": np.int32(0), "mask": np.bool_(False)}
        return {"image": image, "label": np.int32(example["label"]), "mask": np.bool_(True)}


def _read(batches, threads):
    # The buffer counts batches: one a thread.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(batches.to_iter_dataset(options))


def _local_size(batch_size, process_count):
    if batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} images does not divide over {process_count} processes; "
            f"make it a multiple of {process_count}"
        )
    return batch_size // process_count
