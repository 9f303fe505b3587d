"""A CNN and a ViT of the same data side by side: what each scores and costs, and how far it sees.

python -m experiments.cnn_vs_vit --cnn=runs/resnet14 --vit=runs/micro --output=runs/cnn_vs_vit

From two finished runs, by the checkpoint that was best on val. --output gets the table (models.csv,
.md), how the forward passes were timed (speed.json), a line a layer of either (layers.jsonl) and a
line a head of the ViT (heads.jsonl), the maps that are drawn (maps.npz), and three figures.
README.md, beside this, says what is what.
"""

import json
from pathlib import Path

from absl import flags

from experiments import runs
from vit_jax import cli, variants
from vit_jax.config import load_config
from vit_jax.errors import UserError


def define_flags():
    flags.DEFINE_string("cnn", None, "folder of a ResNet's run", required=True)
    flags.DEFINE_string("vit", None, "folder of a Vision Transformer's run", required=True)
    flags.DEFINE_string(
        "output", None, "folder of the results (default: runs/cnn_vs_vit/CNN-against-VIT)"
    )
    flags.DEFINE_integer(
        "max_images", 64, "images of the test split, the first ones", lower_bound=1
    )
    flags.DEFINE_integer("pairs", 7, "turns of each when the forward pass is timed", lower_bound=1)
    flags.DEFINE_float("seconds", 2.0, "about so long is a turn", lower_bound=0)


def main(flags):
    cnn, vit = finished("cnn", flags.cnn), finished("vit", flags.vit)
    check(cnn, vit)
    name = f"{cnn.name}-against-{vit.name}"
    output = Path(flags.output or f"runs/cnn_vs_vit/{name}").expanduser()
    output.mkdir(parents=True, exist_ok=True)

    from experiments import tables
    from experiments.cnn_vs_vit import results
    from vit_jax.analysis import effective_fields
    from vit_jax.perf import forward_speed
    from vit_jax.workdir import log

    models = [results.load(run) for run in (cnn, vit)]
    views, labels = results.examples(models, flags.max_images)
    sides = dict(zip(("cnn", "vit"), zip(models, views, strict=True), strict=True))
    speed = forward_speed.interleaved(sides, flags.pairs, flags.seconds)
    log.write_json(output / "speed.json", speed)
    rows = [results.row(run, speed[kind]) for kind, run in (("cnn", cnn), ("vit", vit))]
    tables.write(rows, output / "models.csv")
    found = [effective_fields.fields(*side) for side in sides.values()]
    layers, heads = (
        [line for lines, _ in found for line in lines],
        effective_fields.heads(*sides["vit"]),
    )
    for file, lines in (("layers", layers), ("heads", heads)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        log.write_text(output / f"{file}.jsonl", text)
    looks = results.looks(models, views, labels)
    fields = [gradients for _, gradients in found]
    results.write_maps(output / "maps.npz", fields, looks)
    results.draw(output, models, len(labels), layers, heads, fields, looks)
    print((output / "models.md").read_text() + f"written: {output}")


def finished(flag, folder):
    """The run in a folder. Raises UserError where it is not finished."""
    cli.check_local(flag, folder)
    workdir = Path(folder).expanduser()
    run = runs.Job(workdir.resolve().name, workdir, load_config(workdir), {}, command=[])
    if not run.finished():
        raise UserError(
            f"--{flag}={folder} is not finished; train it to its end, with a test split"
        )
    return run


def check(cnn, vit):
    """Raises UserError unless it is a CNN and a ViT, with classifiers for the same classes."""
    for flag, run, kind in (("cnn", cnn, True), ("vit", vit, False)):
        variant = run.config.model.variant
        if variants.is_cnn(variant) != kind:
            other = "vit" if kind else "cnn"
            raise UserError(f"--{flag} is a {variant}; pass --{other} for that one")
        if run.config.model.num_classes == 0 or "accuracy" not in run.config.evaluators:
            raise UserError(f"--{flag} has no classifier; take a run that was trained with labels")
    a, b = (run.config.data for run in (cnn, vit))
    for key in ("name", "dataset", "test"):
        if a[key] != b[key]:
            raise UserError(f"the runs differ in data.{key}: {a[key]} and {b[key]}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
