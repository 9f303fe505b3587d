"""Stages of a model with their shapes and parameter counts, without allocating weights."""

from typing import NamedTuple

import jax

from vit_jax import models
from vit_jax.layers import kernels
from vit_jax.variants import ResNetConfig

# Parameters of the stages below. Other parameters, such as those of a model option, become stages
# named after them.
STAGE_PARAMS = {"patch_embed", "cls_token", "pos_embed", "blocks", "norm", "attn_pool", "fc_norm"}
STAGE_PARAMS |= {"head"}
BLOCK_STAGE_PARAMS = {"norm1", "attn", "norm2", "mlp"}


class Stage(NamedTuple):
    """A stage of a model. Its title is the phrase `stage_KEY` in [figures] of en.toml.

    Attributes:
      key: key of the phrase.
      values: values of the phrase's placeholders.
      inside: whether the stage is part of the encoder blocks. Its parameter count then covers all
        blocks.
    """

    key: str
    values: dict = {}
    inside: bool = False


def from_config(config):
    """Return the stages of a model, from the image to the logits.

    Args:
      config: `ViTConfig` or `ResNetConfig`.

    Returns:
      A tuple `(rows, total)`:
        rows: list of (`Stage`, shape for one image such as "[196x768]", number of parameters).
        total: number of parameters of the model.
    """
    model = models.build(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = (*config.size, config.channels)
    rows = [(Stage("image"), image, 0)]
    rows += (cnn_stages if isinstance(config, ResNetConfig) else vit_stages)(model, params, image)
    total = num_params(params)
    unassigned = total - sum(count for _, _, count in rows)
    if unassigned:
        raise AssertionError(f"{unassigned:,} parameters do not belong to any stage")
    return [(stage, format_shape(shape), count) for stage, shape, count in rows], total


def cnn_stages(model, params, image):
    """Return the rows of a ResNet after the image; shapes are tuples."""
    config = model.module.config
    out = output_shapes(model, models.merge_trees(params, model.stats()), image)
    names = {"stem": Stage("stem"), "pool": Stage("pool")}
    names |= {f"layer{i + 1}": Stage("cnn", dict(count=n)) for i, n in enumerate(config.layers)}
    maps = out["maps"]
    rows = [(names[x], maps[x], num_params(params, x)) for x in names if x in maps]
    return rows + [(Stage("mean"), out["pooled"], 0), *head_stages(out, params)]


def vit_stages(model, params, image):
    """Return the rows of a ViT after the image; shapes are tuples."""
    config = model.module.config
    out = output_shapes(model, params, image)
    tokens = out["tokens"]
    patches = (config.grid[0] * config.grid[1], config.width)
    how = kernels.patch_embedding(config.patch_embed)
    patch = "x".join(map(str, config.patch_size))
    embed = Stage(how, dict(count=patches[0], patch=patch))
    position = Stage(config.pos_embed, dict(prefix="[CLS] + " if "cls_token" in params else ""))
    rows = [
        (embed, patches, num_params(params, "patch_embed")),
        (position, tokens, num_params(params, "cls_token") + num_params(params, "pos_embed")),
    ]
    rows += [
        (option_stage(name), (), num_params(params, name))
        for name in params
        if name not in STAGE_PARAMS
    ]
    rows += [(Stage("blocks", dict(depth=config.depth)), tokens, 0)]
    rows += block_stages(params["blocks"], config, tokens)
    if "norm" in params:
        rows += [(Stage("norm"), tokens, num_params(params, "norm"))]
    rows += [(Stage(config.pool), out["pooled"], num_params(params, "attn_pool"))]
    if "fc_norm" in params:
        rows += [(Stage("norm"), (config.width,), num_params(params, "fc_norm"))]
    return rows + head_stages(out, params)


def block_stages(params, config, tokens):
    """Return the rows inside the encoder blocks; `tokens` is the shape of the token sequence."""
    heads = config.num_heads
    proj_params = num_params(params, "attn", "proj")

    def row(stage, count, shape=tokens):
        return stage._replace(inside=True), shape, count

    norms = [row(Stage("norm"), num_params(params, f"norm{i}")) for i in (1, 2)]
    split = Stage("heads", dict(heads=heads, dim=config.width // heads))
    attention = [
        row(split, num_params(params, "attn") - proj_params, (heads, tokens[0], tokens[0])),
        row(Stage("joined"), proj_params),
    ]
    hidden = Stage("mlp", dict(width=config.width, hidden=config.mlp_dim))
    mlp = [row(hidden, num_params(params, "mlp"))]
    mlp += [
        row(option_stage(name), num_params(params, name))
        for name in params
        if name not in BLOCK_STAGE_PARAMS
    ]
    add = [row(Stage("residual"), 0)]
    if config.norm == "post":
        return attention + add + norms[:1] + mlp + add + norms[1:]
    if config.norm == "res_post":
        return attention + norms[:1] + add + mlp + norms[1:] + add
    return norms[:1] + attention + add + norms[1:] + mlp + add


def head_stages(out, params):
    """Return the row of the classifier, or no row without a classifier."""
    return [(Stage("head"), out["logits"], num_params(params, "head"))] if "logits" in out else []


def option_stage(name):
    """Return the stage for the parameters of a model option."""
    return Stage("part", dict(name=name))


def output_shapes(model, weights, image):
    """Return the shapes of a model's outputs for one image of shape `image`."""
    images = jax.ShapeDtypeStruct((1, *image), "float32")
    out = jax.eval_shape(lambda w, x: model.apply(w, x, blocks=True), weights, images)
    return jax.tree.map(lambda x: x.shape[1:], out)


def num_params(params, *path):
    """Return the number of parameters below a path; 0 if it does not exist."""
    for key in path:
        params = params.get(key, {})
    return sum(x.size for x in jax.tree.leaves(params))


def format_shape(shape):
    """Format a shape as "[196x768]"; an empty shape as ""."""
    return f"[{'x'.join(map(str, shape))}]" if shape else ""
