"""Attention maps and patch features of a ViT loaded as an `inference.LoadedModel`."""

import functools
from types import SimpleNamespace

import jax.numpy as jnp

from vit_jax.analysis import attention
from vit_jax.errors import UserError

MAX_BATCH = 8  # images
MAX_SOFTMAX_BYTES = 2**29  # of all layers, for a batch
MAX_LAYER_BYTES = 2**33  # of the softmax of one layer, for one image


def first_middle_last(depth):
    """Return the numbers of the first, middle and last of `depth` layers, from 1, unique."""
    return sorted({1, (depth + 1) // 2, depth})


def extract(model, views, layers, with_rollout=False, title=None):
    """Compute the attention maps and patch features of images.

    Args:
      model: `inference.LoadedModel` of a ViT.
      views: sequence of uint8 [h, w, c] of one size, from `LoadedModel.view`.
      layers: layer numbers from 1.
      with_rollout: whether to compute attention rollout too.
      title: as in `LoadedModel.run`, to show progress.

    Returns:
      A `SimpleNamespace` with float32 arrays
        maps: [b, layers, h, rows, columns], attention of [CLS] or, without [CLS], averaged over the
          query patches;
        rollout: [b, layers, rows, columns], or None;
        colors: [b, rows, columns, 3], see `attention.pca`;
      and, for titles and notes,
        name, layers, depth, prefix, class_token;
        size: (height, width) of the views in pixels;
        patch: size of a patch in pixels: the side of a square, or (height, width);
        trained_grid: (rows, columns) that the position embeddings were learned on; None: they are
          not learned.

    Raises:
      UserError: if the attention of one image would take too much memory.
    """
    prefix = model.prefix
    config = model.module.config
    height, width = views[0].shape[:2]
    grid = rows, columns = model.module.grid(views[0])
    tokens = rows * columns + prefix
    layer_bytes = 4 * model.num_heads * tokens**2
    if layer_bytes > MAX_LAYER_BYTES:
        raise UserError(
            f"the attention of {tokens:,} tokens (an image of {height} x {width} pixels) takes "
            f"{layer_bytes / 1e9:.0f} GB per layer; use a smaller image size"
        )
    compute = make_extractor(grid, prefix, model.has_class_token, tuple(layers), with_rollout)
    batch_size = min(MAX_BATCH, max(1, MAX_SOFTMAX_BYTES // (model.depth * layer_bytes)))
    outputs = model.run(list(views), compute=compute, batch_size=batch_size, title=title)
    return SimpleNamespace(
        name=model.name,
        layers=tuple(layers),
        depth=model.depth,
        prefix=prefix,
        class_token=model.has_class_token,
        size=(height, width),
        patch=config.patch,
        trained_grid=None if model.module.pos_embed is None else config.grid,
        maps=outputs["maps"],
        rollout=outputs.get("rollout"),
        colors=attention.pca(outputs["tokens"]).reshape(len(views), rows, columns, 3),
    )


@functools.cache
def make_extractor(grid, prefix, class_token, layers, with_rollout=False):
    """Return the device computation of `extract`, for `LoadedModel.run(compute=...)`.

    Args:
      grid: (rows, columns) of patches.
      prefix: number of tokens before the patch tokens.
      class_token: whether the first of them is [CLS].
      layers: layer numbers from 1, a tuple.
      with_rollout: whether to compute attention rollout too.

    Returns:
      A function `(module, images) -> {"maps", "tokens"[, "rollout"]}` with maps
      [b, layers, h, rows, columns], tokens of the patches [b, n, d] and rollout
      [b, layers, rows, columns], all float32.
    """

    def select(softmax):  # per layer, so that XLA keeps only the values that are returned
        layers_maps = (softmax[layer - 1] for layer in layers)
        maps = [attention.query_maps(x, grid, prefix, class_token) for x in layers_maps]
        return jnp.stack(maps, axis=1)

    def compute(module, images):
        out = module(images, attention=True)
        results = {"maps": select(out["attention"]), "tokens": out["tokens"][:, prefix:]}
        if with_rollout:
            rolled = attention.rollout(out["attention"])
            results["rollout"] = select(rolled[:, :, None])[:, :, 0]
        return {name: x.astype(jnp.float32) for name, x in results.items()}

    return compute
