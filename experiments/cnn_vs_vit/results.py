"""Tables, arrays and figures that compare two trained models."""

import numpy as np

from experiments import tables
from experiments.size_vs_accuracy.table import training_hours
from vit_jax import data, inference, variants
from vit_jax.analysis import effective_fields
from vit_jax.figures import receptive_field as figures
from vit_jax.flops import count_flops, count_params
from vit_jax.workdir import log

MAX_SALIENCY_IMAGES = 6  # images shown with Grad-CAM and attention maps


def load(job):
    """Return the LoadedModel of a run, from the checkpoint with the best validation score."""
    return inference.load(job.workdir).replace(short_name=job.name)


def examples(models, count):
    """Return the first images of the test split, preprocessed for each model.

    Args:
        models: list of `inference.LoadedModel`.
        count: the maximum number of images.

    Returns:
        A list of uint8 [b, h, w, c], one per model, and the labels [b].
    """
    config = models[0].config
    source = data.make(config, config.data.test)
    rows = [source[i] for i in range(min(count, len(source)))]
    views = [np.stack([model.view(row["image"]) for row in rows]) for model in models]
    return views, np.array([row["label"] for row in rows])


def model_row(job, speed):
    """Return the table row of a finished run.

    Args:
        job: runs.Job.
        speed: the timing of its forward pass, an entry of `forward_speed.time_forward_passes`.
    """
    metrics = log.read_metrics(job.workdir)
    run = log.read_run_json(job.workdir)
    model = variants.from_config(job.config.model, run["data"]["num_classes"])
    return {
        "run": job.name,
        "model": job.config.model.variant,
        "layers": variants.count_layers(model),
        "width": model.width,
        "parameters": count_params(model),
        "mflops": round(count_flops(model) / 1e6, 2),
        "test_acc1": metrics[-1]["eval/test/acc1"],
        "forward_images_per_s": round(speed["images_per_s"]["median"]),
        "forward_images_per_cpu_s": round(speed["images_per_cpu_s"]["median"]),
        "training_images_per_s": tables.median_throughput(metrics),
        "training_hours": training_hours(metrics, job.config.batch_size),
        "epochs": round(metrics[-1]["step"] / run["steps_per_epoch"], 2),
    }


def saliency(models, views, labels):
    """Compute Grad-CAM and attention maps for the first image of each class.

    Args:
        models: the CNN and the ViT, `inference.LoadedModel`.
        views: uint8 [b, h, w, c] for each model.
        labels: [b].

    Returns:
        A dict: "images" uint8 [b, h, w, c] (at most MAX_SALIENCY_IMAGES); "labels", class names;
        "cnn" and "vit", the maps of `effective_fields.saliency_maps`; "cnn_says" and "vit_says",
        the predicted class names; "query", the query token of the attention maps.
    """
    selected = np.sort(np.unique(labels, return_index=True)[1])[:MAX_SALIENCY_IMAGES]
    cnn, vit = models
    result = {
        "images": views[0][selected],
        "labels": [cnn.class_names[i] for i in labels[selected]],
    }
    for name, model, images in zip(("cnn", "vit"), models, views, strict=True):
        predicted, result[name] = effective_fields.saliency_maps(model, images[selected])
        result[f"{name}_says"] = [model.class_names[i] for i in predicted]
    return result | {"query": "[CLS]" if vit.has_class_token else "the average patch"}


def write_maps(path, gradients, saliency):
    """Write the plotted maps as float16, together with the images and class names.

    Args:
        path: the .npz file to write.
        gradients: {layer: gradient [h, w]} for each model.
        saliency: the result of `saliency`.
    """
    arrays = {f"field/{name}": x / x.max() for layers in gradients for name, x in layers.items()}
    arrays |= {f"gradcam/{name}": x for name, x in saliency["cnn"].items()}
    arrays |= {f"attention/{name}": x for name, x in saliency["vit"].items()}
    arrays = {name: np.asarray(x, np.float16) for name, x in arrays.items()}
    names = {key: np.array(saliency[key]) for key in ("labels", "cnn_says", "vit_says")}
    np.savez_compressed(path, images=saliency["images"], **names, **arrays)


def draw(output, models, num_images, layers, heads, gradients, saliency):
    """Write distances.png, fields.png and saliency.png.

    Args:
        output: the directory, a Path.
        models: the CNN and the ViT, `inference.LoadedModel`.
        num_images: the number of images that the receptive fields and heads are averaged over.
        layers: rows of `effective_fields.fields` of both models.
        heads: rows of `effective_fields.heads`.
        gradients: {layer: gradient [h, w]} for each model.
        saliency: the result of `saliency`.
    """
    cnn, vit = models
    cnn_rows, vit_rows = ([row for row in layers if row["model"] == m.short_name] for m in models)
    title = f"images of {cnn.image} x {cnn.image}, mean over {num_images}"
    sides = [{"side": cnn.image, "rows": cnn_rows}]
    sides.append({"side": vit.image, "rows": vit_rows, "heads": heads})
    inside = {row["layer"]: row.get("inside") for row in cnn_rows}
    panels = [{"name": cnn.short_name, "maps": saliency["cnn"], "predicted": saliency["cnn_says"]}]
    panels.append(
        {"name": vit.short_name, "maps": saliency["vit"], "predicted": saliency["vit_says"]}
    )
    panels[1] |= {"query": saliency["query"], "prefix": vit.prefix}
    drawn = {
        "distances": figures.distances(sides, title=title),
        "fields": figures.fields(
            [(cnn.short_name, gradients[0], inside), (vit.short_name, gradients[1], {})]
        ),
        "saliency": figures.saliency_grid(saliency["images"], saliency["labels"], panels),
    }
    for name, figure in drawn.items():
        figure.savefig(output / f"{name}.png", dpi=120)
