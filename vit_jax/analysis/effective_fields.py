"""Receptive fields, attention distances and saliency maps of an `inference.LoadedModel`.

Images are uint8 [b, height, width, c], each from `LoadedModel.view`. The metrics are defined in
receptive_field.py and gradcam.py.
"""

import math

import jax.numpy as jnp
import numpy as np

from vit_jax import variants
from vit_jax.analysis import attention_maps, gradcam, receptive_field
from vit_jax.flops import count_flops

ATTENTION_BATCH = 4  # images per forward pass that returns the softmax of all layers
DRAWS = 4  # random channels at the center position, per image


def field_flops(model, layers):
    """Return the FLOPs of `fields` for one image and one draw.

    Each layer takes a forward pass and a backward pass, which costs twice as much.
    """
    return 3 * count_flops(model.module.config) * layers


def fields(model, images, blocks=None, draws=DRAWS):
    """Compute the effective receptive fields and, for a CNN, the theoretical ones.

    Args:
      model: `inference.LoadedModel`.
      images: uint8 [b, height, width, c].
      blocks: for a ViT, block numbers from 1; None: all blocks.
      draws: random channels at the center position, per image.

    Returns:
      A tuple `(rows, gradients)`:
        rows: list of dicts, one per block of a ViT, or one per convolution and one per stage of a
          CNN.
        gradients: {layer: float64 [h, w]} of the blocks or stages, in order.
    """
    measure = _cnn_fields if model.is_cnn else _vit_fields
    return measure(model, model.normalize(images), blocks, draws)


def _cnn_fields(model, images, _, draws):
    effective = receptive_field.effective(
        lambda weights, images: model.model.apply(weights, images, blocks=True)["maps"],
        model.params,
        images,
        draws=draws,
    )
    rows = theoretical_fields(model)
    gradients = {}
    for row in rows:
        if row["layer"] in effective:
            (top, bottom), (left, right) = np.broadcast_to(row["inside"], (2, 2)).tolist()
            gradients[row["layer"]] = effective[row["layer"]]
            field_area = (bottom - top) * (right - left)
            row |= _gradient_columns(effective[row["layer"]], field_area)
    return rows, gradients


def theoretical_fields(model):
    """Compute the theoretical receptive fields of a CNN.

    Returns:
      List of dicts, one per convolution and one per stage. Rows of stages have "inside", the range
      of pixels that the center unit depends on: the first one and one past the last.
    """
    plan = variants.convolutions(model.module.config)
    depth = 0
    rows = []
    for layer, field in receptive_field.theoretical(plan, model.module.has_stem_pool).items():
        depth += layer in plan and not layer.endswith("shortcut")
        row = {"model": model.short_name, "layer": layer, "convolutions": depth}
        row |= {"field": field.size, "jump": field.jump, "start": field.start}
        if "/" not in layer:  # a stage
            row["uniform_std"] = round(field.std, 3)
            ranges = [list(field.pixels(-(-x // field.jump) // 2, x)) for x in model.size]
            row["inside"] = ranges if isinstance(model.image, tuple) else ranges[0]
        elif layer not in plan:
            continue  # a block has the field of its last convolution
        rows.append(row)
    return rows


def _vit_fields(model, images, blocks, draws):
    grid = model.grid
    prefix = model.prefix
    blocks = blocks or range(1, model.depth + 1)

    def maps(weights, images):
        tokens = model.model.apply(weights, images, blocks=True)["blocks"][:, :, prefix:]
        return {i: tokens[i - 1].reshape(len(images), *grid, -1) for i in blocks}

    gradients = receptive_field.effective(maps, model.params, images, draws=draws)
    rows = [
        {"model": model.short_name, "layer": f"block {i}", "field": max(model.size)}
        | {"jump": model.patch}
        | _gradient_columns(gradients[i], math.prod(model.size))  # the field is the whole image
        for i in blocks
    ]
    return rows, {f"block {i}": gradients[i] for i in blocks}


def _gradient_columns(gradient, field_area):
    """Return the columns of a row that describe its gradient.

    field_area: pixels of the theoretical field inside the image.
    """
    area = receptive_field.area(gradient)
    return {
        "std": round(receptive_field.width(gradient), 3),
        "area95": area,
        "side95": round(area**0.5, 3),
        "share95": round(area / field_area, 4),
    }


def heads(model, images):
    """Compute the attention distance and entropy of each head of a ViT, averaged over images.

    Returns:
      List of dicts, one per head, with the distance in pixels and the entropy in bits.
    """
    grid = model.grid
    prefix = model.prefix
    patch = model.patch
    parts = []
    for start in range(0, len(images), ATTENTION_BATCH):  # limits the memory of the softmax
        batch = list(images[start : start + ATTENTION_BATCH])
        maps = model.run(batch, attention=True, batch_size=ATTENTION_BATCH)["attention"]
        distances = receptive_field.attention_distance(maps, grid, patch, prefix)
        parts.append(np.stack([distances, receptive_field.attention_entropy(maps, grid, prefix)]))
    means = np.concatenate(parts, axis=2).mean(2)  # [2, l, b, h] -> [2, l, h]
    uniform_distance = receptive_field.uniform_distance(grid, patch)
    return [
        {
            "model": model.short_name,
            "layer": layer + 1,
            "head": head,
            "distance": round(float(means[0, layer, head]), 3),
            "even_distance": round(uniform_distance, 3),
            "entropy_bits": round(float(means[1, layer, head]), 3),
        }
        for layer, head in np.ndindex(means.shape[1:])
    ]


def saliency_maps(model, images):
    """Compute Grad-CAM maps of a CNN or attention maps of a ViT.

    Args:
      model: `inference.LoadedModel`.
      images: sequence of uint8 [image, image, c].

    Returns:
      A tuple `(classes, maps)`:
        classes: predicted classes [b], or None without a classifier.
        maps: {layer: [b, rows, columns]}. For a CNN, Grad-CAM at every stage for the predicted
          class ({} without a classifier). For a ViT, the attention of [CLS] or, without [CLS],
          the mean over the query patches; averaged over the heads, in the first, middle and last
          block.
    """
    if not model.is_cnn:
        blocks = attention_maps.first_middle_last(model.depth)
        maps = attention_maps.extract(model, images, blocks).maps.mean(2)
        classes = None
        if model.module.head is not None:
            classes = model.run(list(images))["logits"].argmax(-1)
        return classes, {f"block {block}": maps[:, i] for i, block in enumerate(blocks)}
    if model.module.head is None:
        return None, {}
    outputs = model.run(list(images), compute=_predict_and_explain)
    return outputs.pop("class"), {stage: outputs[stage] for stage in model.module.stages}


def _predict_and_explain(module, images):
    """Return the predicted class of a ResNet, and Grad-CAM at every stage for it."""
    classes = module(images)["logits"].argmax(-1)
    return gradcam.resnet_grad_cam(module, images, classes) | {"class": classes.astype(jnp.int32)}
