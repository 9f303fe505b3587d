"""Tokens through depth times attention and MLP (arXiv:2010.11929, equations 2 and 3).

The encoder takes one or several groups of tokens of different lengths, each b v n d: v views of
each image, n tokens a view. Multi-crop training has one group a crop size. Dense layers run over
all tokens at once, flat [t, d]; attention runs within each view. Image by image the flat tokens
lie together, so that a batch that is sharded over devices stays so.

Blocks are always stored stacked: every leaf of `blocks` has a leading layer axis. Whether they
are run by `lax.scan` or unrolled is a matter of speed alone.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vit_jax import kernels, sharding
from vit_jax.noise import Noise, Silence


def xavier(key, shape, dtype=jnp.float32):
    """Uniform within sqrt(6 / (fan in + fan out)); q, k and v of [d, 3, d] count each by itself."""
    bound = (6 / (shape[0] + shape[-1])) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


# Kernels of linear layers, as DeiT and timm have them, and as big_vision and MAE. 0.02 is made for
# the widths of Ti and more: a narrow model learns much faster from xavier.
INITS = {"deit": nnx.initializers.normal(0.02), "big_vision": xavier}
ACTIVATIONS = {
    "gelu": kernels.gelu,
    "gelu_tanh": partial(nnx.gelu, approximate=True),
}
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names("dense"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Linear(nnx.Module):
    """... d -> ... *features, with an optional bias. Parameters in float32, product in `dtype`."""

    def __init__(self, width, *features, bias=True, init, dtype, rngs):
        self.kernel = nnx.Param(init(rngs.params(), (width, *features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features)) if bias else None
        self.dtype = dtype

    def __call__(self, x):
        lead = x.shape[:-1]
        kernel = self.kernel[...].astype(self.dtype)
        y = kernels.dense(x.astype(self.dtype).reshape(-1, x.shape[-1]), kernel)
        y = checkpoint_name(y, "dense")  # for REMAT_POLICIES: a custom_vjp hides its products
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return y.reshape(*lead, *kernel.shape[1:])


class LayerNorm(nnx.Module):
    """Over the last axis, added up in float32. The eps of every ViT up to DINOv2 is 1e-6."""

    def __init__(self, width, *, eps=1e-6, dtype):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x):
        x = x.astype(kernels.wide(self.dtype))
        return kernels.normalise(x, self.scale[...], self.bias[...], self.eps).astype(self.dtype)


def automatic(platform, depth=1):
    """What "auto" in config.model stands for where the program will run: "cpu", "gpu" or "tpu".

    On CPU scanning makes steps slower, and is worth it where unrolled blocks compile for long.
    """
    cpu = platform == "cpu"
    return {"scan": "off" if cpu and depth <= 12 else "on", "attn": "matmul" if cpu else "xla"}


def attend(q, k, v, *, kernel, maps=False):
    """Scaled dot-product attention, b n h e each -> b q h e and, if asked, softmax b h q m.

    softmax(q k^T / sqrt(e)) v: arXiv:1706.03762, equation 1.
    """
    if kernel in ("xla", "cudnn") and not maps:
        return jax.nn.dot_product_attention(q, k, v, implementation=kernel), None
    # Heads first: on CPU the two batched products are then 1.2 to 1.4 times as fast.
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # b h n e
    if not maps:
        return kernels.softmax_product(q, k, v).swapaxes(1, 2), None
    scores = jnp.einsum("bhqe,bhme->bhqm", q, k)
    probabilities = jax.nn.softmax(scores.astype(kernels.wide(q.dtype)), axis=-1)
    out = jnp.einsum("bhqm,bhme->bhqe", probabilities.astype(v.dtype), v)
    return out.swapaxes(1, 2), probabilities


class Attention(nnx.Module):
    """Multi-head self-attention within each view (arXiv:1706.03762, section 3.2.2)."""

    def __init__(self, width, num_heads, *, qkv_bias, kernel, init, dtype, rngs):
        self.qkv = Linear(width, 3, width, bias=qkv_bias, init=init, dtype=dtype, rngs=rngs)
        self.proj = Linear(width, width, init=init, dtype=dtype, rngs=rngs)
        self.num_heads, self.kernel = num_heads, kernel

    def __call__(self, x, shapes, maps):
        """x [t, d]; shapes: (b, v, n) of each group. -> [t, d], maps [b*v, h, q, m] a group."""
        t, d = x.shape
        kernel = self.kernel
        if kernel == "auto":
            kernel = automatic(jax.default_backend())["attn"]
        qkv = self.qkv(x).reshape(shapes[0][0], -1, 3, d)  # b (tokens of an image) 3 d
        outs, probabilities, start = [], [], 0
        for b, v, n in shapes:
            part = qkv[:, start : start + v * n].reshape(b * v, n, 3, self.num_heads, -1)
            q, k, values = (part[:, :, i] for i in range(3))
            out, group_maps = attend(q, k, values, kernel=kernel, maps=maps)
            outs.append(out.reshape(b, v * n, d))
            probabilities.append(group_maps)
            start += v * n
        out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
        return self.proj(out.reshape(t, d)), probabilities if maps else None


class Mlp(nnx.Module):
    """Two linear layers with a GELU between them, and dropout after each."""

    def __init__(self, width, mlp_dim, *, act, init, dtype, rngs):
        self.fc1 = Linear(width, mlp_dim, init=init, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(mlp_dim, width, init=init, dtype=dtype, rngs=rngs)
        self.act = act

    def __call__(self, x, drop=lambda x: x):
        return self.fc2(drop(ACTIVATIONS[self.act](self.fc1(x))))


class Block(nnx.Module):
    """One encoder block: pre-norm, x + f(norm(x)), or post-norm, norm(x + f(x))."""

    def __init__(
        self, width, num_heads, mlp_dim, *, norm, act, qkv_bias, dropout, attn, init, dtype, rngs
    ):
        init = INITS[init]
        self.norm1 = LayerNorm(width, dtype=dtype)
        self.attn = Attention(
            width, num_heads, qkv_bias=qkv_bias, kernel=attn, init=init, dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(width, dtype=dtype)
        self.mlp = Mlp(width, mlp_dim, act=act, init=init, dtype=dtype, rngs=rngs)
        self.post, self.dropout = norm == "post", dropout

    def __call__(self, x, shapes, *, maps=False, noise=None):
        """x [t, d], noise None in evaluation. -> [t, d], maps of each group or None."""
        noise = noise or Silence()

        def attention(x):
            x, probabilities = self.attn(x, shapes, maps)
            return noise.drop_path(noise.drop(x, 0), 1), probabilities

        def mlp(x):
            x = self.mlp(x, lambda x: noise.drop(x, 2))
            return noise.drop_path(noise.drop(x, 3), 4)

        if self.post:
            branch, probabilities = attention(x)
            x = self.norm1(x + branch)
            return self.norm2(x + mlp(x)), probabilities
        branch, probabilities = attention(self.norm1(x))
        x = x + branch
        return x + mlp(self.norm2(x)), probabilities


def make_blocks(depth, *args, rngs, **options):
    """`depth` blocks of Block(*args, **options) as one, every leaf with a leading layer axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Block(*args, rngs=rngs, **options)

    return make(rngs)


