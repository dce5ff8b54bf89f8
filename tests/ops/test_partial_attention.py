"""Attention to some of the keys: slices of queries, spans of their own keys, and parts that merge to the whole."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops import partial_attention
from jaxllm.ops.attention import Scoring, alibi_slopes, attention
from jaxllm.parallel.ring import ring
from jaxllm.sequence import _blocks

B, S, H, G, K = 2, 190, 6, 2, 8
PLAIN, ALL = Scoring(3.0), Scoring(0.7, softcap=1.5, window=70, slopes=alibi_slopes(H))


def draw() -> list[jax.Array]:
    dice = np.random.default_rng(3)
    numbers = [jnp.asarray(dice.standard_normal((B, S, n, K), np.float32)) for n in (H, G, G, H)]
    return [*numbers, jnp.asarray(np.sort(dice.integers(0, 3, (B, S)), axis=1), jnp.int32)]


@pytest.mark.parametrize("most", [2**24, 2**15], ids=["at once", "in slices"])
@pytest.mark.parametrize("scoring", [PLAIN, ALL], ids=["plain", "all"])
def test_a_ring_of_one_is_the_reference(scoring: Scoring, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_attention, "_MOST_LOGITS", most)
    q, k, v, do, segments = draw()
    slopes = None if scoring.slopes is None else jnp.asarray(scoring.slopes, jnp.float32)
    one = ring(_blocks(scoring), "cp", 1)

    def pull(fn: Any) -> list[jax.Array]:
        o, back = jax.vjp(fn, q, k, v)
        return [o, *back(do)]

    found = jax.jit(lambda: pull(lambda q, k, v: one(q, k, v, segments, slopes)))()
    expected = jax.jit(
        lambda: pull(lambda q, k, v: attention(q, k, v, segments, kernel="reference", scoring=scoring))
    )()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * float(jnp.abs(b).max()), rtol=0)


def test_logits_at_once_are_bounded() -> None:
    """At 128k over 8 devices, 32 heads: a slice of the queries of a chunk against 16,384 keys."""
    shape = jax.ShapeDtypeStruct((2, 8192, 32, 128), jnp.bfloat16)
    keys = jax.ShapeDtypeStruct((2, 8192, 8, 128), jnp.bfloat16)
    where = jax.ShapeDtypeStruct((2, 8192), jnp.int32)

    def run(q: jax.Array, k: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        return partial_attention.forward(q, k, k, (index, index), (index, index), None, scoring=PLAIN)

    inside = jax.make_jaxpr(run)(shape, keys, where)
    largest = max(v.aval.size for e in inside.jaxpr.eqns if e.primitive.name == "scan" for v in _inner(e))
    assert largest <= partial_attention._MOST_LOGITS


def _inner(equation: Any) -> list[Any]:
    return [v for e in equation.params["jaxpr"].jaxpr.eqns for v in e.outvars if v.aval.ndim == 5]


def test_queries_that_see_no_key_add_nothing() -> None:
    """Of a part whose keys all lie ahead: the sum's log is so low that merging multiplies the part by zero."""
    q, k, v, _, segments = draw()
    index = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    o, log_sum = partial_attention.forward(q, k, v, (index, segments), (index + S, segments), None, scoring=PLAIN)
    assert np.isfinite(o).all() and (np.asarray(log_sum) < -1e29).all()
