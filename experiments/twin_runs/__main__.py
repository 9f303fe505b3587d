"""Train the same small ViT with vit_jax and with timm, and test whether the results are equal.

taskset -c 0 python -m experiments.twin_runs --data_dir=DIR

The model, the data and DeiT's recipe are those of recipe.py. Each side trains with its own code:
vit_jax in this process, and timm in .venv-peer (make bench-peer). Finished runs are skipped; an
interrupted run starts again. Writes to OUTPUT after every run: a row per run (runs.jsonl), the
comparisons (comparisons.csv, .md), and the mean curves (curves.csv, .md, .png). README.md describes
the columns.
"""

import os
import resource
import time

from absl import flags

from experiments import runs
from experiments.twin_runs import recipe
from vit_jax import cli
from vit_jax.config import check
from vit_jax.errors import UserError

# {setting: (side, change of recipe.CHANGES)}
SETTINGS = {
    "vit_jax": ("vit_jax", "none"),
    "timm": ("timm", "none"),
    "vit_jax_decay_all": ("vit_jax", "decay_all"),
}


def define_flags():
    flags.DEFINE_string("data_dir", "", "TFDS data_dir (default: ~/tensorflow_datasets)")
    flags.DEFINE_string("dataset", "cifar10", "name of the TFDS dataset")
    flags.DEFINE_list("seeds", ["0", "1", "2", "3"], "seeds of each setting")
    flags.DEFINE_list("settings", list(SETTINGS), f"settings to train: {', '.join(SETTINGS)}")
    flags.DEFINE_string("peer", ".venv-peer/bin/python", "Python with torch and timm")
    flags.DEFINE_string("workdir", "runs/twin_runs", "directory of the exported images")
    flags.DEFINE_string("output", "experiments/twin_runs/results", "directory of the results")


def main(flags):
    if unknown := [name for name in flags.settings if name not in SETTINGS]:
        raise UserError(f"--settings={unknown[0]} must be one of {', '.join(SETTINGS)}")
    if invalid := [seed for seed in flags.seeds if not seed.isdecimal()]:
        raise UserError(f"--seeds={invalid[0]} must be an integer")
    configs = {name: make_config(flags, SETTINGS[name][1]) for name in flags.settings}
    output = runs.output_path("output", flags.output, directory=True)
    workdir = runs.output_path("workdir", flags.workdir, directory=True)
    for folder in (output, workdir):
        folder.mkdir(parents=True, exist_ok=True)

    # All seeds of a setting run the same program.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir.resolve() / "xla"))
    from experiments.twin_runs import results, train

    rows = results.read(output / "runs.jsonl", recipe.SHARED)
    done = {(row["setting"], row["seed"]) for row in rows}
    for seed in map(int, flags.seeds):
        for setting in flags.settings:
            if (setting, seed) in done:
                continue
            print(f"{setting}, seed {seed}", flush=True)
            start = time.perf_counter()
            cpu_start = cpu_seconds()
            config = configs[setting].copy_and_resolve_references()
            config.seed = seed
            *epochs, test = train.run(*SETTINGS[setting], config, flags.peer, workdir)
            row = {"setting": setting, "seed": seed, "shared": recipe.SHARED, "epochs": epochs}
            row |= {"versions": results.versions()} | test
            row["cores"] = len(os.sched_getaffinity(0))
            row["seconds"] = round(time.perf_counter() - start, 1)
            row["cpu_seconds"] = round(cpu_seconds() - cpu_start, 1)
            rows.append(row)
            results.write(rows, output)
    if not rows:
        raise UserError("no run to report; pass --settings and --seeds")
    results.write(rows, output)
    table = output / "comparisons.md"
    print(
        table.read_text() if table.exists() else "each side needs two seeds to be compared\n",
        end="",
    )
    print(f"wrote {output}")


def make_config(flags, change):
    """Return the checked config of a change."""
    config = recipe.get_config(change)
    config.data.dir = flags.data_dir
    config.data.dataset = flags.dataset
    check(config)
    return config


def cpu_seconds():
    """Return the CPU time of this process and of its finished children, in seconds."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in usage)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
