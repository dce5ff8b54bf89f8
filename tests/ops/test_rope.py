"""Rotary embedding: against complex multiplication in float64, and the properties it is used for."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops.rope import rotate, rotation

Array = np.ndarray[Any, Any]


def turned(x: Array, positions: Array, theta: float = 10_000.0) -> Array:
    """[B, S, H, K] as complex pairs (i, i + K/2) times e^(i angle), in float64."""
    K = x.shape[-1]
    angle = positions[:, :, None, None] * theta ** (-np.arange(0, K, 2) / K)
    pairs = (x[..., : K // 2] + 1j * x[..., K // 2 :]) * np.exp(1j * angle)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def draw(K: int = 16) -> tuple[Array, Array]:
    dice = np.random.default_rng(K)
    return dice.standard_normal((2, 30, 3, K)), dice.integers(0, 500, (2, 30))


@pytest.mark.parametrize(("K", "theta"), [(16, 10_000.0), (2, 10_000.0), (64, 500_000.0)])
def test_against_complex_numbers(K: int, theta: float) -> None:
    x, positions = draw(K)
    got = rotate(jnp.asarray(x, jnp.float32), rotation(jnp.asarray(positions), K, theta))
    np.testing.assert_allclose(got, turned(x, positions, theta), atol=1e-4)


def test_interleaved_pairs_would_be_seen() -> None:
    x, positions = draw()
    order = np.arange(16).reshape(8, 2).T.ravel()
    other = np.empty_like(x)
    other[..., order] = turned(x[..., order], positions)
    assert np.abs(other - turned(x, positions)).max() > 0.1


def test_norms_are_kept() -> None:
    x, positions = draw()
    got = rotate(jnp.asarray(x, jnp.float32), rotation(jnp.asarray(positions), 16, 1e4))
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)


def test_products_depend_on_the_distance_alone() -> None:
    dice = np.random.default_rng(0)
    q, k = (jnp.asarray(np.tile(dice.standard_normal(32), (1, 40, 1, 1)), jnp.float32) for _ in range(2))
    positions = jnp.arange(40)[None]

    def products(shift: int, distance: int) -> Array:
        turned_q = rotate(q, rotation(positions + shift + distance, 32, 1e4))
        return np.einsum("bshk,bshk->bs", turned_q, rotate(k, rotation(positions + shift, 32, 1e4)))

    near = products(0, 3)
    np.testing.assert_allclose(near, near[0, 0], atol=2e-5)
    np.testing.assert_allclose(products(100, 3), near, atol=1e-4)
    assert np.abs(products(0, 4) - near).max() > 1e-2


def test_position_zero_changes_nothing_and_documents_restart() -> None:
    x, _ = draw()
    positions = np.tile(np.arange(10), (2, 3))
    got = rotate(jnp.asarray(x, jnp.float32), rotation(jnp.asarray(positions), 16, 1e4))
    np.testing.assert_array_equal(got[:, [0, 10, 20]], np.float32(x[:, [0, 10, 20]]))


def test_angles_are_float32_in_bfloat16_too() -> None:
    x, positions = draw()
    x16 = jnp.asarray(x, jnp.bfloat16)
    got = rotate(x16, rotation(jnp.asarray(positions), 16, 1e4))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), turned(np.asarray(x16, np.float64), positions), atol=2e-2)
