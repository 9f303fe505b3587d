"""A pair of runs as models and images; what is measured of them as a table, arrays and figures."""

import json

import numpy as np

from experiments import tables
from experiments.size_vs_accuracy.table import hours
from vit_jax import data, inference, variants
from vit_jax.analysis import effective_fields
from vit_jax.figures import receptive_field as figures
from vit_jax.flops import count_flops, count_params
from vit_jax.workdir import log

SHOWN = 6  # images whose Grad-CAM and attention are drawn


def load(run):
    """A run's model, by the checkpoint that was best on val, under the run's name."""
    return inference.load(run.workdir).replace(short=run.name)


def examples(models, count):
    """The first images of the test split -> uint8 [b, h, w, c] as each model sees them; labels."""
    config = models[0].config
    source = data.make(config, config.data.test)
    rows = [source[i] for i in range(min(count, len(source)))]
    views = [np.stack([model.view(row["image"]) for row in rows]) for model in models]
    return views, np.array([row["label"] for row in rows])


def row(run, speed):
    """A finished run as a line of the table. speed: of its forward pass, from `in_turns`."""
    lines = log.read_metrics(run.workdir)
    facts = json.loads((run.workdir / "run.json").read_text())
    model = variants.from_config(run.config.model, facts["data"]["num_classes"])
    return {
        "run": run.name,
        "model": run.config.model.variant,
        "layers": variants.count_layers(model),
        "width": model.width,
        "parameters": count_params(model),
        "mflops": round(count_flops(model) / 1e6, 2),
        "test_acc1": lines[-1]["eval/test/acc1"],
        "forward_images_per_s": round(speed["images_per_s"]["median"]),
        "forward_images_per_cpu_s": round(speed["images_per_cpu_s"]["median"]),
        "training_images_per_s": tables.speed(lines),
        "training_hours": hours(lines, run.config.batch_size),
        "epochs": round(lines[-1]["step"] / facts["steps_per_epoch"], 2),
    }


def looks(models, views, labels):
    """Grad-CAM and attention of the first images of different classes: images, labels, predictions
    of each model, the maps of `effective_fields.saliency_maps`, and whose attention it is."""
    chosen = np.sort(np.unique(labels, return_index=True)[1])[:SHOWN]
    cnn, vit = models
    found = {"images": views[0][chosen], "labels": [cnn.class_names[i] for i in labels[chosen]]}
    for name, model, images in zip(("cnn", "vit"), models, views, strict=True):
        says, found[name] = effective_fields.saliency_maps(model, images[chosen])
        found[f"{name}_says"] = [model.class_names[i] for i in says]
    return found | {"whose": "[CLS]" if vit.prefix else "the average patch"}


def write_maps(path, fields, looks):
    """Everything that is drawn as a map, float16 beside the images."""
    arrays = {f"field/{name}": x / x.max() for part in fields for name, x in part.items()}
    arrays |= {f"gradcam/{name}": x for name, x in looks["cnn"].items()}
    arrays |= {f"attention/{name}": x for name, x in looks["vit"].items()}
    arrays = {name: np.asarray(x, np.float16) for name, x in arrays.items()}
    words = {key: np.array(looks[key]) for key in ("labels", "cnn_says", "vit_says")}
    np.savez_compressed(path, images=looks["images"], **words, **arrays)


def draw(output, models, count, layers, heads, fields, looks):
    """The three figures; count: images that the fields and the heads are means over."""
    cnn, vit = models
    of_cnn, of_vit = ([x for x in layers if x["model"] == model.short] for model in models)
    size = f"images of {cnn.image} x {cnn.image}, mean over {count}"
    sides = [{"side": cnn.image, "rows": of_cnn}]
    sides.append({"side": vit.image, "rows": of_vit, "heads": heads})
    inside = {line["layer"]: line.get("inside") for line in of_cnn}
    panels = [{"name": cnn.short, "maps": looks["cnn"], "says": looks["cnn_says"]}]
    panels.append({"name": vit.short, "maps": looks["vit"], "says": looks["vit_says"]})
    panels[1]["whose"] = looks["whose"]
    pictures = {
        "distances": figures.distances(sides, title=size),
        "fields": figures.fields([(cnn.short, fields[0], inside), (vit.short, fields[1], {})]),
        "saliency": figures.saliency_grid(looks["images"], looks["labels"], panels),
    }
    for name, figure in pictures.items():
        figure.savefig(output / f"{name}.png", dpi=120)
