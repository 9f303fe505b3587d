"""Recipe with faults: that of configs/NAME.py, and the fault in the environment variable FAULT.

python -m vit_jax.train --config=tests/faults/injected.py:digits --workdir=W

FAULT is JSON. A recipe is Python, so it can replace functions of the library before training; the
command, the config and all other code are those of a run without a fault. Keys:
  read: {"split", "after", "seconds", "marker"}: reads of the split after the first `after` ones
    sleep; the file `marker` is created before the first such read.
  nan_loss: [first, last]: the loss of these training steps is NaN.
  poison: {"part", "step", "value", "marker"}: before this training step, the first array of a part
    of the TrainState is set to the value, unless the file `marker` exists. It is then created.
  crash: {"point", "save"}: the process ends at a point of its save number `save`, from 1.
"""

import importlib
import json
import os
import time
from pathlib import Path

# Points of a save: before or after a stage of `Checkpoints`.
CRASH_POINTS = {
    "save_started": ("_write_arrays", "before"),
    "arrays_written": ("_verify_written", "before"),
    "files_verified": ("_verify_written", "after"),
    "manifest_written": ("_write_manifest", "after"),
    "committed": ("_commit", "after"),
    "old_deleted": ("_delete_old", "after"),
}
CRASH_CODE = 137  # that of SIGKILL, in shells


def get_config(name):
    fault = json.loads(os.environ.get("FAULT", "{}"))
    for kind, value in fault.items():
        KINDS[kind](value)
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.cache = False
    return config


def slow_reads(fault):
    from vit_jax import data

    read = data.Slice.__getitem__
    count = 0

    def slow(self, i):
        nonlocal count
        count += self.name == fault["split"]
        if self.name == fault["split"] and count > fault["after"]:
            Path(fault["marker"]).touch()
            time.sleep(fault["seconds"])
        return read(self, i)

    data.Slice.__getitem__ = slow


def nan_loss(steps):
    import jax.numpy as jnp

    from vit_jax import objectives

    make = objectives.make

    def make_bad(*args):
        objective = make(*args)

        def loss(params, extra, batch, rng, step):
            value, aux = objective.loss(params, extra, batch, rng, step)
            bad = (steps[0] <= step + 1) & (step + 1 <= steps[1])
            return value * jnp.where(bad, jnp.nan, 1.0), aux

        return objective._replace(loss=loss)

    objectives.make = make_bad


def poison(fault):
    import jax

    from vit_jax.run import Run

    step = Run.step
    count = None

    def poisoned(self, state, rows):
        nonlocal count
        count = int(state.step) if count is None else count + 1
        if count + 1 == fault["step"] and not os.path.exists(fault["marker"]):
            Path(fault["marker"]).touch()
            leaves, tree = jax.tree.flatten(getattr(state, fault["part"]))
            i = next(i for i, x in enumerate(leaves) if x.dtype == "float32")
            leaves[i] = leaves[i] * float(fault["value"])
            state = state._replace(**{fault["part"]: jax.tree.unflatten(tree, leaves)})
        return step(self, state, rows)

    Run.step = poisoned


def crash(fault):
    from vit_jax.workdir.checkpoint import Checkpoints

    name, when = CRASH_POINTS[fault["point"]]
    stage = getattr(Checkpoints, name)
    count = 0

    def crashing(*args):
        nonlocal count
        count += 1
        if count == fault["save"] and when == "before":
            os._exit(CRASH_CODE)
        result = stage(*args)
        if count == fault["save"]:
            os._exit(CRASH_CODE)
        return result

    setattr(Checkpoints, name, crashing)


KINDS = {"read": slow_reads, "nan_loss": nan_loss, "poison": poison, "crash": crash}
