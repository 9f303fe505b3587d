"""The Transformer encoder: blocks of attention and MLP (arXiv:2010.11929, equations 2 and 3).

The input is one or more groups of tokens [b, v, n, d], with v views per image and n tokens per
view. Multi-crop training has one group per crop size. Attention runs within each view. The tokens
have one of two layouts, which give the same result (`kernels.token_layout`): "flat", where dense
layers run over the tokens of all groups at once, as an array [t, d]; or "grouped", an array
[b * v, n, d] per group. The tokens of an image are contiguous in either, so that the batch stays
sharded over devices.

The parameters of the blocks are stacked: every leaf of `blocks` has a leading layer axis. Running
the blocks with `lax.scan` or unrolled gives the same result and differs only in speed.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.devices import sharding
from vit_jax.layers import kernels
from vit_jax.layers.attention import Attention, Views
from vit_jax.layers.drop_path import Dropout
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.norms import LayerNorm

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names("dense"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class LayerScale(nnx.Module):
    """Learned scale per channel of a residual branch (CaiT, arXiv:2103.17239, equation 4)."""

    def __init__(self, config):
        self.gamma = nnx.Param(jnp.full(config.width, config.layer_scale_init, jnp.float32))
        self.dtype = config.dtype

    def __call__(self, x):
        # In float32, so that the gradient of gamma is summed in float32.
        x = x.astype(kernels.accumulation_dtype(self.dtype))
        return (x * self.gamma[...]).astype(self.dtype)


class Block(nnx.Module):
    """Encoder block: pre-norm, x + f(norm(x)); post-norm, norm(x + f(x)); or x + norm(f(x))."""

    def __init__(self, config, *, rngs):
        self.norm1 = LayerNorm(config.width, eps=config.norm_eps, dtype=config.dtype)
        self.attn = Attention(config, rngs=rngs)
        self.norm2 = LayerNorm(config.width, eps=config.norm_eps, dtype=config.dtype)
        self.mlp = Mlp(config, kind=config.mlp, norm=config.mlp_norm, rngs=rngs)
        self.order = config.norm
        use_layer_scale = config.layer_scale_init is not None
        self.ls1 = LayerScale(config) if use_layer_scale else None
        self.ls2 = LayerScale(config) if use_layer_scale else None

    def __call__(self, x, views, *, kernel, maps, dropout, read=None):
        """Apply the block.

        Args:
          x: tokens [t, d] of all groups, or [b * v, n, d] of one; see `Attention`.
          views: `Views` of each group in x.
          kernel: the attention kernel.
          maps: whether to return the attention maps.
          dropout: `Dropout` of this block.
          read: number of tokens to compute, the first ones of x [b * v, n, d]; None: all.

        Returns:
          Tokens of the shape of x, or [b * v, read, d]; and attention maps [b * v, heads, q, m] of
          each group, or None if not maps.
        """

        def norm(layer, x, order):
            return layer(x) if self.order == order else x

        def attention(x):
            x = norm(self.norm1, x, "pre")
            x, probabilities = self.attn(x, views, kernel=kernel, maps=maps, read=read)
            x = norm(self.norm1, dropout.drop(x, 0), "res_post")
            x = x if self.ls1 is None else self.ls1(x)
            return dropout.drop_path(x, 1), probabilities

        def mlp(x):
            x = norm(self.norm2, x, "pre")
            x = self.mlp(x, lambda x: dropout.drop(x, 2))
            x = norm(self.norm2, dropout.drop(x, 3), "res_post")
            x = x if self.ls2 is None else self.ls2(x)
            return dropout.drop_path(x, 4)

        branch, probabilities = attention(x)
        x = norm(self.norm1, (x if read is None else x[:, :read]) + branch, "post")
        return norm(self.norm2, x + mlp(x), "post"), probabilities


def make_blocks(config, *, rngs):
    """Create the blocks of a `ViTConfig` as one module with a leading layer axis in every leaf."""

    @nnx.split_rngs(splits=config.depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Block(config, rngs=rngs)

    return make(rngs)


def encode(
    config,
    blocks,
    groups,
    *,
    coordinates=None,
    keys=None,
    attention=False,
    outputs=False,
    read=None,
    layout=None,
):
    """Run the encoder blocks on groups of tokens.

    Args:
      config: `ViTConfig` of the blocks.
      blocks: stacked blocks, as returned by `make_blocks`.
      groups: list of tokens [b, v, n, d]; v and n may differ between groups.
      coordinates: coordinates of each group for RoPE, see `Views`; None: no RoPE.
      keys: one random key per image [b] for dropout and drop path; None: neither is applied.
      attention: whether to return the attention maps of each block.
      outputs: whether to return the output of each block.
      read: number of tokens per view to return, the first ones. The last block is then computed
        for them only. None: all. It cannot be combined with `attention` or `outputs`.
      layout: "flat" or "grouped"; None: that of the attention kernel.

    Returns:
      The list of tokens [b, v, n, d], or [b, v, read, d], after the last block; and a dict with
      "attention", a list of maps [l, b * v, heads, q, m], and "blocks", a list of outputs
      [l, b * v, n, d], as requested. The lists have one array per group.
    """
    coordinates = coordinates or [None] * len(groups)
    views = [Views(*g.shape[:3], c) for g, c in zip(groups, coordinates, strict=True)]
    auto = kernels.resolve_auto(jax.default_backend(), config)
    kernel = auto["attn"] if config.attn == "auto" else config.attn
    flat = (layout or kernels.token_layout(kernel)) == "flat"
    inputs = [views] if flat else [[_pad_coordinates(group, kernel)] for group in views]
    xs = [flatten(groups)] if flat else [_pad(g, kernel) for g in groups]
    kernel = "matmul" if attention else kernel
    graph, stacked = nnx.split(blocks)
    apply = functools.partial(_apply_block, config, graph, keys, views)

    def run(xs, layer):
        xs, maps = apply(xs, layer, inputs, kernel=kernel, maps=attention)
        return xs, (maps, xs if outputs else None)

    def as_groups(xs):
        if flat:
            return unflatten(xs[0], views)
        return [x[:, : v.tokens].reshape(*v[:3], -1) for x, v in zip(xs, views, strict=True)]

    scanned = (auto["scan"] if config.scan == "auto" else config.scan) == "on"
    run = _rematerialize(run, config, prevent_cse=not scanned)
    depth = config.depth
    # Linear in depth (arXiv:1603.09382, equation 4), but 0 in the first block, as in timm and DeiT.
    first_rate = config.drop_path if config.drop_path_uniform else 0.0
    rates = jnp.zeros(depth)
    if config.drop_path:
        rates = jnp.linspace(first_rate, config.drop_path, depth)
    layers = (nnx.to_pure_dict(stacked), jnp.arange(depth), rates)
    if scanned:
        if read is not None:
            layers, last = split(layers, [depth - 1, 1])
            last = jax.tree.map(lambda x: x[0], last)
        xs, (maps, all_xs) = jax.lax.scan(run, xs, layers)
    else:
        layers = [jax.tree.map(lambda x: x[0], layer) for layer in split(layers, [1] * depth)]
        last = layers.pop() if read is not None else None
        collected = []
        for layer in layers:
            xs, out = run(xs, layer)
            collected.append(out)
        if read is None:
            maps, all_xs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected)
    groups = as_groups(xs)
    if read is not None:
        return _apply_last_block(config, apply, groups, views, last, read), {}
    named = {"attention": maps} if attention else {}
    if outputs:
        per_group = jax.vmap(as_groups)(all_xs)
        named["blocks"] = [g.reshape(depth, -1, *g.shape[-2:]) for g in per_group]
    return groups, named


def _apply_block(config, graph, keys, views, xs, layer, inputs, *, kernel, maps, read=None):
    """Apply a block to all groups.

    Args:
      config: `ViTConfig` of the blocks.
      graph: the graph of a block.
      keys: as in `encode`.
      views: `Views` of all groups.
      xs: inputs of the block: one of all groups, or one per group.
      layer: parameters, index and drop path rate of the block.
      inputs: the list of `Views` of each of xs.
      kernel: the attention kernel.
      maps: whether to return the attention maps.
      read: as in `encode`.

    Returns:
      The outputs, and the list of attention maps of all groups.
    """
    params, index, rate = layer
    block = nnx.merge(graph, params)
    layer_keys = None
    if keys is not None:
        layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    new = []
    all_maps = []
    for group, (x, x_views) in enumerate(zip(xs, inputs, strict=True)):
        dropout = Dropout()
        if keys is not None:
            masks = [(b, v, read or n) for b, v, n, _ in views]
            rates = config.dropout, rate if config.drop_path else 0.0
            dropout = Dropout(layer_keys, masks, *rates, None if x.ndim == 2 else group)
        x, x_maps = block(
            sharding.constrain_batch(x),
            x_views,
            kernel=kernel,
            maps=maps,
            dropout=dropout,
            read=read,
        )
        new.append(x)
        all_maps += x_maps or []
    return new, all_maps


def _apply_last_block(config, apply, groups, views, layer, read):
    """Apply a block for the first `read` tokens of groups [b, v, n, d]; apply: `_apply_block`."""

    def run(xs, layer):
        # Few queries: the scores are small, and cuDNN does not take a single one.
        inputs = [[group] for group in views]
        return apply(xs, layer, inputs, kernel="matmul", maps=False, read=read)[0]

    xs = [g.reshape(-1, *g.shape[2:]) for g in groups]
    xs = _rematerialize(run, config)(xs, layer)
    return [x.reshape(*v[:2], read, -1) for x, v in zip(xs, views, strict=True)]


def _rematerialize(run, config, **options):
    """Apply `config.remat` to a function of arrays."""
    if config.remat == "none":
        return run
    return jax.checkpoint(run, policy=REMAT_POLICIES[config.remat], **options)


def _pad(group, kernel):
    """Convert a group [b, v, n, d] to [b * v, n, d], padded for an attention kernel."""
    b, v, n, d = group.shape
    padding = kernels.padded_length(kernel, n) - n
    return jnp.pad(group.reshape(b * v, n, d), [(0, 0), (0, padding), (0, 0)])


def _pad_coordinates(views, kernel):
    """Pad the coordinates of `Views` to the length of `_pad`."""
    x = views.coordinates
    if x is None:
        return views
    padding = kernels.padded_length(kernel, views.tokens) - views.tokens
    return views._replace(coordinates=jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, padding), (0, 0)]))


def split(stacked, sizes):
    """Split a tree with leaves [l, ...] along the layer axis into trees of the given sizes.

    The transpose of a split is one concatenation, whereas the backward pass of indexing would sum
    arrays of the full size.
    """
    leaves, structure = jax.tree.flatten(stacked)
    parts = [jax.lax.split(x, sizes) for x in leaves]
    return [structure.unflatten(part) for part in zip(*parts, strict=True)]


def flatten(groups):
    """Flatten groups [b, v, n, d] into tokens [t, d], with the tokens of an image contiguous."""
    b, d = groups[0].shape[0], groups[0].shape[-1]
    rows = [g.reshape(b, -1, d) for g in groups]
    return (rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)).reshape(-1, d)


def unflatten(x, views):
    """Invert `flatten`: split tokens [t, d] into groups [b, v, n, d] of these `Views`."""
    b, d = views[0].images, x.shape[-1]
    x = x.reshape(b, -1, d)
    groups = []
    start = 0
    for _, v, n, _ in views:
        groups.append(x[:, start : start + v * n].reshape(b, v, n, d))
        start += v * n
    return groups
