"""What is measured of a pair of runs: speed, receptive fields, attention, Grad-CAM."""

from types import SimpleNamespace

import jax
import numpy as np

from vit_jax import (
    attention,
    augment,
    checkpoint,
    data,
    gradcam,
    receptive_field,
    turns,
    variants,
)

SHOWN = 6  # images whose Grad-CAM and attention are drawn


def load(run, count):
    """A run's model and the first images of its test split, as it sees them.

    -> name, sizes, apply, weights, images [b h w c] normalised, pixels [b h w c] uint8, labels,
    classes: their names
    """
    config, facts, model, weights, _ = checkpoint.load_weights(run.workdir)
    source = data.make(config, config.data.test)
    _, view = augment.views(config)
    rows = [source[i] for i in range(min(count, len(source)))]
    pixels = np.stack([view(row["image"]) for row in rows])
    return SimpleNamespace(
        name=run.name,
        sizes=variants.of_config(**config.model),
        module=model.module,
        bind=model.bind,
        apply=model.apply,
        weights=jax.device_put(weights),
        images=augment.normalise(pixels, config.data.mean, config.data.std),
        pixels=pixels,
        labels=np.array([row["label"] for row in rows]),
        classes=facts["data"]["class_names"],
    )


def in_turns(cnn, vit, pairs, seconds):
    """The forward pass of all images as one batch, timed in turns.

    -> "pairs" of images a second, CNN and ViT; their "ratio", ViT / CNN; images a second and images
    a CPU second of "cnn" and "vit"; each a {"median", "min", "max"}
    """

    def step(model):
        logits = jax.jit(lambda weights, images: model.apply(weights, images)["logits"])

        def run():
            out = logits(model.weights, model.images)
            return out, out[0, 0]

        return turns.Ours(run)

    taken, batch = turns.take(step(cnn), step(vit), pairs, seconds), len(cnn.images)
    both = [[turn["steps"] * batch / turn["seconds"] for turn in pair] for pair in taken]
    speed = {"batch": batch, "device": jax.devices()[0].device_kind}
    speed |= {"pairs": [[round(x, 2) for x in pair] for pair in both]}
    speed["ratio"] = turns.spread([b / a for a, b in both])
    for i, name in enumerate(("cnn", "vit")):
        spent = [(pair[i]["cpu"][1] - pair[i]["cpu"][0]) / pair[i]["steps"] for pair in taken]
        speed[name] = {
            "images_per_s": turns.spread([pair[i] for pair in both]),
            "images_per_cpu_s": turns.spread([batch / max(x, 1e-9) for x in spent]),
        }
    return speed


