"""The Transformer encoder: blocks of attention and MLP (arXiv:2010.11929, equations 2 and 3).

The encoder takes one or several groups of tokens of different lengths, each b v n d: v views of
each image, n tokens per view. Multi-crop training has one group per crop size. Dense layers run
over all tokens at once, flat [t, d]; attention runs within each view. The flat tokens of an image
are contiguous, so that a batch stays sharded over devices.

Blocks are always stored stacked: every leaf of `blocks` has a leading layer axis. Running them by
`lax.scan` or unrolled differs in speed alone.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.devices import sharding
from vit_jax.layers import kernels
from vit_jax.layers.attention import Attention
from vit_jax.layers.drop_path import Noise
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.norms import LayerNorm

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names("dense"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class LayerScale(nnx.Module):
    """A learned gain per channel of a residual branch (CaiT, arXiv:2103.17239, equation 4)."""

    def __init__(self, config):
        self.gamma = nnx.Param(jnp.full(config.width, config.layer_scale_init, jnp.float32))
        self.dtype = config.dtype

    def __call__(self, x):
        return x * self.gamma[...].astype(self.dtype)


class Block(nnx.Module):
    """One encoder block: pre-norm, x + f(norm(x)), or post-norm, norm(x + f(x))."""

    def __init__(self, config, *, rngs):
        self.norm1 = LayerNorm(config.width, dtype=config.dtype)
        self.attn = Attention(config, rngs=rngs)
        self.norm2 = LayerNorm(config.width, dtype=config.dtype)
        self.mlp = Mlp(config, rngs=rngs)
        self.post = config.norm == "post"
        scaled = config.layer_scale_init is not None
        self.ls1 = LayerScale(config) if scaled else None
        self.ls2 = LayerScale(config) if scaled else None

    def __call__(self, x, shapes, *, maps, noise):
        """x [t, d] -> [t, d], attention maps of each group or None."""

        def attention(x):
            x, probabilities = self.attn(x, shapes, maps)
            x = noise.drop(x, 0)
            x = x if self.ls1 is None else self.ls1(x)
            return noise.drop_path(x, 1), probabilities

        def mlp(x):
            x = self.mlp(x, lambda x: noise.drop(x, 2))
            x = noise.drop(x, 3)
            x = x if self.ls2 is None else self.ls2(x)
            return noise.drop_path(x, 4)

        if self.post:
            branch, probabilities = attention(x)
            x = self.norm1(x + branch)
            return self.norm2(x + mlp(x)), probabilities
        branch, probabilities = attention(self.norm1(x))
        x = x + branch
        return x + mlp(self.norm2(x)), probabilities


def make_blocks(config, *, rngs):
    """The blocks of a `ViTConfig` as one module, every leaf with a leading layer axis."""

    @nnx.split_rngs(splits=config.depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Block(config, rngs=rngs)

    return make(rngs)


def encode(config, blocks, groups, *, keys=None, attention=False, outputs=False):
    """Run groups of tokens through stacked blocks.

    Args:
      config: `ViTConfig` of the blocks.
      blocks: as `make_blocks` makes them.
      groups: arrays [b, v, n, d] of any v and n.
      keys: one key per image [b], which turns dropout and drop path on.
      attention, outputs: whether to return maps and the outputs of each block.

    Returns:
      The groups, and {"attention": [l, b*v, h, q, m] per group, "blocks": [l, b*v, n, d] per
      group}, each only if asked for.
    """
    shapes = tuple(g.shape[:3] for g in groups)
    graph, stacked = nnx.split(blocks)
    stacked = nnx.to_pure_dict(stacked)
    depth, drop_path = config.depth, config.drop_path
    # Linear in depth, 0 in the first block (arXiv:1603.09382, equation 4; timm, DeiT).
    rates = jnp.linspace(0.0, drop_path, depth) if drop_path else jnp.zeros(depth)

    def run(x, layer):
        params, index, rate = layer
        x = sharding.constrain_batch(x)
        noise = Noise()
        if keys is not None:
            layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            noise = Noise(layer_keys, shapes, config.dropout, rate if drop_path else 0.0)
        x, maps = nnx.merge(graph, params)(x, shapes, maps=attention, noise=noise)
        return x, (maps, x if outputs else None)

    scan = config.scan
    if scan == "auto":
        scan = kernels.automatic(jax.default_backend(), depth)["scan"]
    scanned = scan == "on"
    if config.remat != "none":
        policy = REMAT_POLICIES[config.remat]
        run = jax.checkpoint(run, policy=policy, prevent_cse=not scanned)
    x, layers = flatten(groups), (stacked, jnp.arange(depth), rates)
    if scanned:
        x, (maps, xs) = jax.lax.scan(run, x, layers)
    else:
        collected = []
        for layer in unstack(layers, depth):
            x, out = run(x, layer)
            collected.append(out)
        maps, xs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected)
    named = {"attention": maps} if attention else {}
    if outputs:
        per_group = jax.vmap(lambda x: unflatten(x, shapes))(xs)
        named["blocks"] = [g.reshape(depth, -1, *g.shape[-2:]) for g in per_group]
    return unflatten(x, shapes), named


def unstack(stacked, depth):
    """One tree with leaves [l, ...] -> l trees.

    By a split, whose transpose is one concatenation: the backward pass of indexing would add up l
    arrays of the full size.
    """
    leaves, structure = jax.tree.flatten(stacked)
    split = [jax.lax.split(x, [1] * depth) for x in leaves]
    return [structure.unflatten([x[0] for x in layer]) for layer in zip(*split, strict=True)]


def flatten(groups):
    """Arrays b v n d -> [t, d], all tokens of one image together."""
    b, d = groups[0].shape[0], groups[0].shape[-1]
    rows = [g.reshape(b, -1, d) for g in groups]
    return (rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)).reshape(-1, d)


def unflatten(x, shapes):
    """The inverse of `flatten`: [t, d] -> arrays b v n d."""
    b, d = shapes[0][0], x.shape[-1]
    x, groups, start = x.reshape(b, -1, d), [], 0
    for _, v, n in shapes:
        groups.append(x[:, start : start + v * n].reshape(b, v, n, d))
        start += v * n
    return groups
