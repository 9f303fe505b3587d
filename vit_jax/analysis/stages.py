"""The stages of a model with their shapes and parameters. Allocates no weights."""

import jax

from vit_jax import models
from vit_jax.variants import ResNetConfig

# Parts with a row of their own; those that an option adds have one by their name.
KNOWN = {"patch_embed", "cls_token", "pos_embed", "blocks", "norm", "attn_pool", "fc_norm", "head"}
KNOWN_IN_BLOCKS = {"norm1", "attn", "norm2", "mlp"}


def of_config(config):
    """The stages of the model of a `ViTConfig` or `ResNetConfig`, from the image to the classes.

    Returns:
      Rows (stage, shape for one image, parameters), and the sum of the parameters. Stages of a
      block begin with two spaces; their parameters are those of all blocks together.
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
    names = {"stem": "stem, convolution", "pool": "stem, max pooling"}
    names |= {f"layer{i + 1}": f"{n} blocks" for i, n in enumerate(config.layers)}
    rows = [("image", images, "")]
    rows += [(names[stage], out["maps"][stage], stage) for stage in names if stage in out["maps"]]
    rows += [("mean over the image", out["pooled"], "")]
    rows += [("head", out["logits"], "head")] if "logits" in out else []
    return [(name, shape(x.shape[1:]), size(params, stage)) for name, x, stage in rows]


def size(params, *path):
    """Parameters below a path; 0 where there is nothing."""
    for key in path:
        params = params.get(key, {})
    return sum(x.size for x in jax.tree.leaves(params))


def shape(x):
    return f"[{'x'.join(map(str, x))}]"


def stages(model, params):
    """[(stage, shape for one image, parameters)], from the outside in."""
    config = model.module.config
    images = one_image(config)
    named = {"attention": True, "blocks": True}
    out = jax.eval_shape(lambda p, x: model.apply(p, x, **named), params, images)
    patches = jax.eval_shape(lambda p, x: model.bind(p).patch_embed(x), params, images)
    patch, (_, n, d) = config.patch, out["tokens"].shape

    how = {"conv": "convolution", "linear": "unfold and linear"}
    how = how[config.patch_embed]
    rows = [("image", shape(images.shape[1:]), 0)]
    count = patches.shape[1]
    rows += [
        (
            f"{count} patches of {patch}x{patch} ({how})",
            shape(patches.shape[1:]),
            size(params, "patch_embed"),
        )
    ]
    position = {"learned": "position, learned", "sincos2d": "position, fixed 2-D sin-cos"}
    position = position[config.pos_embed]
    extra = "[CLS] + " if "cls_token" in params else ""
    count = size(params, "cls_token") + size(params, "pos_embed")
    rows += [(extra + position, shape((n, d)), count)]
    rows += [(name, "", size(params, name)) for name in params if name not in KNOWN]
    rows += [(f"{config.depth} encoder blocks of", shape(out["blocks"].shape[2:]), 0)]
    rows += [(f"  {stage}", *rest) for stage, *rest in block(params, config, n)]
    pools = {"cls": "CLS", "gap": "mean of the patches", "map": "attention pooling (MAP)"}
    pool = pools[config.pool]
    if "norm" in params:
        rows += [("LayerNorm", shape((n, d)), size(params, "norm"))]
    rows += [(pool, shape(out["pooled"].shape[1:]), size(params, "attn_pool"))]
    if "fc_norm" in params:
        rows += [("LayerNorm", shape((d,)), size(params, "fc_norm"))]
    if "logits" in out:
        rows += [("head", shape(out["logits"].shape[1:]), size(params, "head"))]
    return rows


def block(params, config, n):
    """The stages of the encoder blocks; parameters are those of all blocks together."""
    d, m, heads = config.width, config.mlp_dim, config.num_heads
    tokens = shape((n, d))
    norms = [("LayerNorm", tokens, size(params, "blocks", f"norm{i}")) for i in (1, 2)]
    attention = [
        (
            f"{heads} heads of {d // heads}: attention",
            shape((heads, n, n)),
            size(params, "blocks", "attn") - size(params, "blocks", "attn", "proj"),
        ),
        ("heads joined, linear", tokens, size(params, "blocks", "attn", "proj")),
    ]
    mlp = [(f"MLP {d} -> {m} -> {d}", tokens, size(params, "blocks", "mlp"))]
    others = [name for name in params["blocks"] if name not in KNOWN_IN_BLOCKS]
    mlp += [(name, tokens, size(params, "blocks", name)) for name in others]
    add = [("+ what came in", tokens, 0)]
    if config.norm == "post":
        return attention + add + norms[:1] + mlp + add + norms[1:]
    return norms[:1] + attention + add + norms[1:] + mlp + add
