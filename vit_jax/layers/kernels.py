"""The encoder's inner functions, with custom gradients that are faster on CPU.

`tests/layers/test_kernels.py` compares values and gradients with JAX's own. The custom gradients
save memory traffic: those of JAX keep and re-read intermediate arrays, these keep the inputs and a
number or two per token. A train step of Ti/16 on CPU is 1.15 times as fast
(experiments/benchmarks). Reverse mode only: jax.jvp and jax.hessian are not supported.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def wide(dtype):
    """The dtype of accumulation: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def automatic(platform, depth=1):
    """The values of "auto" in config.model on a platform: "cpu", "gpu" or "tpu".

    On CPU a scan makes steps slower, and pays only where unrolled blocks compile for long.
    """
    cpu = platform == "cpu"
    return {"scan": "off" if cpu and depth <= 12 else "on", "attn": "matmul" if cpu else "xla"}


@jax.custom_vjp
def dense(x, kernel):
    """[t, d] @ [d, *features] -> [t, *features]."""
    return jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())))


def _dense_forward(x, kernel):
    return dense(x, kernel), (x, kernel)


def _dense_backward(residuals, g):
    # Contracted in the layout that the kernel has; jax's rule makes the transpose and copies it.
    x, kernel = residuals
    features = tuple(range(1, g.ndim))
    dx = jax.lax.dot_general(g, kernel, ((features, features), ((), ())))
    return dx, jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())))


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def gelu(x):
    """x Phi(x), exact (arXiv:1606.08415), elementwise."""
    return x * _normal_cdf(x)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, g):
    density = jnp.exp(-0.5 * x * x) * (2 * np.pi) ** -0.5
    return (g * (_normal_cdf(x) + x * density),)


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def softmax_product(q, k, v):
    """softmax(q k^T) v, all b h n e, q scaled already."""
    return _softmax_product_forward(q, k, v)[0]


def _softmax_product_forward(q, k, v):
    # The softmax accumulates in float32 for any dtype of activations: 8 bits are too few.
    scores = jnp.einsum("bhqe,bhme->bhqm", q, k).astype(wide(q.dtype))
    e = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = e.sum(-1, keepdims=True)
    e = e.astype(v.dtype)
    out = (jnp.einsum("bhqm,bhme->bhqe", e, v) / total).astype(v.dtype)
    return out, (q, k, v, e, total, out)


def _softmax_product_backward(residuals, g):
    # The softmax is never divided out: its sums divide the narrow b h q e, not the b h q m.
    q, k, v, e, total, out = residuals
    g = (g / total).astype(g.dtype)
    dv = jnp.einsum("bhqm,bhqe->bhme", e, g)
    ds = e * (jnp.einsum("bhqe,bhme->bhqm", g, v) - (g * out).sum(-1, keepdims=True))
    return jnp.einsum("bhqm,bhme->bhqe", ds, k), jnp.einsum("bhqm,bhqe->bhme", ds, q), dv


softmax_product.defvjp(_softmax_product_forward, _softmax_product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x, scale, bias, eps):
    """LayerNorm (arXiv:1607.06450): over the last axis, mean 0, variance 1, * scale + bias."""
    return _normalize_forward(x, scale, bias, eps)[0]


def _normalize_forward(x, scale, bias, eps):
    mean = x.mean(-1, keepdims=True)
    r = jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + eps)
    return (x - mean) * (r * scale) + bias, (x, mean, r, scale)


def _normalize_backward(_, residuals, g):
    x, mean, r, scale = residuals
    y, gs = (x - mean) * r, g * scale
    dx = r * (gs - gs.mean(-1, keepdims=True) - y * (gs * y).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return dx, (g * y).sum(rows), g.sum(rows)


normalize.defvjp(_normalize_forward, _normalize_backward)
