"""Rotary embedding: against complex multiplication in float64, and the properties it is used for."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops.rope import Pairs, dynamic_ntk, frequencies, llama3, rotate, rotation, yarn

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
    got = rotate(jnp.asarray(x, jnp.float32), rotation(jnp.asarray(positions), frequencies(K, theta)))
    np.testing.assert_allclose(got, turned(x, positions, theta), atol=1e-4)


def test_adjacent_pairs_are_the_other_order_of_the_same() -> None:
    x, positions = draw()
    order = np.arange(16).reshape(8, 2).T.ravel()
    other = np.empty_like(x)
    other[..., order] = turned(x[..., order], positions)
    assert np.abs(other - turned(x, positions)).max() > 0.1
    got = rotate(jnp.asarray(x, jnp.float32), rotation(jnp.asarray(positions), frequencies(16, 1e4)), "adjacent")
    np.testing.assert_allclose(got, other, atol=1e-4)


@pytest.mark.parametrize("pairs", ["half", "adjacent"])
def test_what_lies_beyond_the_rotated_width_stays(pairs: Pairs) -> None:
    x, positions = draw()
    turn = rotation(jnp.asarray(positions), frequencies(6, 1e4))
    got = rotate(jnp.asarray(x, jnp.float32), turn, pairs)
    np.testing.assert_array_equal(got[..., 6:], np.float32(x[..., 6:]))
    np.testing.assert_array_equal(got[..., :6], rotate(jnp.asarray(x[..., :6], jnp.float32), turn, pairs))


def test_norms_are_kept() -> None:
    x, positions = draw()
    got = rotate(jnp.asarray(x, jnp.float32), rotation(jnp.asarray(positions), frequencies(16, 1e4)))
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)


def test_products_depend_on_the_distance_alone() -> None:
    dice = np.random.default_rng(0)
    q, k = (jnp.asarray(np.tile(dice.standard_normal(32), (1, 40, 1, 1)), jnp.float32) for _ in range(2))
    positions = jnp.arange(40)[None]

    def products(shift: int, distance: int) -> Array:
        turned_q = rotate(q, rotation(positions + shift + distance, frequencies(32, 1e4)))
        return np.einsum("bshk,bshk->bs", turned_q, rotate(k, rotation(positions + shift, frequencies(32, 1e4))))

    near = products(0, 3)
    np.testing.assert_allclose(near, near[0, 0], atol=2e-5)
    np.testing.assert_allclose(products(100, 3), near, atol=1e-4)
    assert np.abs(products(0, 4) - near).max() > 1e-2


def test_position_zero_changes_nothing_and_documents_restart() -> None:
    x, _ = draw()
    positions = np.tile(np.arange(10), (2, 3))
    got = rotate(jnp.asarray(x, jnp.float32), rotation(jnp.asarray(positions), frequencies(16, 1e4)))
    np.testing.assert_array_equal(got[:, [0, 10, 20]], np.float32(x[:, [0, 10, 20]]))


def test_angles_are_float32_in_bfloat16_too() -> None:
    x, positions = draw()
    x16 = jnp.asarray(x, jnp.bfloat16)
    got = rotate(x16, rotation(jnp.asarray(positions), frequencies(16, 1e4)))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), turned(np.asarray(x16, np.float64), positions), atol=2e-2)


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    plain = frequencies(128, 500_000.0)
    got = llama3(plain, factor=8.0, low=1.0, high=4.0, original_length=8192)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_array_equal(got[turns >= 4], plain[turns >= 4])
    np.testing.assert_allclose(got[turns <= 1], plain[turns <= 1] / 8, rtol=1e-15)
    between = (turns > 1) & (turns < 4)
    assert between.any() and (got[between] < plain[between]).all() and (got[between] > plain[between] / 8).all()
    assert (np.diff(got) < 0).all()


def test_yarn_keeps_short_waves_and_stretches_long_ones() -> None:
    plain = frequencies(128, 10_000.0)
    for truncate in (True, False):
        got = yarn(128, 10_000.0, factor=16.0, original_length=4096, fast=32.0, slow=1.0, truncate=truncate)
        turns = 4096 * plain / (2 * np.pi)
        np.testing.assert_allclose(got[turns > 40], plain[turns > 40], rtol=1e-12)
        np.testing.assert_allclose(got[turns < 0.8], plain[turns < 0.8] / 16, rtol=1e-12)
        assert (np.diff(got) < 0).all()


def test_dynamic_theta_grows_with_the_longest_position_only_beyond_the_original_length() -> None:
    short = jnp.arange(64)[None]
    np.testing.assert_array_equal(
        dynamic_ntk(short, 16, 1e4, factor=2.0, original_length=64), np.float32(frequencies(16, 1e4))
    )
    long = dynamic_ntk(jnp.arange(192)[None], 16, 1e4, factor=2.0, original_length=64)
    theta = 1e4 * (2.0 * 192 / 64 - 1) ** (16 / 14)
    np.testing.assert_allclose(long, frequencies(16, theta), rtol=2e-6)


def test_frequencies_are_rounded_as_published_code_rounds_them() -> None:
    """Powers and their reciprocals, each to float32: 1 / (theta ** (2i / width)) in torch."""
    powers = np.array([5e5 ** (2 * i / 64) for i in range(32)]).astype(np.float32)
    np.testing.assert_array_equal(frequencies(64, 5e5), np.float32(1) / powers)
    once = np.array([5e5 ** (-2 * i / 64) for i in range(32)]).astype(np.float32)
    assert 0 < (frequencies(64, 5e5) != once).sum() < 16
