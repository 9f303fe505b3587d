"""Tabulate the published recipes of the five sizes on ImageNet-1k, and what training them costs.

python -m experiments.size_vs_accuracy.recipes

Writes results/recipes.csv and recipes.md. The hours are those of configs/deit.py for Ti, S and B,
and of configs/mae_scratch.py for L and H, on 8 TPU v5e and on one H100: the images of the recipe at
the step time that the compilers predict (experiments/compile_check/results/predictions.jsonl). Data
loading and evaluation are not included. The accuracy of a run here is that of
results/imagenet/runs.jsonl, which size_vs_accuracy writes with
--results=experiments/size_vs_accuracy/results/imagenet; without it, "not run".
"""

import json
import statistics
from pathlib import Path

from experiments import tables
from experiments.compile_check.__main__ import RESULTS as PREDICTIONS
from vit_jax import cli, variants
from vit_jax.config import steps
from vit_jax.flops import count_flops, count_params

RESULTS = Path(__file__).parent / "results"
# size: (model, recipe of the first column of accuracies)
SIZES = {
    "Ti": ("Ti/16", "configs/deit.py"),
    "S": ("S/16", "configs/deit.py"),
    "B": ("B/16", "configs/deit.py"),
    "L": ("L/16", "configs/mae_scratch.py"),
    "H": ("H/14", "configs/mae_scratch.py"),
}
TRAINING_IMAGES = 1_281_167
V5E = "v5e:2x4"
H100 = "h100"


def main(flags):
    del flags
    finished = RESULTS / "imagenet/runs.jsonl"
    ours = read(finished) if finished.exists() else []
    table = [row(size, predictions(), ours) for size in SIZES]
    tables.write(table, RESULTS / "recipes.csv")
    print((RESULTS / "recipes.md").read_text(), end="")


def predictions():
    """Return the rows of predictions.jsonl."""
    return read(PREDICTIONS / "predictions.jsonl")


def read(path):
    """Return the rows of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(size, predicted, finished):
    """Return the row of a size.

    Args:
        size: a key of `SIZES`.
        predicted: rows of predictions.jsonl.
        finished: rows of runs.jsonl.
    """
    name, recipe = SIZES[size]
    model = variants.parse(name)
    module, _ = cli.recipe_module(recipe)
    deit3 = cli.recipe_module("configs/deit3.py")[0].PUBLISHED_224
    distilled = cli.recipe_module("configs/deit_distilled.py")[0].PUBLISHED
    ours = [run["top1"] for run in finished if run["size"] == size]
    images = training_images(f"{recipe}:{size}")
    return {
        "model": name,
        "layers": model.depth,
        "width": model.width,
        "heads": model.num_heads,
        "parameters": f"{count_params(model) / 1e6:.1f} M",
        "GFLOPs": f"{count_flops(model) / 1e9:.3g}",
        "DeiT, MAE": str(module.PUBLISHED[size]),
        "DeiT III": deit3.get(size) and str(deit3[size]),
        "DeiT, distilled": distilled.get(size) and str(distilled[size]),
        "ours": f"{statistics.mean(ours):.1f}" if ours else "not run",
        "hours on 8 TPU v5e": hours(predicted, f"{recipe}:{size}", V5E, images),
        "hours on one H100": hours(predicted, f"{recipe}:{size}", H100, images),
    }


def training_images(recipe):
    """Return the number of images that a recipe trains on, with repetitions."""
    config = cli.load_recipe(recipe)
    per_epoch = TRAINING_IMAGES // config.batch_size
    return steps(config.total_steps, per_epoch) * config.batch_size


def hours(predicted, recipe, topology, images):
    """Format the hours for a number of images; None without a prediction of a step's time."""
    for found in predicted:
        if f"--config={recipe} " in found["command"] and found["topology"] == topology:
            ms = found.get("predicted_ms", found.get("bound_ms"))
            if ms is None:
                return None
            value = images / found["batch_size"] * ms / 3.6e6
            text = f"{value:.1f}" if value < 10 else f"{value:.0f}"
            return f"at least {text}" if "bound_ms" in found else text
    return None


if __name__ == "__main__":
    cli.run(main)