def encode(blocks, groups, *, drop_path, remat, scan, keys=None, attention=False, outputs=False):
    """The encoder: groups of tokens, arrays b v n d of any v and n, through stacked blocks.

    -> (groups, {"attention": [l, b*v, h, q, m] a group, "blocks": [l, b*v, n, d] a group}), the
    two only if asked for. keys [b] switch dropout and drop path on.
    """
    shapes = tuple(g.shape[:3] for g in groups)
    graph, stacked = nnx.split(blocks)
    stacked = nnx.to_pure_dict(stacked)
    depth = jax.tree.leaves(stacked)[0].shape[0]
    # Linear in depth, 0 in the first block (arXiv:1603.09382, equation 4; timm, DeiT).
    rates = jnp.linspace(0.0, drop_path, depth) if drop_path else jnp.zeros(depth)

    def run(x, layer):
        params, index, rate = layer
        x = sharding.by_batch(x)
        noise = None
        if keys is not None:
            layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            noise = Noise(layer_keys, shapes, blocks.dropout, rate if drop_path else 0.0)
        x, maps = nnx.merge(graph, params)(x, shapes, maps=attention, noise=noise)
        return x, (maps, x if outputs else None)

    if scan == "auto":
        scan = automatic(jax.default_backend(), depth)["scan"]
    scanned = scan == "on"
    if remat != "none":
        run = jax.checkpoint(run, policy=REMAT_POLICIES[remat], prevent_cse=not scanned)
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
    """One tree with leaves [l, ...] -> l trees. Split, whose transpose is one concatenation:
    indexing a layer at a time would add up l arrays of the full size in the backward pass."""
    leaves, structure = jax.tree.flatten(stacked)
    split = [jax.lax.split(x, [1] * depth) for x in leaves]
    return [structure.unflatten([x[0] for x in layer]) for layer in zip(*split, strict=True)]


def flatten(groups):
    """Arrays b v n d -> [t, d], all tokens of one image together."""
    b, d = groups[0].shape[0], groups[0].shape[-1]
    rows = [g.reshape(b, -1, d) for g in groups]
    return (rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)).reshape(-1, d)


def unflatten(x, shapes):
    """[t, d] -> the arrays b v n d it was made of."""
    b, d = shapes[0][0], x.shape[-1]
    x, groups, start = x.reshape(b, -1, d), [], 0
    for _, v, n in shapes:
        groups.append(x[:, start : start + v * n].reshape(b, v, n, d))
        start += v * n
    return groups
