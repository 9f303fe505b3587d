"""Verified checkpoints. Saves with Orbax in the background; keeps the latest and the best.

workdir/checkpoints/<step>/ has two items: `model` (params and extra), which is sufficient for
evaluation and inference, and `optimizer` (step, opt_state and bad), which is also needed to resume.
A manifest describes both; see `manifest.py`. A save has five stages, each a method:

* `_write_arrays`: Orbax writes the arrays to <step>.saving;
* `_verify_written`: every process reads back the blocks that it owns, and compares their checksums
  with those that were computed on the devices;
* `_write_manifest`;
* `_commit`: <step>.saving is renamed to <step>;
* `_delete_old`: checkpoints that are not kept any more are deleted.
"""

import functools
import json
import logging
import math
import shutil
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from vit_jax.errors import Diverged, NoSpace, UserError, WorkdirLost, printable
from vit_jax.workdir import checksum, manifest, readback, storage
from vit_jax.workdir.manifest import Damaged

PEER_SECONDS = 600  # wait for the other processes
SPACE_FACTOR = 1.1  # free space needed, relative to the size of the arrays
ITEMS = ("model", "optimizer")


class Checkpoints:
    """The checkpoints of a run. Use it as a context manager.

    Reading changes nothing. Nothing is created before the first save.

    Args:
      workdir: directory of the run.
      keep: number of latest checkpoints to keep, in addition to the best one.
      metric: name of the metric that determines the best checkpoint; larger is better.
      record: for saving: {"config", "data", ...}, stored in the manifests.
      owner: for saving: the `Owner` of the workdir; None: not checked.
      say: function called with warnings.

    Attributes:
      saved: step of the latest checkpoint that was saved or restored by this object and verified;
        0: none.
    """

    def __init__(
        self, workdir, *, keep=2, metric="eval/val/acc1", record=None, owner=None, say=print
    ):
        self.workdir = workdir
        self.folder = storage.resolve(workdir) / "checkpoints"
        self.keep = keep
        self.metric = metric
        self.record = {"config": {}, "data": {}} | (record or {})
        self.owner = owner
        self.say = say
        self.saved = 0
        self._in_bucket = storage.is_bucket(self.folder)
        self._primary = jax.process_index() == 0
        self._writer = None  # an Orbax checkpointer, created by the first save
        self._thread = None
        self._saving = None  # step
        self._error = None  # why the latest save failed
        self._failed = None  # step of a save that failed

    def steps(self):
        """Return the steps of the checkpoints, in order. They may be damaged."""
        return manifest.steps(self.folder)

    def verify(self, step):
        """Compare all files of a checkpoint with its manifest.

        Args:
          step: step of the checkpoint.

        Returns:
          The manifest.

        Raises:
          Damaged: if it does not verify.
        """
        return manifest.check(self.folder / str(step), step)

    def best(self):
        """Return (step, metric) of the best checkpoint, the later one in a tie, or None.

        Raises:
          Damaged: if a manifest is damaged, so that the best checkpoint is not known.
        """
        scores = []
        for step in self.steps():
            try:
                metrics = manifest.read(self.folder / str(step), step)["metrics"]
            except Damaged as error:
                raise Damaged(f"step {step:,}: {error}") from None
            if self.metric in metrics:
                scores.append((metrics[self.metric], step))
        return max(scores)[::-1] if scores else None

    def preempted(self):
        """Return the message of a run that was interrupted."""
        what = f"saved a checkpoint at step {self.saved:,}" if self.saved else "nothing to save"
        return f"preempted: {what}; rerun the same command to resume"

    def restore_latest(self, abstract):
        """Restore the latest checkpoint that verifies, and set damaged ones aside.

        Called once, before training, in all processes. Removes what interrupted saves left.

        Args:
          abstract: a TrainState of ShapeDtypeStructs with the target shardings.

        Returns:
          (step, state); (0, None) if the run has no checkpoint.

        Raises:
          UserError: if there are checkpoints and none verifies, or if they are of another model.
        """
        damaged = {}
        self._on_primary(self._clean)
        while True:
            step = self._broadcast(self._find_candidate(damaged) if self._primary else 0)
            if not step:
                break
            problem = None
            try:
                state = self._restore_state(abstract, step)
            except Damaged as error:
                problem = str(error)
            if self._broadcast(int(problem is None)) and problem is None:
                self.saved = step
                self._on_primary(lambda: self._check_manifests(damaged))
                for old, problem in damaged.items():
                    self.set_aside(old, problem)
                self._broadcast(0)  # the others do not read before they are renamed
                return step, state
            damaged[step] = problem or "another process could not read it"
        aside = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []
        aside = sorted(name for name in aside if name.endswith(manifest.DAMAGED))
        if damaged or aside:
            step, problem = max(damaged.items(), default=(aside[-1:], "it was set aside"))
            what = f"step {step:,}: {problem}" if damaged else f"{', '.join(aside)}"
            raise UserError(
                f"no checkpoint in {printable(self.folder)} verifies ({printable(what)}); restore "
                "one from a copy, or pass another --workdir to start again"
            )
        return 0, None

    def restore_model(self, params, extra, step):
        """Restore the model of the checkpoint at `step`, without the optimizer state.

        Args:
          params: pytree of ShapeDtypeStructs with the target shardings.
          extra: pytree of ShapeDtypeStructs with the target shardings.
          step: step of the checkpoint.

        Returns:
          params, extra.

        Raises:
          Damaged: if the checkpoint does not verify.
          UserError: if it is of another model.
        """
        tree = {"model": {"params": params, "extra": extra}}
        found = manifest.check(self.folder / str(step), step, items=("model",))
        model = self._restore(step, tree, found)["model"]
        return model["params"], model["extra"]

    def set_aside(self, step, problem):
        """Rename a damaged checkpoint, and say which one is used instead."""
        if not self._primary:
            return
        path = self.folder / f"{step}{manifest.DAMAGED}"
        count = 1
        while path.exists():
            count += 1
            path = self.folder / f"{step}-{count}{manifest.DAMAGED}"
        (self.folder / str(step)).rename(path)
        self.say(
            f"warning: the checkpoint of step {step:,} is damaged: {printable(problem)}. It is now "
            f"{path.name}; using step {self.saved:,} instead"
        )

    @functools.partial(jax.profiler.annotate_function, name="save")
    def save(self, step, state, metrics=(), *, pending=False):
        """Save a TrainState in the background. Does nothing if it is saved already.

        Returns once the state is copied. If saving fails, `wait` or the next save says so, and
        removes what was written. A run with several processes then cannot go on.

        Args:
          step: number of completed optimizer steps.
          state: the `TrainState`.
          metrics: evaluation metrics of this state, as a dict; () if it was not evaluated.
          pending: whether an evaluation that was due has not been done.

        Raises:
          Diverged: if an array is not finite.
          WorkdirLost: if the workdir is not this process's any more.
          UserError: if saving failed and the run has several processes.
        """
        self.wait()
        if step == self.saved:
            return
        if self._error is not None and self._primary:
            self._remove_failed(self._failed)
        self._error = None
        tree = _items(state)
        names, leaves = _flatten(tree)
        sums, finite = checksum.of_tree(tree)
        if not finite.all():
            name = names[int(np.argmin(finite))]
            raise Diverged(
                f"{name} is not finite at step {step:,}, which is therefore not saved; the latest "
                f"checkpoint is step {self.saved:,}"
            )
        arrays = {
            name: {"shape": list(x.shape), "dtype": str(x.dtype), "sum": int(total)}
            for name, x, total in zip(names, leaves, sums, strict=True)
        }
        problem = None
        if self._primary:
            self._check_owner()
            problem = self._check_space(sum(x.nbytes for x in leaves))
        if self._broadcast(int(problem is not None)):
            self._fail(step, problem or NoSpace("no space left"))
            return
        owned = {name: readback.owned_blocks(x) for name, x in zip(names, leaves, strict=True)}
        facts = dict(step=step, metrics=dict(metrics), pending=pending, arrays=arrays)
        try:
            self._write_arrays(step, tree)
        except Exception as error:
            self._fail(step, error)
            return
        self._saving = step
        self._thread = threading.Thread(
            target=self._finish, args=(step, owned, facts), name="checkpoint", daemon=True
        )
        self._thread.start()

    def save_now(self, step, state, metrics=(), *, pending=False):
        """Save a TrainState, and return when it is verified.

        Raises:
          NoSpace: if the disk is full.
          UserError: if it cannot be saved for another reason.
        """
        self.save(step, state, metrics, pending=pending)
        self.wait()
        if self.saved != step:
            error = self._error
            latest = f"the latest checkpoint is step {self.saved:,}" if self.saved else "none is"
            kind = NoSpace if storage.full_disk(error) else UserError
            raise kind(
                f"the checkpoint of step {step:,} could not be saved ({_reason(error)}); {latest}. "
                "Mend the cause and rerun the same command to resume"
            )

    def set_metrics(self, step, metrics):
        """Store the metrics of a checkpoint whose evaluation was pending."""
        self.wait()
        if self._primary and step == self.saved:
            directory = self.folder / str(step)
            facts = manifest.read(directory, step) | {"metrics": dict(metrics), "pending": False}
            manifest.write(directory, **facts)

    def is_pending(self, step):
        """Return whether an evaluation at the step of a checkpoint was interrupted."""
        pending = self._primary and manifest.read(self.folder / str(step), step)["pending"]
        return bool(self._broadcast(int(pending)))

    def wait(self):
        """Wait until the latest save has ended. Warns if it failed.

        Raises:
          WorkdirLost: if the workdir is not this process's any more.
          UserError: if saving failed and the run has several processes.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, step, self._saving = None, self._saving, None
        if self._broadcast(int(self._error is not None)) or self._error:
            self._fail(step, self._error or RuntimeError("it failed in process 0"))
        else:
            self.saved = step

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and jax.process_count() > 1:
            return  # the background save may wait for a process that has ended
        if self._thread is not None:
            self._thread.join()
        if self._writer is not None:
            self._writer.close()
        if self._failed and self._primary:
            self._remove_failed(self._failed)

    # The stages of a save.

    def _write_arrays(self, step, tree):
        """Start to write the arrays; returns once they are copied."""
        if self._writer is None:
            _silence_libraries()
            self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        if self._primary:
            self.folder.mkdir(parents=True, exist_ok=True)
        args = {name: ocp.args.StandardSave(tree[name]) for name in ITEMS}
        self._writer.save(self._target(step), args=ocp.args.Composite(**args), force=True)

    def _finish(self, step, owned, facts):
        """Complete a save, in a thread of its own."""
        try:
            self._writer.wait_until_finished()
            files = self._verify_written(step, owned, facts["arrays"])
            if self._primary:
                self._write_manifest(step, facts, files)
                self._check_owner()
                self._commit(step)
                self._delete_old(step)
        except BaseException as error:  # `wait` reports it in the main thread
            self._error = error

    @functools.partial(jax.profiler.annotate_function, name="verify checkpoint")
    def _verify_written(self, step, owned, arrays):
        """Read back what this process wrote. Returns the descriptions of all files in process 0.

        Raises:
          Damaged: if an array differs from that on the devices.
        """
        directory = self._target(step)
        index, count = jax.process_index(), jax.process_count()
        deadline = time.monotonic() + PEER_SECONDS
        while not (directory / ITEMS[-1] / "_METADATA").exists():  # process 0 completes the save
            if not index or time.monotonic() > deadline:
                raise FileNotFoundError(f"{directory} was removed")
            time.sleep(0.1)
        names = manifest.list_files(directory)
        part = {
            "sums": {
                name: readback.checksum_of(directory, name, arrays[name], blocks)
                for name, blocks in owned.items()
                if blocks
            },
            "files": {
                name: manifest.describe(directory / name)
                for name in names
                if _owner_of(name, count) == index
            },
        }
        if index:
            (directory / manifest.PARTS).mkdir(exist_ok=True)
            storage.write_json(directory / manifest.PARTS / f"{index}.json", part)
            return None
        parts = [part]
        for i in range(1, count):
            path = directory / manifest.PARTS / f"{i}.json"
            while not path.exists():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"process {i} did not read back its arrays")
                time.sleep(0.1)
            parts.append(json.loads(path.read_text()))
        if count > 1:
            _remove(directory / manifest.PARTS)
        for name, array in arrays.items():
            total = sum(part["sums"].get(name, 0) for part in parts) % 2**32
            if total != array["sum"]:
                raise Damaged(f"{name} was not written as it is on the devices")
        return {name: facts for part in parts for name, facts in part["files"].items()}

    def _write_manifest(self, step, facts, files):
        manifest.write(self._target(step), **facts, files=files, **self.record)

    def _commit(self, step):
        if not self._in_bucket:
            self._target(step).rename(self.folder / str(step))
            storage.sync_directory(self.folder)

    def _delete_old(self, step):
        """Delete the checkpoints that are neither among the latest nor the best."""
        scores = []
        for old in self.steps():
            try:
                metrics = manifest.read(self.folder / str(old), old)["metrics"]
                scores.append((metrics.get(self.metric, -math.inf), old))
            except Damaged:
                continue
        best = max(scores)
        kept = {old for _, old in sorted(scores, key=lambda pair: pair[1])[-self.keep :]}
        kept |= {step} | ({best[1]} if best[0] > -math.inf else set())
        for _, old in scores:
            if old not in kept:
                self._delete(old)

    # Helpers of saving.

    def _target(self, step):
        """Return the directory that a checkpoint is written to."""
        return self.folder / (str(step) if self._in_bucket else f"{step}{manifest.SAVING}")

    def _delete(self, step):
        directory = self.folder / str(step)
        if self._in_bucket:
            (directory / manifest.NAME).unlink()  # from here on it is no checkpoint
        else:
            directory = directory.rename(self.folder / f"{step}{manifest.DELETING}")
        _remove(directory)

    def _check_owner(self):
        if self.owner is not None:
            self.owner.check()

    def _check_space(self, num_bytes):
        """Return what is wrong if a checkpoint does not fit on the disk, else None."""
        if self._in_bucket:
            return None
        parent = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(parent).free
        needed = int(SPACE_FACTOR * num_bytes)
        if free >= needed:
            return None
        return NoSpace(f"no space left: {needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free")

    def _fail(self, step, error):
        """Clean up after a failed save, and warn."""
        self._error, self._failed = error, step
        if isinstance(error, WorkdirLost):
            raise error
        self._writer = None  # Orbax's checkpointer may not be usable after an error
        if self._primary:
            self._check_owner()
            self._remove_failed(step)
        message = f"could not save the checkpoint of step {step:,} ({_reason(error)})"
        if jax.process_count() > 1:
            kind = NoSpace if storage.full_disk(error) else UserError
            raise kind(f"{message}; mend the cause and rerun the same command to resume")
        self.say(f"warning: {message}; trying again at the next one")

    def _remove_failed(self, step):
        """Remove what a failed save left. Threads of Orbax may write more, so it is repeated."""
        paths = [path for path in self._temporaries() if manifest.DELETING not in path.name]
        for path in {self._target(step), *paths}:
            if path.exists() and not (path / manifest.NAME).exists():
                _remove(path)

    def _temporaries(self):
        """Return the directories that interrupted saves and deletions left."""
        if not self.folder.is_dir():
            return []
        return [p for p in self.folder.iterdir() if manifest.TEMPORARY.fullmatch(p.name)]

    # Helpers of restoring.

    def _clean(self):
        """Remove what interrupted saves and deletions left."""
        self._check_owner()
        unfinished = self._temporaries()
        if self._in_bucket:
            unfinished += [
                self.folder / str(step)
                for step in self.steps()
                if not (self.folder / str(step) / manifest.NAME).exists()
            ]
        for path in unfinished:
            _remove(path)

    def _find_candidate(self, damaged):
        """Return the latest step whose files verify, or 0; adds the others to `damaged`."""
        for step in reversed(self.steps()):
            if step not in damaged:
                try:
                    self.verify(step)
                    return step
                except Damaged as error:
                    damaged[step] = str(error)
        return 0

    def _check_manifests(self, damaged):
        """Add the checkpoints with a damaged manifest to `damaged`: the best would be unknown."""
        for step in self.steps():
            try:
                manifest.read(self.folder / str(step), step)
            except Damaged as error:
                damaged.setdefault(step, str(error))

    def _restore_state(self, abstract, step):
        state = abstract._replace(**dict.fromkeys(abstract._fields))
        found = manifest.read(self.folder / str(step), step)  # process 0 has checked the files
        items = self._restore(step, _items(abstract), found)
        return state._replace(**items["model"], **items["optimizer"])

    def _restore(self, step, tree, found):
        """Restore items of a checkpoint whose files were checked, and check the arrays.

        The files are checked first, because tensorstore prints tracebacks for damaged ones.

        Args:
          step: step of the checkpoint.
          tree: {name of an item: tree of ShapeDtypeStructs}.
          found: the manifest.

        Raises:
          Damaged: if an array cannot be read or does not match its checksum.
          UserError: if the arrays have other names, shapes or dtypes.
        """
        directory = self.folder / str(step)
        names, leaves = _flatten(tree)
        self._check_arrays(step, found["arrays"], dict(zip(names, leaves, strict=True)), tree)
        args = {name: ocp.args.StandardRestore(value) for name, value in tree.items()}
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                restored = reader.restore(directory, args=ocp.args.Composite(**args))
        except Exception as error:  # of many types
            raise Damaged(f"it cannot be read: {_reason(error)}") from error
        restored = {name: restored[name] for name in tree}
        sums, _ = checksum.of_tree(restored)
        wrong = [n for n, x in zip(names, sums, strict=True) if x != found["arrays"][n]["sum"]]
        if wrong:
            raise Damaged(f"{wrong[0]} does not match its checksum")
        return restored

    def _check_arrays(self, step, found, expected, tree):
        """Raise UserError if a checkpoint has other arrays than a tree."""
        found = {name: x for name, x in found.items() if name.split("/")[0] in tree}
        theirs = {name: f"{x['dtype']} {x['shape']}" for name, x in found.items()}
        ours = {name: f"{x.dtype} {list(x.shape)}" for name, x in expected.items()}
        for name in sorted(theirs.keys() | ours.keys()):
            if ours.get(name) != theirs.get(name):
                raise UserError(
                    f"the checkpoint of step {step:,} in {printable(self.workdir)} is of another "
                    f"model or version: {name} is {theirs.get(name, 'missing')}, expected "
                    f"{ours.get(name, 'none')}; pass another --workdir, or use the version that "
                    "saved it"
                )

    def _on_primary(self, function):
        if self._primary:
            function()

    @staticmethod
    def _broadcast(value):
        """Return an integer of process 0 in all processes."""
        if jax.process_count() == 1:
            return value
        return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@functools.cache
def _silence_libraries():
    """Leave it to `Checkpoints` to report errors, in one line.

    Otherwise, Orbax logs the tracebacks of its threads, asyncio those of tasks that were given up,
    and tensorstore prints those of results that come after an error.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
    hook = sys.excepthook

    def excepthook(kind, error, traceback):
        if str(error) != "Event loop is closed":
            hook(kind, error, traceback)

    sys.excepthook = excepthook


def _items(state):
    """Return the items of a checkpoint as a tree of the arrays of a TrainState."""
    optimizer = {"step": state.step, "opt_state": state.opt_state, "bad": state.bad}
    return {"model": {"params": state.params, "extra": state.extra}, "optimizer": optimizer}


def _flatten(tree):
    """Return the names of the leaves of a tree, such as "model/params/head/kernel"; the leaves."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs]
    return names, [leaf for _, leaf in pairs]


def _owner_of(name, count):
    """Return the process that describes a file: the one that wrote it, or process 0."""
    _, _, rest = name.partition("ocdbt.process_")
    index = int(rest.partition("/")[0]) if rest.partition("/")[0].isdigit() else 0
    return index if index < count else 0


def _remove(path):
    """Remove a directory in which another process may also remove files."""
    if "://" in str(path):
        path.rmtree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _reason(error):
    """Return the message of an error as one short line."""
    if storage.full_disk(error) and not isinstance(error, NoSpace):
        return "no space left on the disk"
    text = " ".join(str(error).partition("; free some space")[0].split())
    return printable(text[:200] or type(error).__name__)
