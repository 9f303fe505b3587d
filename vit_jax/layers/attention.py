"""Multi-head self-attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.layers import kernels
from vit_jax.layers.mlp import INITS, Linear


def attend(q, k, v, *, kernel, maps=False, length=None):
    """Scaled dot-product attention, softmax(q k^T / sqrt(e)) v (arXiv:1706.03762, equation 1).

    Args:
      q, k, v: queries, keys and values [b, n, heads, e].
      kernel: "matmul", "xla" or "cudnn".
      maps: whether to return the attention maps; they are always computed by "matmul".
      length: number of keys that are attended to, for "cudnn"; the rest is padding. None: all.

    Returns:
      The output [b, q, heads, e]; and the softmax [b, heads, q, m], or None if not maps.
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
    # With the head axis before the tokens, both products are 1.2 to 1.4 times faster on CPU.
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # b h n e
    if not maps:
        return kernels.softmax_product(q, k, v).swapaxes(1, 2), None
    scores = jnp.einsum("bhqe,bhme->bhqm", q, k)
    probabilities = jax.nn.softmax(scores.astype(kernels.accumulation_dtype(q.dtype)), axis=-1)
    out = jnp.einsum("bhqm,bhme->bhqe", probabilities.astype(v.dtype), v)
    return out.swapaxes(1, 2), probabilities


class Attention(nnx.Module):
    """Multi-head self-attention within each view (arXiv:1706.03762, section 3.2.2)."""

    def __init__(self, config, *, rngs):
        make = dict(init=INITS[config.init], dtype=config.dtype, rngs=rngs)
        self.qkv = Linear(config.width, 3, config.width, bias=config.qkv_bias, **make)
        self.proj = Linear(config.width, config.width, **make)
        self.num_heads = config.num_heads

    def __call__(self, x, shapes, *, kernel, maps, read=None):
        """Apply attention within each view.

        Args:
          x: tokens [t, d] of all groups, as `encoder.flatten` returns them; or [b * v, n, d] of one
            group, where the rows from n on are padding.
          shapes: (b, v, n) of each group in x.
          kernel: "matmul", "xla", "cudnn" or "pallas".
          maps: whether to return the attention maps.
          read: number of queries, the first tokens of x [b * v, n, d]; None: all tokens.

        Returns:
          Tokens of the shape of x, or [b * v, read, d]; and attention maps [b * v, heads, q, m] of
          each group, or None if not maps.
        """
        if read is not None:
            return self.proj(self._attend_first(x, read, kernel)), None
        if x.ndim == 3:
            out, group_maps = self._attend_group(x, shapes[0][-1], kernel, maps)
            return self.proj(out), [group_maps] if maps else None
        t, d = x.shape
        qkv = self.qkv(x).reshape(shapes[0][0], -1, 3, d)  # b (tokens per image) 3 d
        outs = []
        probabilities = []
        start = 0
        for b, v, n in shapes:
            part = qkv[:, start : start + v * n].reshape(b * v, n, 3, d)
            out, group_maps = attend(*self._split(part), kernel=kernel, maps=maps)
            outs.append(out.reshape(b, v * n, d))
            probabilities.append(group_maps)
            start += v * n
        out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
        return self.proj(out.reshape(t, d)), probabilities if maps else None

    def _attend_group(self, x, length, kernel, maps):
        """Attention in x [b, n, d] to the first `length` keys, before the output projection."""
        if kernel == "pallas" and not maps:
            from vit_jax.layers import pallas_attention  # slow to import, and for TPUs only

            bias = None if self.qkv.bias is None else self.qkv.bias[...]
            return pallas_attention.attend(self.qkv.product(x), bias, self.num_heads), None
        q, k, v = self._split(self.qkv(x))
        out, group_maps = attend(q, k, v, kernel=kernel, maps=maps, length=length)
        return out.reshape(x.shape), group_maps

    def _attend_first(self, x, read, kernel):
        """Attention in x [b, n, d] of the first `read` queries, before the output projection."""
        q = self.qkv.part(x[:, :read], 0, 1)[:, :, 0]
        kv = self.qkv.part(x, 1, 3)
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (y.reshape(*y.shape[:2], *heads) for y in (q, kv[:, :, 0], kv[:, :, 1]))
        return attend(q, k, v, kernel=kernel)[0].reshape(len(x), read, -1)

    def _split(self, qkv):
        """Split [b, n, 3, d] into queries, keys and values [b, n, heads, e]."""
        qkv = qkv.reshape(*qkv.shape[:3], self.num_heads, -1)
        return tuple(qkv[:, :, i] for i in range(3))


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
        layer = Attention(dataclasses.replace(config, dtype=dtype, attn="auto"), rngs=nnx.Rngs(0))
        graph, params = nnx.split(layer)
        # Kernels of the initialization would give equal weights to all keys.
        params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), params)
        params = jax.tree.map(lambda p: p * p.shape[0] ** -0.5 if p.ndim > 1 else p, params)
        padding = kernels.padded_length(kernel, n) - n

        def apply(params, x):
            x = jnp.pad(x.astype(dtype), [(0, 0), (0, padding), (0, 0)])
            out, _ = nnx.merge(graph, params)(x, [(batch, 1, n)], kernel=kernel, maps=False)
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
