"""Attention: the kernels in plain XLA against float64 numpy, and what no query may see."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops.attention import ABILITIES, Kernel, Scoring, alibi_slopes, attend, attention
from jaxllm.ops.attention.blocks import _MAX_BLOCKS, _bounds

Array = np.ndarray[Any, Any]
KERNELS = [kernel for kernel, ability in ABILITIES.items() if "cpu" in ability.platforms]
# (B, S, H, G, K): grouped 6:2, lengths that no block divides, one key-value head, more width than heads x width.
SHAPES = [(2, 192, 6, 2, 16), (1, 131, 4, 4, 8), (2, 257, 4, 1, 24), (1, 5, 2, 1, 4), (1, 640, 2, 1, 8)]


def draw(shape: tuple[int, ...], dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    B, S, H, G, K = shape
    dice = np.random.default_rng(S)
    q, k, v = (jnp.asarray(dice.standard_normal((B, S, n, K)), dtype) for n in (H, G, G))
    segments = np.sort(dice.integers(0, 3, (B, S)), axis=1)
    return q, k, v, jnp.asarray(segments, jnp.int32)


def scorings(shape: tuple[int, ...]) -> dict[str, Scoring]:
    _, _, H, _, K = shape
    return {
        "plain": Scoring(np.sqrt(K)),
        "softcap": Scoring(0.5, softcap=1.5),
        "window": Scoring(np.sqrt(K), window=70),
        "alibi": Scoring(float(K), slopes=alibi_slopes(H)),
        "all": Scoring(1.0, softcap=2.0, window=3, slopes=alibi_slopes(H)),
    }


def expected(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, how: Scoring) -> Array:
    """Float64, one query at a time."""
    q64, k64, v64, segment = (np.asarray(x, np.float64) for x in (q, k, v, segments))
    B, S, H, _ = q64.shape
    out = np.zeros_like(q64)
    for b, s, h in np.ndindex(B, S, H):
        g = h // (H // k64.shape[2])
        first = 0 if how.window is None else max(0, s + 1 - how.window)
        seen = [t for t in range(first, s + 1) if segment[b, t] == segment[b, s]]
        scores = k64[b, seen, g] @ q64[b, s, h] / how.divisor
        if how.softcap is not None:
            scores = how.softcap * np.tanh(scores / how.softcap)
        if how.slopes is not None:
            scores = scores - how.slopes[h] * (s - np.array(seen))
        weight = np.exp(scores)
        out[b, s, h] = weight / weight.sum() @ v64[b, seen, g]
    return out


WAYS = [*((shape, "plain") for shape in SHAPES), *((SHAPES[0], how) for how in ("softcap", "window", "alibi", "all"))]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("shape", "how"), WAYS, ids=str)
def test_values(shape: tuple[int, ...], how: str, kernel: Kernel) -> None:
    q, k, v, segments = draw(shape)
    scoring = scorings(shape)[how]
    got = jax.jit(functools.partial(attention, kernel=kernel, scoring=scoring))(q, k, v, segments)
    np.testing.assert_allclose(got, expected(q, k, v, segments, scoring), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("shape", "how"), WAYS, ids=str)
def test_gradients_of_blocks_are_those_of_the_reference(shape: tuple[int, ...], how: str) -> None:
    q, k, v, segments = draw(shape)
    scoring = scorings(shape)[how]
    dy = jnp.asarray(np.random.default_rng(0).standard_normal(q.shape), jnp.float32)

    def pull(kernel: Kernel) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda q, k, v: attention(q, k, v, segments, kernel=kernel, scoring=scoring), q, k, v)[1](dy)

    for got, reference in zip(jax.jit(lambda: pull("blocks"))(), jax.jit(lambda: pull("reference"))(), strict=True):
        np.testing.assert_allclose(got, reference, atol=3e-6 * float(jnp.abs(reference).max()), rtol=0)


def influence(fn: Callable[..., jax.Array], shape: tuple[int, ...], queries: list[int]) -> Array:
    """Does the output of query s of the first sequence depend on key and value t? bool [len(queries), S]."""
    q, k, v, segments = draw(shape)

    @jax.jit
    def slopes(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, pull = jax.vjp(lambda k, v: fn(q, k, v, segments), k, v)
        return jax.vmap(lambda s: pull(jnp.zeros_like(q).at[0, s].set(1.0)))(queries)

    found = sum(np.abs(np.asarray(d)).sum((3, 4)) for d in slopes(jnp.asarray(queries))) > 0
    assert not found[:, 1:].any()  # other sequences
    return np.asarray(found[:, 0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_query_depends_on_the_past_of_its_document_alone(kernel: Kernel) -> None:
    shape, queries = (2, 200, 4, 2, 8), [0, 63, 64, 130, 199]
    segment = np.asarray(draw(shape)[3][0])
    allowed = [(np.arange(200) <= s) & (segment == segment[s]) for s in queries]
    seen = influence(functools.partial(attention, kernel=kernel, scoring=Scoring(1.0)), shape, queries)
    np.testing.assert_array_equal(seen, np.asarray(allowed))


def test_one_key_too_many_would_be_seen() -> None:
    future = jnp.asarray(np.tri(20, 20, 1, dtype=bool))[None]
    distance = jnp.zeros((20, 20), jnp.int32)
    seen = influence(lambda q, k, v, _: attend(q, k, v, future, distance, Scoring(1.0)), (1, 20, 2, 1, 8), [7])
    assert seen[0, 8]
    assert not seen[0, 9]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_document_is_attended_as_if_alone(kernel: Kernel) -> None:
    q, k, v, _ = draw((1, 160, 4, 2, 8))
    segments = jnp.asarray([[0] * 70 + [1] * 90], jnp.int32)
    run = jax.jit(functools.partial(attention, kernel=kernel, scoring=Scoring(1.0, slopes=alibi_slopes(4))))
    packed = run(q, k, v, segments)
    alone = run(q[:, 70:], k[:, 70:], v[:, 70:], jnp.zeros((1, 90), jnp.int32))
    np.testing.assert_allclose(packed[:, 70:], alone, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_stays_close(kernel: Kernel) -> None:
    q, k, v, segments = draw((2, 192, 6, 2, 16), "bfloat16")
    got = jax.jit(functools.partial(attention, kernel=kernel, scoring=Scoring(4.0)))(q, k, v, segments)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), expected(q, k, v, segments, Scoring(4.0)), atol=2e-2)


def temporary_bytes(kernel: Kernel, layers: int) -> int:
    q, k, v, segments = draw((1, 512, 4, 2, 16))

    def layer(q: jax.Array, _: None) -> tuple[jax.Array, None]:
        return attention(q, k, v, segments, kernel=kernel, scoring=Scoring(4.0)), None

    def total(q: jax.Array) -> jax.Array:
        return jax.lax.scan(layer, q, None, length=layers)[0].sum()

    analysis: Any = jax.jit(jax.grad(total)).lower(q).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def test_blocks_keep_little_per_layer() -> None:
    per_layer = {kernel: (temporary_bytes(kernel, 4) - temporary_bytes(kernel, 2)) / 2 for kernel in KERNELS}
    assert per_layer["blocks"] < per_layer["reference"] / 8


def test_blocks_cover_every_query_once() -> None:
    for S in [1, 63, 64, 65, 128, 500, 511, 512, 513, 2048, 4099]:
        bounds = list(_bounds(S))
        assert [low for low, _ in bounds] == [0] + [high for _, high in bounds[:-1]]
        assert bounds[-1][1] == S
        assert len(bounds) <= _MAX_BLOCKS


def test_alibi_slopes() -> None:
    """Powers of two as in the paper; others as its authors' program has them."""
    assert alibi_slopes(4) == (0.25, 0.0625, 0.015625, 0.00390625)
    assert alibi_slopes(8)[0] == 0.5 and alibi_slopes(8)[-1] == 2.0**-8
    assert alibi_slopes(6) == (*alibi_slopes(4), 0.5, 0.125)
    assert alibi_slopes(1) == (2.0**-8,)
