"""Train DINO with vit_jax and with facebookresearch/dino, and compare the k-NN accuracies.

git clone https://github.com/facebookresearch/dino
taskset -c 0 python -m experiments.twin_runs.dino_knn --checkout=dino --data_dir=DIR

Each side initializes the networks and augments the images with its own code and its own random
numbers; the reference runs in .venv-peer (make bench-peer), see dino_peer.py. The features of both
teachers are evaluated with the k-NN of vit_jax. Finished runs are skipped; an interrupted run
starts again. Writes to OUTPUT, after every run, a row per run (dino_knn.jsonl) and the comparisons
(dino_knn.csv, .md). README.md describes the columns.
"""

import json
import time
from pathlib import Path

from absl import flags

from experiments import runs
from experiments.twin_runs import dino
from vit_jax import cli
from vit_jax.config import check
from vit_jax.errors import UserError

SIDES = ("vit_jax", "reference")
SHARED = dino.SHARED | {
    "patch": 8,
    "batch_size": 64,
    "epochs": 6,
    "steps_per_epoch": 256,
    "warmup_epochs": 1,
    "momentum": 0.98,
    "warmup_teacher_temp": 0.03,
    "teacher_temp": 0.03,
    "teacher_temp_warmup_epochs": 2,
}


def define_flags():
    flags.DEFINE_string("checkout", None, "checkout of facebookresearch/dino", required=True)
    flags.DEFINE_string("data_dir", "", "TFDS data_dir (default: ~/tensorflow_datasets)")
    flags.DEFINE_string("dataset", "cifar10", "name of the TFDS dataset")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of each side")
    flags.DEFINE_string("peer", ".venv-peer/bin/python", "Python with torch and timm")
    flags.DEFINE_string("workdir", "runs/twin_runs", "directory of the exported images")
    flags.DEFINE_string("output", "experiments/twin_runs/results", "directory of the results")


def main(flags):
    if invalid := [seed for seed in flags.seeds if not seed.isdecimal()]:
        raise UserError(f"--seeds={invalid[0]} must be an integer")
    checkout = dino.find_checkout(flags.checkout)
    config = dino.make_config(SHARED)
    config.data.dir = flags.data_dir
    config.data.dataset = flags.dataset
    config.augment.eval_crop = 1.0
    check(config)
    output = runs.output_path("output", flags.output, directory=True)
    workdir = runs.output_path("workdir", flags.workdir, directory=True)
    for folder in (output, workdir):
        folder.mkdir(parents=True, exist_ok=True)

    from experiments.twin_runs import results

    shared = json.loads(json.dumps(SHARED))
    rows = results.read(output / "dino_knn.jsonl", shared)
    done = {(row["setting"], row["seed"]) for row in rows}
    for seed in map(int, flags.seeds):
        config.seed = seed
        for side in SIDES:
            if (side, seed) in done:
                continue
            print(f"{side}, seed {seed}", flush=True)
            start = time.perf_counter()
            if side == "vit_jax":
                losses, features = train_here(config)
            else:
                losses, features = train_reference(config, checkout, flags.peer, workdir)
            row = {"setting": side, "seed": seed, "shared": shared}
            row |= {"versions": results.versions()}
            row |= {"train_loss": mean_of_last_epoch(losses)} | accuracies(config, features)
            row["seconds"] = round(time.perf_counter() - start, 1)
            print(json.dumps(row), flush=True)
            rows.append(row)
            results.write_knn(rows, output)
    results.write_knn(rows, output)
    table = output / "dino_knn.md"
    print(table.read_text() if table.exists() else "each side needs two seeds\n", end="")


def train_here(config):
    """Train with vit_jax.

    Args:
        config: a checked config.

    Returns:
        The losses, a list of floats, and the features of the teacher, {"untrained_test": float32
        [n, d], ...}, with the keys that dino_peer.py documents.
    """
    from vit_jax import evaluators
    from vit_jax.run import Run

    run = Run(config)
    state = run.init()

    def features(name):
        weights = run.weights(state)
        return {
            f"{name}_{split}": evaluators.features(run.model, config, split, run.mesh)(weights)[
                "pooled"
            ]
            for split in ("train", "test")
        }

    untrained = features("untrained")
    batches = run.batches(0)
    losses = []
    try:
        for _ in range(run.total):
            state, metrics = run.step(state, next(batches))
            losses.append(float(metrics["loss"]))
    finally:
        batches.close()
    return losses, untrained | features("trained")


def train_reference(config, checkout, peer, workdir):
    """Train the reference; see `train_here` for what it returns."""
    from experiments.twin_runs import train

    paths = {"images": workdir / "images.npz", "output": workdir / "output.npz"}
    train.export(config, paths["images"])
    job = Path(workdir) / "job.json"
    values = {name: str(path) for name, path in paths.items()}
    job.write_text(json.dumps(SHARED | values | {"checkout": checkout, "seed": config.seed}))
    arrays = dino.train_reference(peer, job)
    return arrays.pop("losses").tolist(), arrays


def mean_of_last_epoch(losses):
    return sum(losses[-SHARED["steps_per_epoch"] :]) / SHARED["steps_per_epoch"]


def accuracies(config, features):
    """Return the k-NN accuracies on the test split, in percent: {"untrained_knn20": 30.0, ...}."""
    import numpy as np

    from vit_jax import data
    from vit_jax.evaluators import knn

    labels = {}
    for split in ("train", "test"):
        source = data.make(config, config.data[split])
        labels[split] = np.array([source[i]["label"] for i in range(len(source))], np.int32)
    scores = {}
    for name in ("untrained", "trained"):
        bank, queries = (
            {"pooled": features[f"{name}_{split}"], "label": labels[split]}
            for split in ("train", "test")
        )
        values = knn.read_out(bank, queries, **config.knn)
        scores |= {f"{name}_{key}": round(100 * x, 3) for key, x in values.items()}
    return scores


if __name__ == "__main__":
    define_flags()
    cli.run(main)
