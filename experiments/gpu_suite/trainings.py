"""Train whole recipes on natural images on one GPU: ViT-Lite, the CIFAR-10 ladder, and DINO.

python -m experiments.gpu_suite.trainings --data_dir=DIR

DIR is a TFDS directory with CIFAR-10 and Imagenette as ArrayRecord. Writes a row per run to
results/trainings.jsonl, the most informative rows first, as runs end. Runs whose row is there are
skipped; an interrupted run is resumed from its latest checkpoint in --output. Images of 32 pixels
are loaded faster by worker processes (--workers) than by threads. Small models leave most of a GPU
idle: start the command several times, with other --runs.
"""

import json
from pathlib import Path

from absl import flags

from experiments import runs
from experiments.size_vs_accuracy import table
from vit_jax import cli
from vit_jax.devices import distributed

RESULTS = Path(__file__).parent / "results"
# An epoch takes seconds, so checkpoints and evaluations are rare.
GPU = {"model.dtype": "bfloat16", "eval_every": "20ep", "checkpoint_every": "20ep"}
LADDER = GPU | {"total_steps": "200ep"}
# name: (recipe, overrides)
RUNS = {
    "vit_lite_7": ("configs/cifar10.py:vit_lite_7", GPU),
    "dino_cifar10": ("configs/dino_cifar10.py:Ti", GPU),
    "dino_imagenette": ("configs/dino_imagenette.py:Ti", GPU),
    "micro": ("configs/cifar10.py:micro", LADDER),
    "midi": ("configs/cifar10.py:midi", LADDER),
    "resnet20": ("configs/cifar10.py:resnet20", GPU),
    "nano": ("configs/cifar10.py:nano", LADDER),
    "mini": ("configs/cifar10.py:mini", LADDER),
    "vit_lite_6": ("configs/cifar10.py:vit_lite_6", GPU),
    "resnet32": ("configs/cifar10.py:resnet32", GPU),
}


def define_flags():
    flags.DEFINE_string("data_dir", None, "TFDS directory with the datasets", required=True)
    flags.DEFINE_string("cifar10", "cifar10", "name of CIFAR-10 in TFDS")
    flags.DEFINE_string("imagenette", "imagenette/160px-v2", "name of Imagenette in TFDS")
    flags.DEFINE_list("runs", list(RUNS), f"runs to train: {', '.join(RUNS)}")
    flags.DEFINE_integer("seed", 0, "seed of all runs")
    flags.DEFINE_integer(
        "epochs", None, "epochs of all runs (default: those of the recipes)", lower_bound=1
    )
    flags.DEFINE_integer("workers", -1, "data.workers of all runs")
    flags.DEFINE_string("output", "runs/gpu_suite", "parent directory of the workdirs")
    flags.DEFINE_string(
        "results", str(RESULTS / "trainings.jsonl"), ".jsonl file to write, one row per run"
    )
    flags.DEFINE_bool("dry_run", False, "print the training commands and exit")
    flags.register_validator(
        "runs", lambda names: set(names) <= set(RUNS), f"must be among {', '.join(RUNS)}"
    )


def main(flags):
    path = runs.output_path("results", flags.results)
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    jobs = [make_job(name, flags) for name in flags.runs]
    jobs = [job for job in jobs if not table.has(rows, job)]
    if flags.dry_run:
        return runs.print_commands(jobs)

    def ended(job):
        if job.finished():
            with open(path, "a") as file:
                file.write(json.dumps(table.result(job, timed=True)) + "\n")

    with distributed.StopSignal() as stop:
        codes = runs.run_all(jobs, 1, stop, ended=ended)
    return max(codes.values(), default=0)


def make_job(name, flags):
    """Return the `runs.Job` of an entry of `RUNS`."""
    recipe, overrides = RUNS[name]
    dataset = flags.imagenette if name == "dino_imagenette" else flags.cifar10
    given = {"data.dir": flags.data_dir, "data.dataset": dataset, "seed": str(flags.seed)}
    given |= {"data.workers": str(flags.workers)}
    given |= {"total_steps": f"{flags.epochs}ep"} if flags.epochs else {}
    workdir = Path(flags.output).expanduser() / f"{name}-{flags.seed}"
    job = runs.make_job(recipe, overrides | given, workdir)
    job.changes = {"run": name, "seed": flags.seed}
    return job


if __name__ == "__main__":
    define_flags()
    cli.run(main)
