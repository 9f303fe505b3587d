"""TPU attention, run in the interpreter, against the matmul path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from vit_jax.devices import sharding
from vit_jax.layers import attention, kernels, pallas_attention


def arrays(b, n, num_heads, head_size, dtype=jnp.float32):
    rng = np.random.default_rng(n)
    d = num_heads * head_size
    shapes = (b, n, 3, d), (3, d), (b, n, d)
    qkv, bias, g = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return qkv.astype(dtype), bias, g.astype(dtype)


def matmul(qkv, bias, num_heads):
    b, n, _, d = qkv.shape
    qkv = qkv if bias is None else kernels.add_bias(qkv, bias)
    q, k, v = (qkv[:, :, i].reshape(b, n, num_heads, -1) for i in range(3))
    return attention.attend(q, k, v, kernel="matmul")[0].reshape(b, n, d)


def value_and_gradients(function, qkv, bias, g, num_heads):
    @jax.jit
    def run(qkv, bias, g):
        out, vjp = jax.vjp(lambda qkv, bias: function(qkv, bias, num_heads), qkv, bias)
        return out, *vjp(g)

    return [np.asarray(x, np.float32) for x in run(qkv, bias, g) if x is not None]


def error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("b", "n", "num_heads", "head_size"),
    [
        (6, 37, 4, 64),  # six images per grid step, two tiles of two heads
        (2, 197, 3, 16),  # less than a tile
        (1, 257, 2, 128),  # whole tiles
        (2, 50, 8, 80),  # heads that lie in two tiles
        (2, 17, 3, 64),  # one tile and a half
    ],
)
def test_equals_matmul_path(b, n, num_heads, head_size):
    inputs = arrays(b, n, num_heads, head_size)
    expected = value_and_gradients(matmul, *inputs, num_heads)
    actual = value_and_gradients(pallas_attention.attend, *inputs, num_heads)
    for pair in zip(actual, expected, strict=True):
        assert error(*pair) < 1e-6


def test_without_bias():
    qkv, _, g = arrays(2, 37, 2, 64)
    expected = value_and_gradients(matmul, qkv, None, g, 2)
    actual = value_and_gradients(pallas_attention.attend, qkv, None, g, 2)
    assert len(actual) == 2
    for pair in zip(actual, expected, strict=True):
        assert error(*pair) < 1e-6


def test_bfloat16_rounds_only_operands_and_results():
    qkv, bias, g = arrays(4, 197, 2, 64, jnp.bfloat16)
    wide = qkv.astype(jnp.float32), bias, g.astype(jnp.float32)
    expected = value_and_gradients(matmul, *wide, 2)
    actual = value_and_gradients(pallas_attention.attend, qkv, bias, g, 2)
    for pair in zip(actual, expected, strict=True):
        assert error(*pair) < 2**-7
    # The gradient of the bias is a sum over 788 rows, which a sum in bfloat16 would lose.
    assert error(actual[2], expected[2]) < 2**-8


@pytest.mark.parametrize("num_heads", [4, 3])  # 3 heads are not sharded over tensor=2
def test_four_devices_equal_one(num_heads):
    inputs = arrays(8, 17, num_heads, 32)
    expected = value_and_gradients(pallas_attention.attend, *inputs, num_heads)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 2}, jax.devices()[:4])
    columns = "tensor" if num_heads == 4 else None
    specs = (
        PartitionSpec(("data", "fsdp"), None, None, columns),
        PartitionSpec(None, columns),
        PartitionSpec(("data", "fsdp"), None, columns),
    )
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
            for x, spec in zip(inputs, specs, strict=True)
        ]
        actual = value_and_gradients(pallas_attention.attend, *placed, num_heads)
    for pair in zip(actual, expected, strict=True):
        assert error(*pair) < 1e-6


def test_supports_what_fits():
    for n, num_heads, head_size in ((197, 6, 64), (577, 16, 64), (257, 16, 80), (37, 3, 64)):
        assert pallas_attention.supports(n, num_heads, head_size, "bfloat16")
    assert not pallas_attention.supports(4097, 6, 64, "bfloat16")  # 400 MB of scores
    assert not pallas_attention.supports(197, 6, 64, "float64")


@pytest.mark.slow
def test_compiles_for_tpu_mesh_without_scores_in_hbm():
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, devices)

    def run(qkv, bias, g):
        out, vjp = jax.vjp(lambda qkv, bias: pallas_attention.attend(qkv, bias, 4), qkv, bias)
        return out, *vjp(g)

    def abstract(shape, dtype, *spec):
        placement = jax.sharding.NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placement)

    rows = ("data", "fsdp")
    with jax.set_mesh(mesh):
        args = (
            abstract((16, 197, 3, 256), jnp.bfloat16, rows, None, None, "tensor"),
            abstract((3, 256), jnp.float32, None, "tensor"),
            abstract((16, 197, 256), jnp.bfloat16, rows, None, "tensor"),
        )
        text = jax.jit(run).lower(*args).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert "197,197]" not in text
