"""Attention maps and features of single images, by a `inference.LoadedModel` Vision Transformer."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment
from vit_jax.analysis import attention
from vit_jax.errors import UserError

BATCH = 8  # most images at a time
AT_ONCE, LARGEST = 2**29, 2**33  # bytes of softmax: of all layers and a batch; of a layer, an image


def resize(model, side):
    """From here on its images have this side, in pixels. Raises UserError where they cannot."""
    patch, heads = model.module.config.patch, count(model.module)[1]
    if side < patch or side % patch:
        raise UserError(f"--image={side} does not divide into patches of {patch}x{patch} pixels")
    tokens = (side // patch) ** 2 + model.module.config.prefix
    if 4 * heads * tokens**2 > LARGEST:
        size = 4 * heads * tokens**2 / 1e9
        raise UserError(
            f"--image={side} makes {tokens:,} tokens, whose attention is {size:.0f} GB a layer; "
            "pass a smaller one"
        )
    model.image = side


def count(module):
    """-> number of layers, number of heads of each"""
    return module.blocks.norm1.scale[...].shape[0], module.blocks.attn.num_heads


def ends(depth):
    """The first, the middle and the last of so many layers, from 1, each once."""
    return sorted({1, (depth + 1) // 2, depth})


def see(model, views, layers, with_rollout=False):
    """uint8 images [image, image, c] -> what the model sees in them; layers: numbers from 1.

    -> namespace of `maps` [b, layers, h, rows, columns], `rollout` [b, layers, rows, columns] or
    None, `colors` [b, rows, columns, 3], all float32, and for the text around them `name`,
    `layers`, `depth`, `whose` and `size`. The maps are the class token's or, without one, the mean
    of the patches'.
    """
    side, prefix = model.image // model.module.config.patch, model.module.config.prefix
    depth, heads = count(model.module)
    look, params = reader(model, layers, with_rollout)
    # The softmax of a batch is large: kept on the device, and for no more images than are small.
    size = 4 * depth * heads * (side**2 + prefix) ** 2
    size = min(BATCH, len(views), max(1, AT_ONCE // size))
    parts = []
    for start in range(0, len(views), size):
        images = np.stack(views[start : start + size])
        rows = np.pad(images, [(0, size - len(images)), *[(0, 0)] * 3])  # one size, one compilation
        parts.append({k: x[: len(images)] for k, x in jax.device_get(look(params, rows)).items()})
    found = {k: np.concatenate([p[k] for p in parts]).astype(np.float32) for k in parts[0]}
    return SimpleNamespace(
        name=model.name,
        layers=tuple(layers),
        depth=depth,
        whose="[CLS]" if prefix else "the average patch (no [CLS])",
        size=sizes(model, side, prefix),
        maps=found["maps"],
        rollout=found.get("rollout"),
        colors=attention.pca(found["tokens"]).reshape(len(views), side, side, 3),
    )


def reader(model, layers, with_rollout=False):
    """The computation of `see` on the device -> look, params; look(params, uint8 [b, h, w, c]) ->
    {"maps" [b, layers, h, rows, columns], "tokens" of the patches [b, n, d]} and "rollout"."""
    prefix, grid = model.module.config.prefix, (model.image // model.module.config.patch,) * 2
    read = attention.cls_maps if prefix else attention.patch_maps

    def draw(softmax):  # layer by layer: XLA then keeps no more of each than is drawn
        return jnp.stack([read(softmax[layer - 1], grid, prefix) for layer in layers], axis=1)

    @jax.jit
    def look(params, images):
        images = augment.normalize(images, model.mean, model.std)
        out = model.model.apply(params, images, attention=True)
        found = {"maps": draw(out["attention"]), "tokens": out["tokens"][:, prefix:]}
        if with_rollout:
            rolled = attention.rollout(out["attention"])
            found["rollout"] = draw(rolled[:, :, None])[:, :, 0]
        return found

    return look, model.params


def sizes(model, side, prefix):
    """A line with the resolution, the patch, and what attention to all alike would be."""
    module, square = model.module, "{0}x{0}".format
    text = f"image {square(model.image)}, {square(side)} patches of {square(module.config.patch)}"
    if model.image != module.config.image and module.pos_embed is not None:
        text += f", positions resized from {square(module.config.image // module.config.patch)}"
    return f"{text}; an even share is {100 / (side * side + prefix):.3g}%"
