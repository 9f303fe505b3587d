"""Training of both sides of experiments.twin_runs: with vit_jax here, with timm in a subprocess."""

import json
import subprocess
import time
from pathlib import Path

import numpy as np

from experiments.twin_runs import recipe
from vit_jax import data
from vit_jax.errors import UserError
from vit_jax.run import Run

SPLITS = ("train", "val", "test")


def run(side, change, config, peer, workdir):
    """Train and evaluate one side.

    Args:
        side: "vit_jax" or "timm".
        change: an entry of `recipe.CHANGES`.
        config: the checked config, with the seed.
        peer: the Python of the peer.
        workdir: an existing directory, a Path, for the images and the job of the peer.

    Returns:
        A list of dicts with the keys that peer.py documents: one per epoch, and the test row.
    """
    rows = []

    def report(row):
        print(json.dumps(row), flush=True)
        rows.append(row)

    if side == "vit_jax":
        train_here(config, report)
        return rows
    images = workdir / "images.npz"
    export(config, images)  # every time: the file may have the images of another dataset
    job = workdir / "job.json"
    values = {"data": str(images), "seed": config.seed, "change": change}
    job.write_text(json.dumps(recipe.SHARED | values))
    train_peer([peer, str(Path(__file__).with_name("peer.py"))], job, report)
    return rows


def train_here(config, report):
    """Train and evaluate with vit_jax.

    Args:
        config: a checked config with `objective.ema`.
        report: function called with a dict after each epoch and, with the test accuracies, at the
            end; the keys are those of peer.py.
    """
    run = Run(config)
    state = run.init()
    steps_per_epoch = int(run.steps_per_epoch)
    batches = run.batches(0)
    losses = []
    try:
        start = time.perf_counter()
        for step in range(1, run.total + 1):
            state, metrics = run.step(state, next(batches))
            losses.append(float(metrics["loss"]))
            if step % steps_per_epoch == 0:
                row = {"epoch": step // steps_per_epoch, "steps": step}
                row["train_loss"] = float(np.mean(losses[-steps_per_epoch:]))
                row["train_seconds"] = round(time.perf_counter() - start, 1)
                report(row | accuracies(run, state, "val"))
                start = time.perf_counter()
    finally:
        batches.close()
    report(accuracies(run, state, "test") | {"parameters": run.parameters})


def accuracies(run, state, split):
    """Return the accuracies of the weights and of their EMA, in percent."""
    weights = {
        "raw": run.objective.raw(state.params, state.extra),
        "ema": run.weights(state),
    }
    return {
        f"{split}_{name}": round(100 * run.evaluate(split, x)[f"eval/{split}/acc1"], 3)
        for name, x in weights.items()
    }


def train_peer(command, job, report):
    """Train and evaluate with timm, in a subprocess.

    Args:
        command: the command of peer.py, a list of arguments.
        job: a Path whose contents peer.py documents.
        report: see `train_here`.

    Raises:
        UserError: if the subprocess fails.
    """
    with subprocess.Popen([*command, str(job)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            report(json.loads(line))
    if process.returncode:
        raise UserError(
            f"{' '.join(command)} failed with exit code {process.returncode}, see above; the "
            "environment is created by make bench-peer"
        )


def export(config, path):
    """Write the decoded images and labels of all splits to an .npz file for the peer."""
    arrays = {}
    for name in SPLITS:
        source = data.make(config, config.data[name])
        rows = [source[i] for i in range(len(source))]
        arrays[f"{name}_images"] = np.stack([row["image"] for row in rows])
        arrays[f"{name}_labels"] = np.array([row["label"] for row in rows], np.int32)
    np.savez(path, **arrays)
