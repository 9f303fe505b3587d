"""Kernels with custom gradients against JAX's and SciPy's, in float64, float32 and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from vit_jax import variants
from vit_jax.layers import kernels
from vit_jax.layers.encoder import LayerScale
from vit_jax.layers.mlp import INITS, Linear
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.models import pure


def layer_norm(x, scale, bias):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + bias


CASES = {
    "dense": (lambda x, w: jnp.tensordot(x, w, 1), [(6, 5), (5, 3, 4)]),
    "add_bias": (lambda x, b: x + b, [(6, 5, 3, 4), (3, 4)]),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), [(7, 9)]),
    "softmax_product": (
        lambda q, k, v: jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v,
        [(2, 3, 7, 4), (2, 3, 5, 4), (2, 3, 5, 4)],
    ),
    "layer_norm": (layer_norm, [(6, 8), (8,), (8,)]),
}
KERNELS = {
    "dense": kernels.dense,
    "add_bias": kernels.add_bias,
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


@pytest.mark.parametrize("name", ["dense", "add_bias", "gelu", "softmax_product"])
def test_gradients_have_the_dtype_of_inputs(name):
    _, shapes = CASES[name]
    inputs = [jnp.ones(shape, jnp.bfloat16) for shape in shapes]
    out, vjp = jax.vjp(KERNELS[name], *inputs)
    assert out.dtype == jnp.bfloat16
    assert all(g.dtype == jnp.bfloat16 for g in vjp(out))


def test_softmax_of_large_scores_is_finite():
    q = jnp.full((1, 1, 2, 4), 300.0)
    assert np.isfinite(kernels.softmax_product(q, q, q)).all()


def test_gelu_in_bfloat16_is_rounded_once():
    """Its error is that of rounding, half a unit in the last place, and 1% of it."""
    x = jnp.linspace(-9, 9, 20_001).astype(jnp.bfloat16)
    y, vjp = jax.vjp(jax.jit(kernels.gelu), x)
    wide = np.asarray(x, np.float64)
    with jax.enable_x64(True):
        cdf = np.asarray(0.5 * jax.lax.erfc(jnp.asarray(wide * -(0.5**0.5))))
        density = np.exp(-0.5 * wide**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(np.asarray(y, np.float64), wide * cdf, rtol=2**-8 * 1.01)
    (gradient,) = vjp(jnp.ones_like(x))
    expected = cdf + wide * density
    error = np.abs(np.asarray(gradient, np.float64) - expected)
    assert (error <= 2**-8 * 1.01 * np.abs(expected) + 3e-5 * cdf).all()


def test_gelu_is_accurate_in_the_tail():
    x = np.linspace(-6, 6, 100_001).astype(np.float32)
    y, vjp = jax.vjp(jax.jit(kernels.gelu), jnp.asarray(x))
    wide = x.astype(np.float64)
    cdf, slope = ndtr(wide), wide * np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(y, wide * cdf, rtol=3e-6)
    # The two terms of the derivative cancel at -0.75, so the error is relative to their sizes.
    error = np.abs(vjp(jnp.ones_like(y))[0] - (cdf + slope))
    assert (error / (cdf + np.abs(slope))).max() < 3e-6
    extremes = jnp.array([-1e30, -20, 14, 2.0**99, np.inf, np.nan], jnp.float32)
    np.testing.assert_array_equal(kernels.gelu(extremes), [0, 0, 14, 2.0**99, np.inf, np.nan])


def patch_embed(how):
    return lambda **options: PatchEmbed(2, 1, 8, how=how, init="deit", **options)


def layer_scale(dtype, **_):
    return LayerScale(variants.parse("mu/8", width=8, layer_scale_init=0.5, dtype=dtype))


LAYERS = {
    "linear": (lambda **options: Linear(4, 8, init=INITS["deit"], **options), (4096, 4)),
    "patch_embed_conv": (patch_embed("conv"), (16, 32, 32, 1)),
    "patch_embed_linear": (patch_embed("linear"), (16, 32, 32, 1)),
    "layer_scale": (layer_scale, (4096, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_biases_and_scales_are_summed_in_float32(name):
    make, shape = LAYERS[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.bfloat16)
    model = pure(lambda rngs: make(dtype="bfloat16", rngs=rngs))
    out, vjp = jax.vjp(lambda params: model.apply(params, x), model.init(jax.random.key(0)))
    g = jnp.asarray(rng.uniform(0.5, 1.5, out.shape), jnp.bfloat16)
    (gradient,) = vjp(g)
    assert out.dtype == jnp.bfloat16
    terms = np.asarray(g, np.float64)
    if name == "layer_scale":
        terms *= np.asarray(x, np.float64)
    actual = gradient["gamma" if name == "layer_scale" else "bias"]
    np.testing.assert_allclose(actual, terms.reshape(-1, 8).sum(0), rtol=1e-5)


def test_bfloat16_residuals_are_bfloat16():
    x = jnp.ones((64, 32), jnp.bfloat16)
    wide = jnp.ones(32)
    for function in (
        lambda x: kernels.normalize(x, wide, wide, 1e-6),
        kernels.gelu,
        lambda x: kernels.add_bias(x, wide),
    ):
        out, vjp = jax.vjp(function, x)
        assert out.dtype == jnp.bfloat16
        residuals = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size >= x.size]
        assert all(leaf.dtype == jnp.bfloat16 for leaf in residuals)


@pytest.mark.parametrize("mean", [0, 100])
def test_layer_norm_in_one_pass_is_as_accurate_as_the_input(mean):
    rng = np.random.default_rng(0)
    x = jnp.asarray(mean + rng.normal(size=(64, 768)), jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    actual = kernels.normalize(x, jnp.ones(768), jnp.zeros(768), 1e-6)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=2**-7, atol=2e-3)
