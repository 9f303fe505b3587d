"""Attention maps and features of single images, of an `inference.LoadedModel` ViT."""

import functools
from types import SimpleNamespace

import jax.numpy as jnp

from vit_jax.analysis import attention
from vit_jax.errors import UserError

BATCH = 8  # most images at a time
MAX_SOFTMAX_BYTES = 2**29  # of all layers and a batch
MAX_LAYER_BYTES = 2**33  # of the softmax of one layer and one image


def first_middle_last(depth):
    """The first, the middle and the last of so many layers, from 1, each once."""
    return sorted({1, (depth + 1) // 2, depth})


def extract(model, views, layers, with_rollout=False):
    """Attention maps and features of images.

    Args:
      model: `inference.LoadedModel` of a ViT.
      views: uint8 [image, image, c] each.
      layers: numbers from 1.
      with_rollout: whether to compute attention rollout too.

    Returns:
      A namespace: `maps` [b, layers, h, rows, columns], of the class token or, without one, the
      mean of the patches; `rollout` [b, layers, rows, columns] or None; `colors` [b, rows, columns,
      3]; all float32; and for the text around them `name`, `layers`, `depth`, `prefix`, `image` and
      `patch` (pixels), and `trained_grid`, the side of the grid that the positions were learned on.
    """
    prefix, config = model.prefix, model.module.config
    rows, columns = model.grid
    tokens = rows * columns + prefix
    layer_bytes = 4 * model.num_heads * tokens**2
    if layer_bytes > MAX_LAYER_BYTES:
        raise UserError(
            f"images of {model.image} pixels make {tokens:,} tokens, whose attention takes "
            f"{layer_bytes / 1e9:.0f} GB per layer; use a smaller image size"
        )
    look = reader(model.grid, prefix, tuple(layers), with_rollout)
    at_once = min(BATCH, max(1, MAX_SOFTMAX_BYTES // (model.depth * layer_bytes)))
    found = model.run(list(views), compute=look, batch_size=at_once)
    return SimpleNamespace(
        name=model.name,
        layers=tuple(layers),
        depth=model.depth,
        prefix=prefix,
        image=model.image,
        patch=config.patch,
        trained_grid=rows if model.module.pos_embed is None else config.image // config.patch,
        maps=found["maps"],
        rollout=found.get("rollout"),
        colors=attention.pca(found["tokens"]).reshape(len(views), rows, columns, 3),
    )


@functools.cache
def reader(grid, prefix, layers, with_rollout=False):
    """The computation of `see` on the device, a `compute` of `LoadedModel.run`.

    Returns:
      look(module, images) -> {"maps" [b, layers, h, rows, columns], "tokens" of the patches
      [b, n, d]} and "rollout" [b, layers, rows, columns].
    """
    read = attention.cls_maps if prefix else attention.patch_maps

    def draw(softmax):  # layer by layer: XLA then keeps no more of each than is drawn
        return jnp.stack([read(softmax[layer - 1], grid, prefix) for layer in layers], axis=1)

    def look(module, images):
        out = module(images, attention=True)
        found = {"maps": draw(out["attention"]), "tokens": out["tokens"][:, prefix:]}
        if with_rollout:
            rolled = attention.rollout(out["attention"])
            found["rollout"] = draw(rolled[:, :, None])[:, :, 0]
        return {name: x.astype(jnp.float32) for name, x in found.items()}

    return look
