"""Multi-head self-attention."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.layers import kernels
from vit_jax.layers.mlp import INITS, Linear
from vit_jax.layers.norms import LayerNorm
from vit_jax.layers.rope import Rope


class Views(NamedTuple):
    """A group of views of the same number of tokens.

    Attributes:
      images: number of images b.
      per_image: views per image v.
      tokens: tokens per view n.
      coordinates: coordinates of the tokens for RoPE [n, 2] or [b * v, n, 2]; None without RoPE.
    """

    images: int
    per_image: int
    tokens: int
    coordinates: Any = None


def attend(q, k, v, *, kernel, maps=False, length=None):
    """Scaled dot-product attention, softmax(q k^T / sqrt(e)) v (arXiv:1706.03762, equation 1).

    Args:
      q, k, v: queries, keys and values [b, n, heads, e].
      kernel: "matmul", "xla" or "cudnn".
      maps: whether to return the attention maps; they are always computed by "matmul".
      length: number of tokens; the rest is padding, which is not attended to. None: all.

    Returns:
      The output [b, q, heads, e]; and the softmax [b, heads, q, m] without padding, or None if not
      maps.
    """
    if kernel in ("xla", "cudnn") and not maps:
        b, m = k.shape[:2]
        if length in (None, m):
            return jax.nn.dot_product_attention(q, k, v, implementation=kernel), None
        # Zeros also in the gradients: cuDNN does not say what it writes to the padding. The
        # padding has queries, so that their outputs are finite; their gradients are zeros.
        real = (jnp.arange(m) < length)[:, None, None]
        k, v = (jnp.where(real, x, 0) for x in (k, v))
        lengths = {"key_value_seq_lengths": jnp.full(b, length, jnp.int32)}
        return jax.nn.dot_product_attention(q, k, v, implementation=kernel, **lengths), None
    k, v = k[:, :length], v[:, :length]
    # With the head axis before the tokens, both products are 1.2 to 1.4 times faster on CPU.
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # b h n e
    if not maps:
        return kernels.softmax_product(q, k, v).swapaxes(1, 2), None
    scores = jnp.einsum("bhqe,bhme->bhqm", q, k)
    probabilities = jax.nn.softmax(scores.astype(kernels.accumulation_dtype(q.dtype)), axis=-1)
    out = jnp.einsum("bhqm,bhme->bhqe", probabilities.astype(v.dtype), v)
    return out.swapaxes(1, 2), probabilities[:, :, :length]


class QkvLinear(Linear):
    """Projection to queries, keys and values; without a bias of the keys, its bias is [2, d]."""

    def __init__(self, config, *, rngs):
        init = INITS[config.init]
        bias = config.qkv_bias
        super().__init__(
            config.width, 3, config.width, bias=bias, init=init, dtype=config.dtype, rngs=rngs
        )
        self.has_k_bias = config.k_bias or not bias
        if not self.has_k_bias:
            self.bias = nnx.Param(jnp.zeros((2, config.width)))

    def full_bias(self):
        """Return the bias [3, d], with zeros for the keys if they have none."""
        bias = self.bias[...]
        return bias if self.has_k_bias else jnp.stack([bias[0], jnp.zeros_like(bias[0]), bias[1]])


class Attention(nnx.Module):
    """Multi-head self-attention within each view (arXiv:1706.03762, section 3.2.2).

    Options of the config add QK norm and RoPE between the projection and the product of queries and
    keys, and a LayerNorm before the output projection.
    """

    def __init__(self, config, *, rngs):
        def norm(width, used):
            return LayerNorm(width, eps=config.norm_eps, dtype=config.dtype) if used else None

        self.qkv = QkvLinear(config, rngs=rngs)
        self.q_norm = norm(config.head_size, config.qk_norm)
        self.k_norm = norm(config.head_size, config.qk_norm)
        self.norm = norm(config.width, config.attn_norm)
        make = dict(init=INITS[config.init], dtype=config.dtype, rngs=rngs)
        self.proj = Linear(config.width, config.width, **make)
        self.rope = None if config.rope == "none" else Rope(config, rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(self, x, views, *, kernel, maps, read=None):
        """Apply attention within each view.

        Args:
          x: tokens [t, d] of all groups, as `encoder.flatten` returns them; or [b * v, n, d] of one
            group, where the rows from n on are padding.
          views: `Views` of each group in x.
          kernel: "matmul", "xla", "cudnn" or "pallas".
          maps: whether to return the attention maps.
          read: number of queries, the first tokens of x [b * v, n, d]; None: all tokens.

        Returns:
          Tokens of the shape of x, or [b * v, read, d]; and attention maps [b * v, heads, q, m] of
          each group, or None if not maps.
        """
        if read is not None:
            return self._project(self._attend_first(x, views[0], read, kernel)), None
        if x.ndim == 3:
            out, group_maps = self._attend_group(x, views[0], kernel, maps)
            return self._project(out), [group_maps] if maps else None
        t, d = x.shape
        qkv = self.qkv(x).reshape(views[0].images, -1, 3, d)  # b (tokens per image) 3 d
        outs = []
        probabilities = []
        start = 0
        for b, v, n, coordinates in views:
            part = qkv[:, start : start + v * n].reshape(b * v, n, 3, d)
            qkv_heads = self._split(part, coordinates)
            out, group_maps = attend(*qkv_heads, kernel=kernel, maps=maps)
            outs.append(out.reshape(b, v * n, d))
            probabilities.append(group_maps)
            start += v * n
        out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
        return self._project(out.reshape(t, d)), probabilities if maps else None

    def _attend_group(self, x, views, kernel, maps):
        """Attention in x [b, n, d] to the keys of `views`, before the output projection."""
        if kernel == "pallas" and not maps:
            from vit_jax.layers import pallas_attention  # slow to import, and for TPUs only

            bias = None if self.qkv.bias is None else self.qkv.full_bias()
            return pallas_attention.attend(self.qkv.product(x), bias, self.num_heads), None
        q, k, v = self._split(self.qkv(x), views.coordinates)
        out, group_maps = attend(q, k, v, kernel=kernel, maps=maps, length=views.tokens)
        return out.reshape(x.shape), group_maps

    def _attend_first(self, x, views, read, kernel):
        """Attention in x [b, n, d] of the first `read` queries, before the output projection."""
        q = self.qkv.part(x[:, :read], 0, 1)[:, :, 0]
        kv = self.qkv.part(x, 1, 3)
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (y.reshape(*y.shape[:2], *heads) for y in (q, kv[:, :, 0], kv[:, :, 1]))
        q, k = self._place(q, k, views.coordinates)
        return attend(q, k, v, kernel=kernel)[0].reshape(x.shape[0], read, -1)

    def _split(self, qkv, coordinates):
        """Split [b, n, 3, d] into queries, keys and values [b, n, heads, e]."""
        qkv = qkv.reshape(*qkv.shape[:3], self.num_heads, -1)
        q, k, v = (qkv[:, :, i] for i in range(3))
        return *self._place(q, k, coordinates), v

    def _place(self, q, k, coordinates):
        """Apply QK norm and RoPE to queries and keys [b, n, heads, e]; there may be fewer q."""
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            cos, sin = self.rope(coordinates)
            first = (..., slice(q.shape[1]), slice(None), slice(None))
            q, k = self.rope.rotate(q, cos[first], sin[first]), self.rope.rotate(k, cos, sin)
        return q, k

    def _project(self, x):
        """Apply the norm, if any, and the output projection to x [..., d]."""
        return self.proj(x if self.norm is None else self.norm(x))


MAX_KERNEL_ERROR = 0.02  # relative, in the L2 norm; that of bfloat16 is below 0.01


def prove(kernel, config, batch=2):
    """Compare an attention kernel with "matmul" on the default device.

    Values and gradients of one small batch, with the length, heads and dtype of the model, are
    compared with "matmul" in float32.

    Args:
      kernel: the kernel that "auto" resolves to on an attached device.
      config: a `ViTConfig`.
      batch: number of images.

    Returns:
      The kernel to use: `kernel`, or "xla" if it does not compile, raises or is inaccurate; and a
      line of text about the result, None if there was nothing to compare.
    """
    if kernel in ("matmul", "xla"):
        return kernel, None
    n = config.prefix + config.grid[0] * config.grid[1]
    x, g = jax.random.normal(jax.random.key(0), (2, batch, n, config.width))

    def gradient(kernel, dtype):
        plain = dataclasses.replace(config, dtype=dtype, attn="auto", rope="none", rope_grid=None)
        layer = Attention(plain, rngs=nnx.Rngs(0))  # kernels get queries and keys after RoPE
        graph, params = nnx.split(layer)
        # Kernels of the initialization would give equal weights to all keys.
        params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), params)
        params = jax.tree.map(lambda p: p * p.shape[0] ** -0.5 if p.ndim > 1 else p, params)
        padding = kernels.padded_length(kernel, n) - n

        def apply(params, x):
            x = jnp.pad(x.astype(dtype), [(0, 0), (0, padding), (0, 0)])
            out, _ = nnx.merge(graph, params)(x, [Views(batch, 1, n)], kernel=kernel, maps=False)
            return out[:, :n].astype(jnp.float32)

        def loss(params, x):
            out = apply(params, x)
            return jnp.vdot(out, g), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
        return jax.device_get(jax.tree.leaves((out, gradients)))

    try:
        pairs = zip(gradient(kernel, config.dtype), gradient("matmul", "float32"), strict=True)
        error = max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)
    except Exception as error:  # noqa: BLE001  a compiler or a library may raise anything
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
        return "xla", f"attention: xla, because {kernel} fails: {reason}"
    if not error <= MAX_KERNEL_ERROR:
        return "xla", f"attention: xla, because {kernel} differs from matmul by {error:.2g}"
    return kernel, f"attention: {kernel}, within {error:.2g} of matmul"
