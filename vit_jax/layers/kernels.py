"""Kernels of the encoder, with custom gradients that are faster on CPU.

The custom gradients reduce memory traffic: JAX's gradients store and reread intermediate arrays,
while these store the inputs and one or two numbers per token. They make a training step of Ti/16
1.15 times faster on CPU (experiments/benchmarks). Values and gradients are tested against JAX's.
Gradients of parameters that a batch shares are summed in float32, also for bfloat16 activations.
Only reverse-mode differentiation is supported, not jax.jvp or jax.hessian.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def accumulation_dtype(dtype):
    """Return the dtype in which to accumulate: float64 for float64, otherwise float32."""
    return jnp.promote_types(dtype, jnp.float32)


# On an H200, L/16 trains 1.22 times faster unrolled than scanned and compiles in half a minute. For
# a TPU, it compiles in minutes.
MAX_UNROLLED_BLOCKS = {"cpu": 12, "gpu": 32, "tpu": 12}


def resolve_auto(platform, config):
    """Return the values that "auto" options of `ViTConfig` resolve to.

    `lax.scan` makes training steps slower on all platforms, because it copies what the backward
    pass needs. It is used for deep models only, whose unrolled blocks take long to compile.

    Args:
      platform: "cpu", "gpu" or "tpu".
      config: a `ViTConfig`.

    Returns:
      A dict with the values of "scan", "attn" and "patch_embed".
    """
    return {
        "scan": "off" if config.depth <= MAX_UNROLLED_BLOCKS.get(platform, 12) else "on",
        "attn": _fastest_attention(platform, config),
        "patch_embed": patch_embedding("auto", platform),
    }


def patch_embedding(how, platform=None):
    """Return how patches are embedded on a platform, "conv" or "linear", for `ViTConfig`'s option.

    On an H200, cuDNN's convolutions of three channels take 1.2 ms of a 27 ms training step of S/16.
    """
    auto = "linear" if (platform or jax.default_backend()) == "gpu" else "conv"
    return auto if how == "auto" else how


def _fastest_attention(platform, config):
    """Return the attention kernel that "auto" stands for.

    The Pallas kernel takes the output of the qkv layer, and therefore neither QK norm nor RoPE.
    """
    if platform == "cpu":
        return "matmul"
    if platform == "gpu" and cudnn_supports(config):
        return "cudnn"
    if platform == "tpu" and config.plain_attention:
        from vit_jax.layers import pallas_attention  # slow to import, and for TPUs only

        n = config.prefix + config.grid[0] * config.grid[1]
        if pallas_attention.supports(n, config.num_heads, config.head_size, config.dtype):
            return "pallas"
    return "xla"


def cudnn_supports(config):
    """Return whether cuDNN has attention for the dtype and the head size of a `ViTConfig`."""
    size = config.head_size
    return config.dtype == "bfloat16" and size % 8 == 0 and size <= 128


def token_layout(attn):
    """Return the layout of tokens in the encoder that an attention kernel works on.

    Args:
      attn: the attention kernel.

    Returns:
      "flat": the tokens of all groups as one array [t, d], which makes a training step 2% to 6%
      faster on CPU; or "grouped": an array [b, n, d] per group. On TPU and GPU, splitting [t, d]
      into views copies the tokens if n is not a multiple of the tile size.
    """
    return "flat" if attn == "matmul" else "grouped"


def padded_length(attn, n):
    """Return the number of tokens to which views of n tokens are padded for an attention kernel.

    jax.nn.dot_product_attention cannot differentiate cuDNN attention of an odd length.
    """
    return n + n % 2 if attn == "cudnn" else n


def _after(g, value):
    """Return `value`, broadcast to the shape of g, such that XLA does not know it before g.

    In float32, XLA on CPU otherwise stores what a backward pass computes from residuals alone since
    the forward pass, instead of computing it again: 1.5 times the temporary memory of a training
    step. An optimization barrier does not prevent it: XLA removes it before it schedules.
    """
    return jnp.where(jnp.isnan(g), g, value)


@jax.custom_vjp
def dense(x, kernel):
    """Multiply x [..., d] by a kernel [d, *features]; returns [..., *features]."""
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _dense_forward(x, kernel):
    return dense(x, kernel), (x, kernel)


def _dense_backward(residuals, g):
    # Contract the kernel in its layout; JAX's rule transposes it, which makes a copy.
    x, kernel = residuals
    rows = tuple(range(x.ndim - 1))
    features = tuple(range(1, kernel.ndim))
    dx = jax.lax.dot_general(g, kernel, ((tuple(range(len(rows), g.ndim)), features), ((), ())))
    return dx, jax.lax.dot_general(x, g, ((rows, rows), ((), ())))


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def add_bias(x, bias):
    """Add a float32 bias to x in the dtype of x; the bias broadcasts over the leading axes of x."""
    return x + bias.astype(x.dtype)


def _add_bias_forward(x, bias):
    return add_bias(x, bias), bias


def _add_bias_backward(bias, g):
    return g, _sum_rows(g, g.ndim - bias.ndim).astype(bias.dtype)


def _sum_rows(x, count):
    """Sum x over its first `count` axes in `accumulation_dtype`.

    JAX's rule for a broadcast sums in the dtype of x; in bfloat16, a running sum stops growing at
    256 terms.
    """
    axes = tuple(range(count))
    wide = accumulation_dtype(x.dtype)

    def add(x):
        return x.sum(axes, dtype=wide)

    def multiply(x):
        # The matrix unit of a TPU sums in a tenth of the time. XLA turns a product with one row of
        # ones into a sum, but not one with eight, which takes as long.
        ones = jnp.ones((8, *x.shape[:count]), x.dtype)
        contract = tuple(range(1, count + 1)), axes
        return jax.lax.dot_general(ones, x, (contract, ((), ())), preferred_element_type=wide)[0]

    if x.dtype == wide:
        return add(x)
    return jax.lax.platform_dependent(x, tpu=multiply, default=add)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def gelu(x):
    """Exact GELU, x * Phi(x) (arXiv:1606.08415), computed in float32 (float64 for float64)."""
    wide = x.astype(accumulation_dtype(x.dtype))
    return (wide * _normal(wide, x.dtype)[0]).astype(x.dtype)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, g):
    wide = x.astype(accumulation_dtype(x.dtype))
    if wide.dtype == x.dtype:
        limit = _after(g, TAIL_LIMIT)
    else:
        # A limit unknown to XLA, which otherwise stores the exponential of the forward pass in
        # float32 instead of computing it again.
        limit = jax.lax.optimization_barrier(jnp.asarray(TAIL_LIMIT, wide.dtype))
    cdf, density = _normal(wide, x.dtype, limit)
    dx = (g * (cdf + wide * density)).astype(x.dtype)
    # Otherwise XLA on GPU stores dx in float32 for the sum over the batch in `add_bias`.
    return (dx if wide.dtype == x.dtype else jax.lax.optimization_barrier(dx),)


TAIL_LIMIT = 15.0  # here, the tail is 0 in float32
# Phi(-a) / exp(-a^2 / 2) for a in [0, TAIL_LIMIT] as a ratio of polynomials, constant terms first:
# minimax fits with a relative error below 1e-8 and, for results in bfloat16, of 2.6e-5, 1% of their
# rounding. The second makes the MLPs of S 6% faster on TPU, where its vector unit is the limit.
TAIL = (
    (0.5, 0.43928267, 0.18396857, 0.04088093, 0.0041532),
    (1.0, 1.67645035, 1.20554592, 0.47140718, 0.10247942, 0.01041042),
)
NARROW_TAIL = (
    (0.50001287, 0.27969636, 0.06313089),
    (1.0, 1.35807127, 0.70593709, 0.15808333),
)


def _normal(x, dtype, limit=TAIL_LIMIT):
    """Compute Phi(x) and its derivative, cumulative probability and density of a standard normal.

    `dtype` is that of the final result, x is wider or equal.

    (1 + erf(x / sqrt(2))) / 2 loses all digits below -5. XLA's erfc is accurate, but makes the
    forward and backward pass of GELU twice as slow on CPU.
    """
    scale = (2 * np.pi) ** -0.5
    if x.dtype == jnp.float64:
        return 0.5 * jax.lax.erfc(x * -(0.5**0.5)), jnp.exp(-0.5 * x * x) * scale
    a = jnp.minimum(jnp.abs(x), limit)
    e = jnp.exp(-0.5 * a * a)
    # The division comes last, so that XLA on CPU stores one intermediate array for it, not two.
    numerator, denominator = TAIL if dtype == x.dtype else NARROW_TAIL
    tail = e * _polynomial(numerator, a)
    tail = tail / _polynomial(denominator, a)
    return jnp.where(x < 0, tail, 1 - tail), e * scale


def _polynomial(coefficients, x):
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def softmax_product(q, k, v):
    """Compute softmax(q k^T) v for q, k, v [b, heads, n, e], with q already scaled."""
    return _softmax_product_forward(q, k, v)[0]


def _softmax_product_forward(q, k, v):
    # Accumulate in float32: the 8 bits of precision of bfloat16 are not enough.
    scores = jnp.einsum("bhqe,bhme->bhqm", q, k).astype(accumulation_dtype(q.dtype))
    e = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = e.sum(-1, keepdims=True)
    e = e.astype(v.dtype)
    out = (jnp.einsum("bhqm,bhme->bhqe", e, v) / total).astype(v.dtype)
    return out, (q, k, v, e, total, out)


def _softmax_product_backward(residuals, g):
    # The softmax sums divide the gradient [b, heads, q, e] instead of the larger [b, heads, q, m].
    q, k, v, e, total, out = residuals
    if g.dtype == total.dtype:
        total = total * _after(g[..., :1], 1)
    g = (g / total).astype(g.dtype)
    dv = jnp.einsum("bhqm,bhqe->bhme", e, g)
    ds = e * (jnp.einsum("bhqe,bhme->bhqm", g, v) - (g * out).sum(-1, keepdims=True))
    return jnp.einsum("bhqm,bhme->bhqe", ds, k), jnp.einsum("bhqm,bhqe->bhme", ds, q), dv


softmax_product.defvjp(_softmax_product_forward, _softmax_product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x, scale, bias, eps):
    """LayerNorm over the last axis (arXiv:1607.06450), with sums in `accumulation_dtype`."""
    return _normalize_forward(x, scale, bias, eps)[0]


def _normalize_forward(x, scale, bias, eps):
    wide = x.astype(accumulation_dtype(x.dtype))
    mean = wide.mean(-1, keepdims=True)
    if wide.dtype == x.dtype:
        variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    else:
        # In one pass over x. The error, 2^-24 of the mean square, is below that of the variance of
        # a bfloat16 x, whose elements are rounded to 2^-9 of the mean.
        mean_square = jnp.square(wide).mean(-1, keepdims=True)
        variance = jnp.maximum(mean_square - jnp.square(mean), 0)
    r = jax.lax.rsqrt(variance + eps)
    return ((wide - mean) * (r * scale) + bias).astype(x.dtype), (x, mean, r, scale)


def _normalize_backward(_, residuals, g):
    x, mean, r, scale = residuals
    g = g.astype(mean.dtype)
    late = scale
    if g.dtype == x.dtype:
        one = _after(g[..., :1], 1)
        mean, r, late = mean * one, r * one, scale * one
    y, gs = (x.astype(mean.dtype) - mean) * r, g * late
    dx = r * (gs - gs.mean(-1, keepdims=True) - y * (gs * y).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    dscale, dbias = ((t.sum(rows)).astype(scale.dtype) for t in (g * y, g))
    return dx.astype(x.dtype), dscale, dbias


normalize.defvjp(_normalize_forward, _normalize_backward)
