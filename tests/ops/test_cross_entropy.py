"""Chunked cross-entropy: value and gradients in float64 numpy, and never all logits at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops.cross_entropy import cross_entropy
from jaxllm.ops.slices import over_slices

Array = np.ndarray[Any, Any]


@dataclass
class Case:
    x: Any  # float32 [B, S, D]
    head: Any  # float32 [V, D]
    labels: Any
    mask: Any


def case(B: int, S: int, D: int, V: int) -> Case:
    dice = np.random.default_rng(B * S)
    mask = dice.random((B, S)) < 0.7
    mask[0] = False
    x, head = dice.standard_normal((B, S, D)), dice.standard_normal((V, D))
    return Case(x.astype(np.float32), head.astype(np.float32), dice.integers(0, V, (B, S), dtype=np.int32), mask)


def expected(c: Case, denominator: float, z_loss: float) -> tuple[float, Array, Array, Array]:
    """(objective, loss_B, dx, dhead) with all logits, in float64."""
    x, head = c.x.astype(np.float64), c.head.astype(np.float64)
    logits = x @ head.T
    log_sum = np.log(np.exp(logits).sum(-1))
    hot = np.eye(head.shape[0])[c.labels]
    loss_B = ((log_sum - (logits * hot).sum(-1)) * c.mask).sum(1)
    objective = (loss_B.sum() + z_loss * (log_sum**2 * c.mask).sum()) / denominator
    p = np.exp(logits - log_sum[..., None])
    slope = (p * (1 + 2 * z_loss * log_sum[..., None]) - hot) * c.mask[..., None] / denominator
    return objective, loss_B, slope @ head, np.einsum("bsv,bsd->vd", slope, x)


def run(c: Case, denominator: float, z_loss: float, chunks: int, dtype: str = "float32") -> tuple[Array, ...]:
    @jax.jit
    def go(x: jax.Array, head: jax.Array) -> Any:
        def fn(x: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array]:
            return cross_entropy(x, head, c.labels, c.mask, denominator=denominator, z_loss=z_loss, chunks=chunks)

        return jax.value_and_grad(fn, (0, 1), has_aux=True)(x, head), fn(x, head)

    ((value, loss_B), (dx, dhead)), (value_alone, loss_alone) = go(jnp.asarray(c.x, dtype), jnp.asarray(c.head))
    # Without gradients it is another program, which gives the same numbers.
    np.testing.assert_allclose(value, value_alone, rtol=1e-6)
    np.testing.assert_allclose(loss_B, loss_alone, rtol=1e-6)
    assert (value.dtype, loss_B.dtype, dx.dtype, dhead.dtype) == ("float32", "float32", dtype, "float32")
    return tuple(np.asarray(a, np.float64) for a in (value, loss_B, dx, dhead))


CASES = [
    ((3, 12, 8, 37), 4),  # the sequence divides
    ((2, 7, 5, 11), 3),  # slices of 3, 3 and 1
    ((2, 9, 4, 6), 8),  # slices of 2, fewer than asked for
    ((2, 5, 4, 130), 1),
    ((2, 3, 4, 5), 50),
]


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize(("shape", "chunks"), CASES, ids=str)
def test_value_and_gradients(shape: tuple[int, int, int, int], chunks: int, z_loss: float) -> None:
    c = case(*shape)
    got, reference = run(c, 13.0, z_loss, chunks), expected(c, 13.0, z_loss)
    np.testing.assert_allclose(got[0], reference[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], reference[1], rtol=1e-6)
    assert got[1][0] == 0.0  # a sequence without labels
    for gradient, exact in zip(got[2:], reference[2:], strict=True):
        np.testing.assert_allclose(gradient, exact, atol=2e-6 * np.abs(exact).max())


def test_bfloat16_stays_close() -> None:
    c = case(3, 12, 8, 37)
    got, reference = run(c, 13.0, 0.01, 4, "bfloat16"), expected(c, 13.0, 0.01)
    np.testing.assert_allclose(got[0], reference[0], rtol=1e-2)
    for gradient, exact in zip(got[2:], reference[2:], strict=True):
        np.testing.assert_allclose(gradient, exact, atol=2e-2 * np.abs(exact).max())


def test_the_objective_is_differentiated_and_the_record_is_not() -> None:
    c = case(3, 12, 8, 37)

    def objective(x: jax.Array, scale: float) -> jax.Array:
        return scale * cross_entropy(x, c.head, c.labels, c.mask, denominator=13.0)[0]

    np.testing.assert_allclose(jax.grad(objective)(c.x, 3.0), 3 * jax.grad(objective)(c.x, 1.0), rtol=1e-6)
    recorded = jax.grad(lambda x: cross_entropy(x, c.head, c.labels, c.mask, denominator=13.0)[1].sum())(c.x)
    assert not np.asarray(recorded).any()


def test_slices_of_a_batch_add_up_to_it() -> None:
    c = case(4, 12, 8, 37)

    def dhead(rows: slice) -> jax.Array:
        part = (c.labels[rows], c.mask[rows])
        return jax.grad(lambda head: cross_entropy(c.x[rows], head, *part, denominator=29.0)[0])(c.head)

    whole = dhead(slice(None))
    np.testing.assert_allclose(dhead(slice(0, 1)) + dhead(slice(1, 4)), whole, atol=1e-6 * float(jnp.abs(whole).max()))


@pytest.mark.parametrize("chunks", [1, 2, 4])  # slices of 6, of 3, and of 2, 2 and 2
def test_parts_of_the_sequence_are_cut_by_themselves(chunks: int) -> None:
    """As where the sequence lies on two devices: each slice takes its share of both halves."""
    c = case(3, 12, 8, 37)

    def run(parts: int) -> Any:
        def fn(x: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array]:
            return cross_entropy(x, head, c.labels, c.mask, denominator=13.0, chunks=chunks, parts=parts)

        return jax.jit(jax.value_and_grad(fn, (0, 1), has_aux=True))(c.x, c.head)

    for one, other in zip(jax.tree.leaves(run(1)), jax.tree.leaves(run(2)), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-6 * float(jnp.abs(one).max()), rtol=0)
    first = jnp.arange(12)[None]
    _, (slices,) = over_slices(lambda i, xs: (i + 1, (xs[0] * 0 + i,)), 0, (first,), 3, parts=2)
    assert slices.tolist() == [[0, 0, 1, 1, 2, 2] * 2]


def test_large_logits_stay_finite() -> None:
    c = case(2, 6, 4, 9)
    got = run(Case(c.x * 100, c.head * 100, c.labels, c.mask), 1.0, 0.0, 2)
    assert all(np.isfinite(a).all() for a in got)


# ---- memory ----------------------------------------------------------------------------------------------------------

B, S, D, V, CHUNKS = 4, 64, 8, 1000, 8
Objective = Callable[[jax.Array, jax.Array], jax.Array]


def arrays_in(jaxpr: Any) -> Iterator[Any]:
    """Every array that a program computes, those inside loops included."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from arrays_in(inner)


