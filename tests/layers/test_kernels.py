"""Kernels with custom gradients against JAX's gradients, in float64 and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers import kernels


def layer_norm(x, scale, bias):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + bias


CASES = {
    "dense": (lambda x, w: jnp.tensordot(x, w, 1), [(6, 5), (5, 3, 4)]),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), [(7, 9)]),
    "softmax_product": (
        lambda q, k, v: jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v,
        [(2, 3, 7, 4), (2, 3, 5, 4), (2, 3, 5, 4)],
    ),
    "layer_norm": (layer_norm, [(6, 8), (8,), (8,)]),
}
KERNELS = {
    "dense": kernels.dense,
    "gelu": kernels.gelu,
    "softmax_product": kernels.softmax_product,
    "layer_norm": lambda *x: kernels.normalize(*x, 1e-6),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_match_jax(name):
    reference, shapes = CASES[name]
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
        inputs = [
            3 * jax.random.normal(k, s, jnp.float64) for k, s in zip(keys[1:], shapes, strict=True)
        ]
        expected, expected_vjp = jax.vjp(reference, *inputs)
        actual, actual_vjp = jax.vjp(KERNELS[name], *inputs)
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
        cotangent = jax.random.normal(keys[0], expected.shape, jnp.float64)
        for ours, theirs in zip(actual_vjp(cotangent), expected_vjp(cotangent), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["dense", "gelu", "softmax_product"])
def test_gradients_have_the_dtype_of_inputs(name):
    _, shapes = CASES[name]
    inputs = [jnp.ones(shape, jnp.bfloat16) for shape in shapes]
    out, vjp = jax.vjp(KERNELS[name], *inputs)
    assert out.dtype == jnp.bfloat16
    assert all(g.dtype == jnp.bfloat16 for g in vjp(out))


def test_softmax_of_large_scores_is_finite():
    q = jnp.full((1, 1, 2, 4), 300.0)
    assert np.isfinite(kernels.softmax_product(q, q, q)).all()
