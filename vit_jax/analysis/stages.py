"""The stages of a model with their shapes and parameters. Allocates no weights."""

from typing import NamedTuple

import jax

from vit_jax import models
from vit_jax.variants import ResNetConfig

# Parameters that have a row below; those that an option adds get one by their name.
KNOWN = {"patch_embed", "cls_token", "pos_embed", "blocks", "norm", "attn_pool", "fc_norm", "head"}
KNOWN_IN_BLOCKS = {"norm1", "attn", "norm2", "mlp"}


class Stage(NamedTuple):
    """A stage of a model, named by the phrase `stage_KEY` in the catalog of figures.

    values: placeholders of the phrase. inside: whether it is part of the encoder blocks; its
    parameters are then those of all blocks together.
    """

    key: str
    values: dict = {}
    inside: bool = False


def from_config(config):
    """The stages of the model of a `ViTConfig` or `ResNetConfig`, from the image to the classes.

    Returns:
      Rows (`Stage`, shape for one image, parameters), and the sum of the parameters.
    """
    model = models.build(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = (config.image, config.image, config.channels)
    rows = [(Stage("image"), image, 0)]
    rows += (cnn_stages if isinstance(config, ResNetConfig) else vit_stages)(model, params, image)
    total = size(params)
    stray = total - sum(count for _, _, count in rows)
    if stray:
        raise AssertionError(f"{stray:,} parameters belong to no stage")
    return [(stage, text(shape), count) for stage, shape, count in rows], total


def cnn_stages(model, params, image):
    """Rows of a ResNet, after that of the image."""
    config = model.module.config
    out = outputs(model, models.merge_trees(params, model.stats()), image)
    names = {"stem": Stage("stem"), "pool": Stage("pool")}
    names |= {f"layer{i + 1}": Stage("cnn", dict(count=n)) for i, n in enumerate(config.layers)}
    maps = out["maps"]
    rows = [(names[x], maps[x], size(params, x)) for x in names if x in maps]
    return rows + [(Stage("mean"), out["pooled"], 0), *head(out, params)]


def vit_stages(model, params, image):
    """Rows of a ViT, after that of the image."""
    config = model.module.config
    out = outputs(model, params, image)
    tokens = out["tokens"]
    patches = (config.grid[0] * config.grid[1], config.width)
    cut = Stage(config.patch_embed, dict(count=patches[0], patch=config.patch))
    position = Stage(config.pos_embed, dict(prefix="[CLS] + " if "cls_token" in params else ""))
    rows = [
        (cut, patches, size(params, "patch_embed")),
        (position, tokens, size(params, "cls_token") + size(params, "pos_embed")),
    ]
    rows += [(part(name), (), size(params, name)) for name in params if name not in KNOWN]
    rows += [(Stage("blocks", dict(depth=config.depth)), tokens, 0)]
    rows += block_stages(params["blocks"], config, tokens)
    if "norm" in params:
        rows += [(Stage("norm"), tokens, size(params, "norm"))]
    rows += [(Stage(config.pool), out["pooled"], size(params, "attn_pool"))]
    if "fc_norm" in params:
        rows += [(Stage("norm"), (config.width,), size(params, "fc_norm"))]
    return rows + head(out, params)


def block_stages(params, config, tokens):
    """Rows of the encoder blocks."""
    heads = config.num_heads
    joined = size(params, "attn", "proj")

    def row(stage, count, shape=tokens):
        return stage._replace(inside=True), shape, count

    norms = [row(Stage("norm"), size(params, f"norm{i}")) for i in (1, 2)]
    split = Stage("heads", dict(heads=heads, dim=config.width // heads))
    attention = [
        row(split, size(params, "attn") - joined, (heads, tokens[0], tokens[0])),
        row(Stage("joined"), joined),
    ]
    hidden = Stage("mlp", dict(width=config.width, hidden=config.mlp_dim))
    mlp = [row(hidden, size(params, "mlp"))]
    mlp += [row(part(name), size(params, name)) for name in params if name not in KNOWN_IN_BLOCKS]
    add = [row(Stage("residual"), 0)]
    if config.norm == "post":
        return attention + add + norms[:1] + mlp + add + norms[1:]
    return norms[:1] + attention + add + norms[1:] + mlp + add


def head(out, params):
    """The row of the classifier, if there is one."""
    return [(Stage("head"), out["logits"], size(params, "head"))] if "logits" in out else []


def part(name):
    """The stage of an option, by the name of its parameters."""
    return Stage("part", dict(name=name))


def outputs(model, weights, image):
    """The shapes of a model's outputs for one image of this shape."""
    images = jax.ShapeDtypeStruct((1, *image), "float32")
    out = jax.eval_shape(lambda w, x: model.apply(w, x, blocks=True), weights, images)
    return jax.tree.map(lambda x: x.shape[1:], out)


def size(params, *path):
    """Number of parameters below a path; 0 if there are none."""
    for key in path:
        params = params.get(key, {})
    return sum(x.size for x in jax.tree.leaves(params))


def text(shape):
    """A shape as "[196x768]"; "" if it is empty."""
    return f"[{'x'.join(map(str, shape))}]" if shape else ""