def largest_and_temporary(fn: Objective) -> tuple[int, int]:
    """(elements of the largest array, bytes of temporary memory) of value and gradient."""
    slope = jax.value_and_grad(fn, (0, 1))
    shapes = jax.ShapeDtypeStruct((B, S, D), jnp.float32), jax.ShapeDtypeStruct((V, D), jnp.float32)
    analysis: Any = jax.jit(slope).lower(*shapes).compile().memory_analysis()
    largest = max(a.size for a in arrays_in(jax.make_jaxpr(slope)(*shapes).jaxpr))
    return largest, int(analysis.temp_size_in_bytes)


def chunked(x: jax.Array, head: jax.Array) -> jax.Array:
    labels = jnp.zeros((B, S), jnp.int32)
    return cross_entropy(x, head, labels, labels == 0, denominator=1.0, chunks=CHUNKS)[0]


def plain(x: jax.Array, head: jax.Array) -> jax.Array:
    return -jax.nn.log_softmax(x @ head.T)[..., 0].sum()


def test_all_logits_never_exist() -> None:
    largest, temporary = largest_and_temporary(chunked)
    assert largest <= B * S // CHUNKS * V
    assert temporary < B * S * V * 4 / 2


def test_all_logits_would_be_seen() -> None:
    largest, temporary = largest_and_temporary(plain)
    assert largest >= B * S * V
    assert temporary >= B * S * V * 4
