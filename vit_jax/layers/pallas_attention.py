"""Multi-head self-attention for TPU that keeps the scores in VMEM.

XLA writes the scores [b, heads, n, n] of attention to HBM and reads them again. These kernels hold
a few images in VMEM and compute attention of all their heads there, forward and backward; the
backward pass computes the scores again from the queries and keys. They add the bias of the qkv
layer and sum its gradient, and accept any number of tokens. JAX's own TPU kernels want multiples of
128 tokens and the heads as a separate axis (experiments/benchmarks/tpu_attention.py).

Heads are selected by masks, not by slices: a product over 64 lanes takes as long as one over 128,
and moving lanes takes time.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from vit_jax.devices import sharding

LANES = 128
ROWS_PER_STEP = 1024  # tokens per grid step: several images, to amortize its overhead
MAX_VMEM_BYTES = 56 * 2**20  # of 64 MiB or more in v5e, v5p, v6e and v7x
MAX_UNROLLED_HEADS = 8  # in the code of a kernel; more take many minutes to compile
FORWARD_UNROLL = 6  # heads whose products and softmax the compiler interleaves: 1.45 times faster
MAX_UNROLLED_TOKENS = 256  # longer views keep the units busy and take long to compile


def supports(n, num_heads, head_size, dtype):
    """Return whether attention of one image fits into the VMEM of a TPU v5e or later.

    TPUs up to v4 have 16 MiB of VMEM; there, the kernels do not compile.

    Args:
      n: tokens per view.
      num_heads: attention heads.
      head_size: size of a head.
      dtype: dtype of the activations; float32 or bfloat16.
    """
    d = num_heads * head_size
    return (
        jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16)
        and _span(d, head_size) // head_size <= MAX_UNROLLED_HEADS
        and _vmem_bytes(1, n, d, head_size, jnp.dtype(dtype).itemsize) <= MAX_VMEM_BYTES
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def attend(qkv, bias, num_heads):
    """Compute softmax(q k^T / sqrt(e)) v of all heads (arXiv:1706.03762, equation 1).

    Products are computed in the dtype of qkv; scores, softmax and sums in float32. Under a mesh,
    images are sharded over `data` and `fsdp`, and heads over `tensor`, where sizes are divisible.
    On platforms other than TPU, the kernels run in the interpreter.

    Args:
      qkv: queries, keys and values before the bias [b, n, 3, d].
      bias: their bias [3, d] in float32, or None.
      num_heads: attention heads.

    Returns:
      The output [b, n, d] in the dtype of qkv.
    """
    rows, columns, heads = _partition(qkv.shape[0], num_heads)
    function = functools.partial(_attend_local, num_heads=heads)
    args, specs = _arguments(qkv, bias, rows, columns)
    return _shard(function, specs, PartitionSpec(rows, None, columns))(*args)


def _attend_forward(qkv, bias, num_heads):
    return attend(qkv, bias, num_heads), (qkv, bias)


def _attend_backward(num_heads, residuals, g):
    qkv, bias = residuals
    rows, columns, heads = _partition(qkv.shape[0], num_heads)
    function = functools.partial(_gradients_local, num_heads=heads)
    args, specs = _arguments(qkv, bias, rows, columns)
    specs.append(PartitionSpec(rows, None, columns))
    out_specs = [PartitionSpec(rows, None, None, columns)]
    if bias is not None:
        out_specs.append(PartitionSpec(rows, None, columns))
    dqkv, *dbias = _shard(function, specs, out_specs)(*args, g)
    # The sum over devices stays outside of shard_map, where XLA merges it with other gradients.
    return dqkv, dbias[0].sum(0).astype(bias.dtype) if dbias else None


attend.defvjp(_attend_forward, _attend_backward)


def _arguments(qkv, bias, rows, columns):
    args = [qkv] if bias is None else [qkv, bias]
    specs = [PartitionSpec(rows, None, None, columns), PartitionSpec(None, columns)]
    return args, specs[: len(args)]


def _partition(b, num_heads):
    """Return mesh axes of images and of heads (None: not sharded), and heads per device."""
    sizes = sharding.mesh_shape()
    rows = tuple(axis for axis in ("data", "fsdp") if axis in sizes)
    if not rows or b % math.prod(sizes[axis] for axis in rows):
        rows = None
    shards = sizes.get("tensor", 1)
    if num_heads % shards:
        shards = 1
    return rows, "tensor" if shards > 1 else None, num_heads // shards


def _shard(function, in_specs, out_specs):
    if math.prod(sharding.mesh_shape().values()) <= 1:
        return function
    return jax.shard_map(function, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)


def _attend_local(qkv, *bias, num_heads):
    b, n, _, d = qkv.shape
    out = jax.ShapeDtypeStruct((b, n, d), qkv.dtype)
    args = (qkv.swapaxes(1, 2), *bias)  # one [n, d] matrix per part; a layout, not a copy
    return _call(_forward_kernel, "attention_forward", args, [out], num_heads)[0]


def _gradients_local(qkv, *bias_and_g, num_heads):
    b, n, _, d = qkv.shape
    args = (qkv.swapaxes(1, 2), *bias_and_g)
    outs = [jax.ShapeDtypeStruct(args[0].shape, qkv.dtype)]
    if len(bias_and_g) == 2:
        steps = b // _images_per_step(b, n, d, d // num_heads, qkv.dtype.itemsize)
        wide = _accumulation_dtype(qkv.dtype)
        outs.append(jax.ShapeDtypeStruct((steps, 3, d), wide))
    dqkv, *dbias = _call(_backward_kernel, "attention_backward", args, outs, num_heads)
    return [dqkv.swapaxes(1, 2), *dbias]


def _call(kernel, name, args, outs, num_heads):
    b, _, n, d = args[0].shape
    itemsize = args[0].dtype.itemsize
    images = _images_per_step(b, n, d, d // num_heads, itemsize)
    steps = b // images

    def spec(a):
        if a.ndim == 2:  # the bias
            return pl.BlockSpec(a.shape, lambda _: (0, 0))
        block = (a.shape[0] // steps, *a.shape[1:])
        return pl.BlockSpec(block, lambda i: (i,) + (0,) * (a.ndim - 1))

    products = 2 if kernel is _forward_kernel else 5
    cost = pl.CostEstimate(
        flops=2 * products * b * n * n * d,
        transcendentals=b * num_heads * n * n,
        bytes_accessed=sum(a.size * a.dtype.itemsize for a in (*args, *outs)),
    )

    def call(*args, interpret):
        return pl.pallas_call(
            functools.partial(kernel, num_heads=num_heads, interpret=interpret),
            grid=(steps,),
            in_specs=[spec(a) for a in args],
            out_specs=[spec(a) for a in outs],
            out_shape=outs,
            name=name,
            interpret=interpret,
            cost_estimate=cost,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",), vmem_limit_bytes=MAX_VMEM_BYTES
            ),
        )(*args)

    return jax.lax.platform_dependent(
        *args,
        tpu=functools.partial(call, interpret=False),
        default=functools.partial(call, interpret=True),
    )


def _forward_kernel(qkv_ref, *refs, num_heads, interpret):
    bias_ref, out_ref = (None, *refs)[-2:]
    images, n, d = out_ref.shape
    dtype = out_ref.dtype
    wide = _accumulation_dtype(dtype)
    span = _span(d, d // num_heads)
    scale = (d // num_heads) ** -0.5 / math.log(2)

    def body(image, lanes):
        q, k, v = (_load(qkv_ref, bias_ref, image, part, lanes) for part in range(3))
        q = q.astype(dtype)
        out = [None] * pl.cdiv(span, LANES)
        for tiles, mask in _heads(span, d // num_heads):
            kh, vh = (_select(x, tiles, mask, dtype) for x in (k, v))
            scores = _dot(q[:, tiles], kh, (1, 1), wide)
            p = jnp.exp2((scores - scores.max(1, keepdims=True)) * scale)
            total = p.sum(1, keepdims=True)
            product = _dot(p.astype(dtype), vh, (1, 0), wide)
            _accumulate(out, product * _reciprocal(total, interpret), tiles)
        for tile, x in _tiles(out, lanes):
            out_ref[image, :, tile] = x.astype(dtype)

    heads = FORWARD_UNROLL if n <= MAX_UNROLLED_TOKENS else 1
    _loop(images, d, span, body, unroll=heads // (span // (d // num_heads)))


def _backward_kernel(qkv_ref, *refs, num_heads, interpret):
    bias_ref, g_ref, dqkv_ref, dbias_ref = refs if len(refs) == 4 else (None, *refs, None)
    images, n, d = g_ref.shape
    dtype = g_ref.dtype
    wide = _accumulation_dtype(dtype)
    span = _span(d, d // num_heads)
    root = (d // num_heads) ** -0.5
    if dbias_ref is not None:
        dbias_ref[...] = jnp.zeros_like(dbias_ref)

    def body(image, lanes):
        q, k, v = (_load(qkv_ref, bias_ref, image, part, lanes) for part in range(3))
        g = g_ref[image, :, lanes].astype(wide)
        all_q, all_g = q.astype(dtype), g.astype(dtype)
        gradients = [[None] * pl.cdiv(span, LANES) for _ in range(3)]
        for tiles, mask in _heads(span, d // num_heads):
            qh, kh, vh, gh = (_select(x, tiles, mask, dtype) for x in (q, k, v, g))
            # Keys are rows and queries columns: sums over rows are faster than over columns, and
            # only one of the five products has to transpose its operand.
            scores = _dot(kh, all_q[:, tiles], (1, 1), wide)
            p = jnp.exp2((scores - scores.max(0, keepdims=True)) * (root / math.log(2)))
            p = p * _reciprocal(p.sum(0, keepdims=True), interpret)
            dp = _dot(vh, all_g[:, tiles], (1, 1), wide)
            pdp = p * dp
            ds = (pdp - p * pdp.sum(0, keepdims=True)).astype(dtype)
            _accumulate(gradients[0], _dot(ds, kh, (0, 0), wide), tiles)
            _accumulate(gradients[1], _dot(ds, qh, (1, 0), wide), tiles)
            _accumulate(gradients[2], _dot(p.astype(dtype), gh, (1, 0), wide), tiles)
        for part, gradient in enumerate(gradients):
            for tile, x in _tiles(gradient, lanes):
                x = x if part == 2 else x * root
                dqkv_ref[image, part, :, tile] = x.astype(dtype)
                if dbias_ref is not None:
                    dbias_ref[0, part : part + 1, tile] += x.sum(0, keepdims=True)

    _loop(images, d, span, body, unroll=1)


def _loop(images, d, span, body, unroll):
    """Call body(image, lanes) for all images and all spans of lanes."""

    def per_span(image, i):
        # If there is one span, its size need not be a multiple of the tile size.
        start = 0 if span == d else pl.multiple_of(i * span, LANES)
        body(image, pl.ds(start, span))

    def per_image(image):
        spans = d // span
        factor = max(i for i in range(1, max(unroll, 1) + 1) if spans % i == 0)
        _for(spans, lambda i: per_span(image, i), factor)

    _for(images, per_image)


def _for(count, body, unroll=1):
    """Call body(i) for i < count; without a loop for one iteration, whose time
    `perf.pallas` does not find."""
    if count == 1:
        body(0)
    else:
        jax.lax.fori_loop(0, count, lambda i, _: body(i), None, unroll=unroll)


def _span(d, e):
    """Return the lanes after which heads of size e are aligned to tiles again, or else all d."""
    span = math.lcm(e, LANES)
    return d if d % span else span


def _heads(span, e):
    """Yield the tiles that hold each head, and the mask of its lanes (None: all of them)."""
    for low in range(0, span, e):
        first = low // LANES * LANES
        last = min(pl.cdiv(low + e, LANES) * LANES, span)
        mask = None
        if last - first > e:
            lane = jax.lax.broadcasted_iota(jnp.int32, (1, last - first), 1) + first
            mask = (lane >= low) & (lane < low + e)
        yield slice(first, last), mask


def _load(ref, bias_ref, image, part, lanes):
    x = ref[image, part, :, lanes].astype(_accumulation_dtype(ref.dtype))
    return x if bias_ref is None else x + bias_ref[part : part + 1, lanes]


def _select(x, tiles, mask, dtype):
    x = x[:, tiles]
    return (x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))).astype(dtype)


def _accumulation_dtype(dtype):
    return jnp.promote_types(dtype, jnp.float32)  # as in `kernels`, which imports this module


def _dot(a, b, axes, dtype):
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    # "highest" as JAX's default precision concerns float32; Mosaic rejects it for bfloat16.
    precision = jax.lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=dtype)


def _reciprocal(x, interpret):
    """Compute 1 / x of a softmax sum, which is at least 1: an exact division checks for zeros."""
    if interpret:
        return 1 / x
    reciprocal = getattr(pltpu, "reciprocal", None) or pl.reciprocal  # moved in JAX 0.12
    r = reciprocal(x, approx=True)
    return r * (2 - x * r)  # a step of Newton's method doubles the number of correct bits


def _accumulate(sums, x, tiles):
    """Add x, which covers `tiles`, to a list of sums per tile of 128 lanes."""
    for low in range(0, x.shape[1], LANES):
        i = (tiles.start + low) // LANES
        part = x[:, low : low + LANES]
        sums[i] = part if sums[i] is None else sums[i] + part


def _tiles(sums, lanes):
    """Yield the lanes of each tile of a list of `_accumulate`, and its sum."""
    for i, x in enumerate(sums):
        yield pl.ds(lanes.start + i * LANES, x.shape[1]), x


def _images_per_step(b, n, d, e, itemsize):
    """Return the number of images per grid step, a divisor of b."""
    most = max(ROWS_PER_STEP // n, 1)
    sizes = [i for i in range(1, most + 1) if b % i == 0]
    return max((i for i in sizes if _vmem_bytes(i, n, d, e, itemsize) <= MAX_VMEM_BYTES), default=1)


def _vmem_bytes(images, n, d, e, itemsize):
    """Estimate the VMEM of the backward kernel: two buffers per block, scores, float32 operands."""
    rows, columns = pl.cdiv(n, 16) * 16, pl.cdiv(n, LANES) * LANES
    lanes = pl.cdiv(d, LANES) * LANES
    blocks = 2 * images * 7 * rows * lanes * itemsize
    operands = 8 * rows * pl.cdiv(_span(d, e), LANES) * LANES * 4
    return blocks + 6 * rows * columns * 4 + operands
