"""How far a model sees and where it looks: of an `inference.LoadedModel`, CNN or ViT.

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
    """FLOPs of the `fields` of so many layers, for an image and a draw: for each layer a forward
    pass, and a backward one of twice its cost."""
    return 3 * count_flops(model.module.config) * layers


def fields(model, images, blocks=None, draws=DRAWS):
    """Effective receptive fields, and of a CNN the theoretical ones.

    blocks: of a ViT, numbers from 1; None: all. -> rows, one a block of a ViT, one a convolution
    and one a stage of a CNN; {layer: gradient [h, w]}, by the stages or blocks, from the image on.
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
    rows = layers_of_cnn(model)
    for row in rows:
        if row["layer"] in found:
            first, last = row["inside"]
            row |= _seen(found[row["layer"]], (last - first) ** 2)
    return rows, {row["layer"]: found[row["layer"]] for row in rows if row["layer"] in found}


def layers_of_cnn(model):
    """-> rows, one a convolution and one a stage, with the theoretical fields; the latter also with
    "inside", the first pixel that the center unit depends on and one past the last."""
    plan = variants.convolutions(model.module.config)
    theory = receptive_field.theoretical(plan, model.module.pools)
    depth, rows = 0, []
    for layer, field in theory.items():
        depth += layer in plan and not layer.endswith("shortcut")
        stage = "/" not in layer
        if layer not in plan and not stage:
            continue  # a block, which has the field of its last convolution
        row = {"model": model.short, "layer": layer, "convolutions": depth}
        row |= {"field": field.size, "jump": field.jump, "start": field.start}
        if stage:
            unit = -(-model.image // field.jump) // 2
            inside = field.pixels(unit, model.image)
            row |= {"uniform_std": round(field.std, 3), "inside": list(inside)}
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
    """What a row says of a gradient; possible: pixels of the theoretical field in the image."""
    area = receptive_field.area(gradient)
    return {
        "std": round(receptive_field.width(gradient), 3),
        "area95": area,
        "side95": round(area**0.5, 3),
        "share95": round(area / possible, 4),
    }


def heads(model, images):
    """-> rows, one a head of a ViT: attention distance in pixels, entropy in bits, means over the
    images."""
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


def looks(model, images):
    """Where a model looks.

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
        blocks = attention_maps.ends(model.depth)
        maps = attention_maps.see(model, images, blocks).maps.mean(2)
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
    return gradcam.of_resnet(module, images, says) | {"class": says.astype(jnp.int32)}
