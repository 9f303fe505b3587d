"""What was measured, as a table, as arrays and as figures."""

import json

import numpy as np

from experiments import tables
from experiments.size_vs_accuracy.table import hours, layers
from vit_jax import log, variants
from vit_jax.figures import receptive_field as figures


def row(run, speed):
    """A finished run as a line of the table. speed: of its forward pass, from `in_turns`."""
    lines = log.read_metrics(run.workdir)
    facts = json.loads((run.workdir / "run.json").read_text())
    model, classes = facts["model"], facts["data"]["num_classes"]
    return {
        "run": run.name,
        "model": run.config.model.variant,
        "layers": layers(model),
        "width": model["width"],
        "parameters": model["parameters"],
        "mflops": round(variants.count_flops(**model | {"num_classes": classes}) / 1e6, 2),
        "test_acc1": lines[-1]["eval/test/acc1"],
        "forward_images_per_s": round(speed["images_per_s"]["median"]),
        "forward_images_per_cpu_s": round(speed["images_per_cpu_s"]["median"]),
        "training_images_per_s": tables.speed(lines),
        "training_hours": hours(lines, run.config.batch_size),
        "epochs": round(lines[-1]["step"] / facts["steps_per_epoch"], 2),
    }


def write_maps(path, fields, blocks, looks):
    """Everything that is drawn as a map, float16 beside the images."""
    arrays = {f"field/{name}": x / x.max() for name, x in (fields | blocks).items()}
    arrays |= {f"gradcam/{name}": x for name, x in looks["cnn"].items()}
    arrays |= {f"attention/{name}": x for name, x in looks["vit"].items()}
    arrays = {name: np.asarray(x, np.float16) for name, x in arrays.items()}
    words = {key: np.array(looks[key]) for key in ("labels", "cnn_says", "vit_says")}
    np.savez_compressed(path, images=looks["images"], **words, **arrays)


def draw(output, models, layers, heads, fields, blocks, looks):
    cnn, vit = models
    side, count = cnn.pixels.shape[1], len(cnn.pixels)
    of_cnn = [line for line in layers if line["model"] == cnn.name]
    of_vit = [line for line in layers if line["model"] == vit.name]
    size = f"images of {side} x {side}, mean over {count}"
    pictures = {
        "distances": figures.distances(of_cnn, of_vit, heads, title=size),
        "fields": figures.fields(
            [
                (cnn.name, fields, {line["layer"]: line.get("inside") for line in of_cnn}),
                (vit.name, blocks, {}),
            ]
        ),
        "looks": figures.looks(looks, cnn.name, vit.name),
    }
    for name, figure in pictures.items():
        figure.savefig(output / f"{name}.png", dpi=120)
