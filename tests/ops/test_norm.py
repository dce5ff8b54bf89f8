"""RMS and layer norm: values in float64 numpy, gradients against autodiff of the plain spelling."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.ops.norm import layer_norm, rms_norm

DICE = np.random.default_rng(0)
X, SCALE = DICE.standard_normal((2, 5, 24)) * 3, DICE.standard_normal(24)
EPS = 1e-5


def plain(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + EPS) * scale


def test_values() -> None:
    expected = X / np.sqrt((X * X).mean(-1, keepdims=True) + EPS) * SCALE
    got = rms_norm(jnp.asarray(X, jnp.float32), jnp.asarray(SCALE, jnp.float32), EPS)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    low = rms_norm(jnp.asarray(X, jnp.bfloat16), jnp.asarray(SCALE, jnp.float32), EPS)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), expected, rtol=2e-2)


def test_epsilon_counts() -> None:
    tiny = rms_norm(jnp.full((1, 1, 8), 1e-4), jnp.ones(8), EPS)
    np.testing.assert_allclose(tiny, 1e-4 / np.sqrt(1e-8 + EPS), rtol=1e-6)


def test_gradients() -> None:
    x, scale = jnp.asarray(X, jnp.float32), jnp.asarray(SCALE, jnp.float32)
    dy = jnp.asarray(DICE.standard_normal(X.shape), jnp.float32)
    ours = jax.vjp(lambda x, s: rms_norm(x, s, EPS), x, scale)[1](dy)
    theirs = jax.vjp(plain, x, scale)[1](dy)
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def plain_layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + EPS) * scale + bias


def test_layer_norm() -> None:
    bias = DICE.standard_normal(24)
    x, scale, shift = (jnp.asarray(a, jnp.float32) for a in (X, SCALE, bias))
    expected = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + EPS) * SCALE
    np.testing.assert_allclose(layer_norm(x, scale, shift, EPS), expected + bias, atol=2e-6)
    np.testing.assert_allclose(layer_norm(x, scale, None, EPS), expected, atol=2e-6)
    low = layer_norm(x.astype(jnp.bfloat16), scale, shift, EPS)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), expected + bias, atol=5e-2)
    dy = jnp.asarray(DICE.standard_normal(X.shape), jnp.float32)
    ours = jax.vjp(lambda *a: layer_norm(*a, EPS), x, scale, shift)[1](dy)
    theirs = jax.vjp(plain_layer_norm, x, scale, shift)[1](dy)
    for got, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