def fields_of_cnn(model):
    """-> rows, one a convolution and one a stage; {stage: gradient [h, w]}"""
    plan, pool = variants.convolutions(**model.sizes), len(model.sizes["layers"]) == 4
    side, depth, rows = model.pixels.shape[1], 0, []
    gradients = receptive_field.effective(
        lambda weights, images: model.apply(weights, images, blocks=True)["maps"],
        model.weights,
        model.images,
    )
    fields = receptive_field.theoretical(plan, pool)
    for layer, field in fields.items():
        depth += layer in plan and not layer.endswith("shortcut")
        if layer not in plan and layer not in gradients:
            continue  # a block, which has the field of its last convolution
        row = {"model": model.name, "layer": layer, "convolutions": depth}
        row |= {"field": field.size, "jump": field.jump, "start": field.start}
        if layer in gradients:
            unit = -(-side // field.jump) // 2
            first, last = field.pixels(unit, side)
            row |= {"uniform_std": round(field.std, 3), "inside": [first, last]}
            row |= _seen(gradients[layer], (last - first) ** 2)
        rows.append(row)
    return rows, {layer: gradients[layer] for layer in fields if layer in gradients}


def fields_of_vit(model):
    """-> rows, one a block; {"block 1": gradient [h, w]}. A block may see the whole image."""
    grid, prefix = _grid(model)

    def maps(weights, images):
        blocks = model.apply(weights, images, blocks=True)["blocks"][:, :, prefix:]
        return {i + 1: x.reshape(x.shape[0], *grid, -1) for i, x in enumerate(blocks)}

    gradients = receptive_field.effective(maps, model.weights, model.images)
    side, rows = model.pixels.shape[1], []
    for block, gradient in gradients.items():
        row = {"model": model.name, "layer": f"block {block}", "field": side}
        rows.append(row | {"jump": model.module.patch} | _seen(gradient, side**2))
    return rows, {f"block {block}": gradient for block, gradient in gradients.items()}


def _seen(gradient, possible):
    """What a row says of a gradient; possible: pixels of the theoretical field in the image."""
    area = receptive_field.area(gradient)
    return {
        "std": round(receptive_field.width(gradient), 3),
        "area95": area,
        "side95": round(area**0.5, 3),
        "share95": round(area / possible, 4),
    }


def heads(model):
    """-> rows, one a head: attention distance in pixels, entropy in bits, means over the images."""
    grid, prefix = _grid(model)
    read = jax.jit(lambda w, images: model.apply(w, images, attention=True)["attention"])
    parts, size = [], receptive_field.BATCH
    for start in range(0, len(model.images), size):  # the maps of all layers are large
        maps = np.asarray(read(model.weights, model.images[start : start + size]))
        distances = receptive_field.attention_distance(maps, grid, model.module.patch, prefix)
        parts.append(np.stack([distances, receptive_field.attention_entropy(maps, grid, prefix)]))
    means = np.concatenate(parts, axis=2).mean(2)  # over images: 2 l h
    even = receptive_field.even_distance(grid, model.module.patch)
    return [
        {
            "model": model.name,
            "layer": layer + 1,
            "head": head,
            "distance": round(float(means[0, layer, head]), 3),
            "even_distance": round(even, 3),
            "entropy_bits": round(float(means[1, layer, head]), 3),
        }
        for layer, head in np.ndindex(means.shape[1:])
    ]


def looks(cnn, vit):
    """Grad-CAM and attention of the first images of different classes.

    -> images, labels and both predictions, {"layer1": maps [b h w]} of the CNN for the class that
    it predicts, {"block 1": maps [b h w]} of the ViT's attention: mean of the heads of the first,
    middle and last block, of [CLS] or, where it has none, of the average patch
    """
    _, first = np.unique(cnn.labels, return_index=True)
    chosen = np.sort(first)[:SHOWN]
    grid, prefix = _grid(vit)

    @jax.jit
    def explain(weights, images):
        bound = cnn.bind(weights)
        said = bound(images)["logits"].argmax(-1)
        return said, gradcam.of_resnet(bound, images, said)

    @jax.jit
    def attend(weights, images):
        out = vit.apply(weights, images, attention=True)
        read = attention.cls_maps if prefix else attention.patch_maps
        return out["logits"].argmax(-1), read(out["attention"], grid, prefix).mean(2)

    says, cams = jax.device_get(explain(cnn.weights, cnn.images[chosen]))
    vit_says, maps = jax.device_get(attend(vit.weights, vit.images[chosen]))
    depth = len(maps)
    return {
        "images": cnn.pixels[chosen],
        "labels": [cnn.classes[i] for i in cnn.labels[chosen]],
        "cnn_says": [cnn.classes[i] for i in says],
        "vit_says": [vit.classes[i] for i in vit_says],
        "cnn": {stage: cams[stage] for stage in cnn.module.stages},
        "vit": {f"block {i}": maps[i - 1] for i in sorted({1, (depth + 1) // 2, depth})},
        "whose": "[CLS]" if prefix else "the average patch",
    }


def _grid(model):
    """Rows and columns of patches; tokens before them."""
    return tuple(s // model.module.patch for s in model.pixels.shape[1:3]), model.module.prefix
