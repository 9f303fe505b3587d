"""The stages of a model with their shapes and parameters. Allocates no weights."""

from typing import NamedTuple

import jax

from vit_jax import models
from vit_jax.variants import ResNetConfig

# Parts with a row of their own; those that an option adds have one by their name.
KNOWN = {"patch_embed", "cls_token", "pos_embed", "blocks", "norm", "attn_pool", "fc_norm", "head"}
KNOWN_IN_BLOCKS = {"norm1", "attn", "norm2", "mlp"}


class Stage(NamedTuple):
    """A stage by its phrase, `stage_KEY` in the catalog of figures, and the values in it.

    inside: whether it is part of the encoder blocks; its parameters are those of all blocks
    together.
    """

    key: str
    values: dict = {}
    inside: bool = False


def of_config(config):
    """The stages of the model of a `ViTConfig` or `ResNetConfig`, from the image to the classes.

    Returns:
      Rows (`Stage`, shape for one image, parameters), and the sum of the parameters.
    """
    model = models.build(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    rows = (cnn_stages if isinstance(config, ResNetConfig) else stages)(model, params)
    total = sum(x.size for x in jax.tree.leaves(params))
    stray = total - sum(count for _, _, count in rows if count)
    if stray:
        raise AssertionError(f"{stray:,} parameters belong to no stage")
    return rows, total


def one_image(config):
    shape = (1, config.image, config.image, config.channels)
    return jax.ShapeDtypeStruct(shape, "float32")


def cnn_stages(model, params):
    """As `stages`, of a ResNet."""
    config = model.module.config
    images = one_image(config)
    out = jax.eval_shape(
        lambda p, x: model.apply(models.union(p, model.stats()), x, blocks=True), params, images
    )
    names = {"stem": Stage("stem"), "pool": Stage("pool")}
    names |= {f"layer{i + 1}": Stage("cnn", dict(count=n)) for i, n in enumerate(config.layers)}
    rows = [(Stage("image"), images, "")]
    rows += [(names[stage], out["maps"][stage], stage) for stage in names if stage in out["maps"]]
    rows += [(Stage("mean"), out["pooled"], "")]
    rows += [(Stage("head"), out["logits"], "head")] if "logits" in out else []
    return [(name, shape(x.shape[1:]), size(params, stage)) for name, x, stage in rows]


def size(params, *path):
    """Parameters below a path; 0 where there is nothing."""
    for key in path:
        params = params.get(key, {})
    return sum(x.size for x in jax.tree.leaves(params))


def shape(x):
    return f"[{'x'.join(map(str, x))}]"


def stages(model, params):
    """[(`Stage`, shape for one image, parameters)], from the outside in."""
    config = model.module.config
    images = one_image(config)
    named = {"attention": True, "blocks": True}
    out = jax.eval_shape(lambda p, x: model.apply(p, x, **named), params, images)
    patches = jax.eval_shape(lambda p, x: model.bind(p).patch_embed(x), params, images)
    _, n, d = out["tokens"].shape
    cut = Stage(config.patch_embed, dict(count=patches.shape[1], patch=config.patch))
    position = Stage(config.pos_embed, dict(prefix="[CLS] + " if "cls_token" in params else ""))
    rows = [
        (Stage("image"), shape(images.shape[1:]), 0),
        (cut, shape(patches.shape[1:]), size(params, "patch_embed")),
        (position, shape((n, d)), size(params, "cls_token") + size(params, "pos_embed")),
    ]
    rows += [(part(name), "", size(params, name)) for name in params if name not in KNOWN]
    rows += [(Stage("blocks", dict(depth=config.depth)), shape(out["blocks"].shape[2:]), 0)]
    rows += [(stage._replace(inside=True), *rest) for stage, *rest in block(params, config, n)]
    if "norm" in params:
        rows += [(Stage("norm"), shape((n, d)), size(params, "norm"))]
    rows += [(Stage(config.pool), shape(out["pooled"].shape[1:]), size(params, "attn_pool"))]
    if "fc_norm" in params:
        rows += [(Stage("norm"), shape((d,)), size(params, "fc_norm"))]
    if "logits" in out:
        rows += [(Stage("head"), shape(out["logits"].shape[1:]), size(params, "head"))]
    return rows


def block(params, config, n):
    """The stages of the encoder blocks."""
    d, heads = config.width, config.num_heads
    tokens = shape((n, d))
    norms = [(Stage("norm"), tokens, size(params, "blocks", f"norm{i}")) for i in (1, 2)]
    joined = size(params, "blocks", "attn", "proj")
    attention = [
        (
            Stage("heads", dict(heads=heads, dim=d // heads)),
            shape((heads, n, n)),
            size(params, "blocks", "attn") - joined,
        ),
        (Stage("joined"), tokens, joined),
    ]
    hidden = Stage("mlp", dict(width=d, hidden=config.mlp_dim))
    mlp = [(hidden, tokens, size(params, "blocks", "mlp"))]
    others = [name for name in params["blocks"] if name not in KNOWN_IN_BLOCKS]
    mlp += [(part(name), tokens, size(params, "blocks", name)) for name in others]
    add = [(Stage("residual"), tokens, 0)]
    if config.norm == "post":
        return attention + add + norms[:1] + mlp + add + norms[1:]
    return norms[:1] + attention + add + norms[1:] + mlp + add


def part(name):
    """What an option adds, by the name of its parameters."""
    return Stage("part", dict(name=name))
