"""Compare a trained CNN with a trained ViT: accuracy, cost, receptive fields and saliency maps.

python -m experiments.cnn_vs_vit --cnn=runs/resnet14 --vit=runs/micro --output=runs/cnn_vs_vit

Both runs must be finished and trained on the same data; the checkpoint with the best validation
score of each is used. Writes to --output: the table (models.csv, models.md), the timing of the
forward passes (speed.json), a row per layer (layers.jsonl) and per attention head (heads.jsonl),
the plotted maps (maps.npz) and three figures. README.md in this directory describes the columns.
"""

import json
from pathlib import Path

from absl import flags

from experiments import runs
from vit_jax import cli, variants
from vit_jax.config import load_config
from vit_jax.errors import UserError


def define_flags():
    flags.DEFINE_string("cnn", None, "workdir of a ResNet run", required=True)
    flags.DEFINE_string("vit", None, "workdir of a Vision Transformer run", required=True)
    flags.DEFINE_string(
        "output", None, "directory of the results (default: runs/cnn_vs_vit/CNN-against-VIT)"
    )
    flags.DEFINE_integer(
        "max_images", 64, "analyze only the first N images of the test split", lower_bound=1
    )
    flags.DEFINE_integer(
        "pairs", 7, "number of timed runs of each forward pass, interleaved", lower_bound=1
    )
    flags.DEFINE_float("seconds", 2.0, "approximate seconds per timed run", lower_bound=0)


def main(flags):
    cnn = load_job("cnn", flags.cnn)
    vit = load_job("vit", flags.vit)
    check(cnn, vit)
    name = f"{cnn.name}-against-{vit.name}"
    output = Path(flags.output or f"runs/cnn_vs_vit/{name}").expanduser()
    output.mkdir(parents=True, exist_ok=True)

    from experiments import tables
    from experiments.cnn_vs_vit import results
    from vit_jax.analysis import effective_fields
    from vit_jax.perf import forward_speed
    from vit_jax.workdir import log

    models = [results.load(job) for job in (cnn, vit)]
    views, labels = results.examples(models, flags.max_images)
    inputs = dict(zip(("cnn", "vit"), zip(models, views, strict=True), strict=True))
    speed = forward_speed.time_forward_passes(inputs, flags.pairs, flags.seconds)
    log.write_json(output / "speed.json", speed)
    table = [results.model_row(job, speed[kind]) for kind, job in (("cnn", cnn), ("vit", vit))]
    tables.write(table, output / "models.csv")
    receptive_fields = [effective_fields.fields(*pair) for pair in inputs.values()]
    layers = [row for rows, _ in receptive_fields for row in rows]
    heads = effective_fields.heads(*inputs["vit"])
    for file, rows in (("layers", layers), ("heads", heads)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        log.write_text(output / f"{file}.jsonl", text)
    saliency = results.saliency(models, views, labels)
    gradients = [gradients for _, gradients in receptive_fields]
    results.write_maps(output / "maps.npz", gradients, saliency)
    results.draw(output, models, len(labels), layers, heads, gradients, saliency)
    print((output / "models.md").read_text() + f"wrote {output}")


def load_job(flag, folder):
    """Return the Job of a finished run. Raises UserError if the run is not finished."""
    cli.check_local(flag, folder)
    workdir = Path(folder).expanduser()
    job = runs.Job(workdir.resolve().name, workdir, load_config(workdir), {}, command=[])
    if not job.finished():
        raise UserError(
            f"--{flag}={folder} is not finished: it has no test evaluation; rerun its training "
            "command to resume"
        )
    return job


def check(cnn, vit):
    """Raise UserError unless the runs are a CNN and a ViT classifier on the same dataset."""
    for flag, job, expect_cnn in (("cnn", cnn, True), ("vit", vit, False)):
        variant = job.config.model.variant
        if variants.is_cnn(variant) != expect_cnn:
            other = "vit" if expect_cnn else "cnn"
            raise UserError(f"--{flag} is a {variant}; pass it with --{other}")
        if job.config.model.num_classes == 0 or "accuracy" not in job.config.evaluators:
            raise UserError(f"--{flag} has no classifier; pass a run that was trained with labels")
    a, b = (job.config.data for job in (cnn, vit))
    for key in ("name", "dataset", "test"):
        if a[key] != b[key]:
            raise UserError(f"the runs differ in data.{key}: {a[key]} and {b[key]}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
