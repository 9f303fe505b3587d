"""Receptive fields, attention distances and attention maps of an `inference.LoadedModel`.

Images are uint8 [b, image, image, c], as `LoadedModel.view` makes each. receptive_field.py and
gradcam.py define the numbers.
"""

import jax.numpy as jnp
import numpy as np

from vit_jax import variants
from vit_jax.analysis import attention_maps, gradcam, receptive_field
from vit_jax.flops import count_flops

AT_ONCE = 4  # images whose softmax of all layers is in memory at a time
DRAWS = 4  # channels of the center unit, of each image


def cost(model, layers):
    """FLOPs of `fields` for one image and one draw: per layer a forward pass and a backward pass,
    which costs twice as much."""
    return 3 * count_flops(model.module.config) * layers


def fields(model, images, blocks=None, draws=DRAWS):
    """Effective receptive fields and, of a CNN, the theoretical ones.

    Args:
      model: `inference.LoadedModel`.
      images: uint8 [b, image, image, c].
      blocks: of a ViT, numbers from 1; None: all.
      draws: channels of the center unit per image.

    Returns:
      Rows, one per block of a ViT, or one per convolution and one per stage of a CNN; and
      {layer: gradient [h, w]} of the blocks or stages, in order.
    """
    measure = _fields_of_cnn if model.is_cnn else _fields_of_vit
    return measure(model, model.normalize(images), blocks, draws)


def _fields_of_cnn(model, images, _, draws):
    found = receptive_field.effective(
        lambda weights, images: model.model.apply(weights, images, blocks=True)["maps"],
        model.params,
        images,
        draws=draws,
    )
    rows, gradients = layers_of_cnn(model), {}
    for row in rows:
        if row["layer"] in found:
            first, last = row["inside"]
            gradients[row["layer"]] = found[row["layer"]]
            row |= _seen(found[row["layer"]], (last - first) ** 2)
    return rows, gradients


def layers_of_cnn(model):
    """Theoretical receptive fields.

    Returns:
      Rows, one per convolution and one per stage; those of stages have "inside", the first pixel
      that the center unit depends on and one past the last.
    """
    plan = variants.convolutions(model.module.config)
    depth, rows = 0, []
    for layer, field in receptive_field.theoretical(plan, model.module.pools).items():
        depth += layer in plan and not layer.endswith("shortcut")
        row = {"model": model.short, "layer": layer, "convolutions": depth}
        row |= {"field": field.size, "jump": field.jump, "start": field.start}
        if "/" not in layer:  # a stage
            unit = -(-model.image // field.jump) // 2
            row["uniform_std"] = round(field.std, 3)
            row["inside"] = list(field.pixels(unit, model.image))
        elif layer not in plan:
            continue  # a block has the field of its last convolution
        rows.append(row)
    return rows


def _fields_of_vit(model, images, blocks, draws):
    grid, prefix = model.grid, model.prefix
    blocks = blocks or range(1, model.depth + 1)

    def maps(weights, images):
        found = model.model.apply(weights, images, blocks=True)["blocks"][:, :, prefix:]
        return {i: found[i - 1].reshape(len(images), *grid, -1) for i in blocks}

    gradients = receptive_field.effective(maps, model.params, images, draws=draws)
    rows = [
        {"model": model.short, "layer": f"block {i}", "field": model.image}
        | {"jump": model.module.config.patch}
        | _seen(gradients[i], model.image**2)  # a block may see the whole image
        for i in blocks
    ]
    return rows, {f"block {i}": gradients[i] for i in blocks}


def _seen(gradient, possible):
    """Entries of a row about a gradient. possible: pixels of the theoretical field in the image."""
    area = receptive_field.area(gradient)
    return {
        "std": round(receptive_field.width(gradient), 3),
        "area95": area,
        "side95": round(area**0.5, 3),
        "share95": round(area / possible, 4),
    }


def heads(model, images):
    """Rows, one per head of a ViT: attention distance in pixels and entropy in bits, averaged over
    the images."""
    grid, prefix, patch = model.grid, model.prefix, model.module.config.patch
    parts = []
    for start in range(0, len(images), AT_ONCE):  # the softmax of all images would be large
        part = list(images[start : start + AT_ONCE])
        maps = model.run(part, attention=True, batch_size=AT_ONCE)["attention"]
        distances = receptive_field.attention_distance(maps, grid, patch, prefix)
        parts.append(np.stack([distances, receptive_field.attention_entropy(maps, grid, prefix)]))
    means = np.concatenate(parts, axis=2).mean(2)  # over images: 2 l h
    even = receptive_field.even_distance(grid, patch)
    return [
        {
            "model": model.short,
            "layer": layer + 1,
            "head": head,
            "distance": round(float(means[0, layer, head]), 3),
            "even_distance": round(even, 3),
            "entropy_bits": round(float(means[1, layer, head]), 3),
        }
        for layer, head in np.ndindex(means.shape[1:])
    ]


def saliency_maps(model, images):
    """Attention maps of a ViT, Grad-CAM of a CNN.

    Args:
      model: `inference.LoadedModel`.
      images: uint8 [image, image, c] each.

    Returns:
      The predicted class [b], or None without a classifier; and maps {layer: [b, rows, columns]}:
      of a CNN Grad-CAM of every stage for that class ({} without a classifier), of a ViT the
      attention of [CLS] or, where it has none, of the average patch, averaged over the heads of the
      first, the middle and the last block.
    """
    if not model.is_cnn:
        blocks = attention_maps.first_middle_last(model.depth)
        maps = attention_maps.extract(model, images, blocks).maps.mean(2)
        says = None
        if model.module.head is not None:
            says = model.run(list(images))["logits"].argmax(-1)
        return says, {f"block {block}": maps[:, i] for i, block in enumerate(blocks)}
    if model.module.head is None:
        return None, {}
    found = model.run(list(images), compute=_explain)
    return found.pop("class"), {stage: found[stage] for stage in model.module.stages}


def _explain(module, images):
    """The predicted class, and Grad-CAM of every stage of a ResNet for it."""
    says = module(images)["logits"].argmax(-1)
    return gradcam.resnet_grad_cam(module, images, says) | {"class": says.astype(jnp.int32)}
