"""A sequence over several devices: the same attention as on one, no more work on any, nothing gathered."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops.attention import Scoring
from jaxllm.parallel.ring import ring, zigzag
from jaxllm.sequence import _blocks
from tests.parallel.ring_worker import CASES, MUTANTS, QUERIES, S, draw, everything
from tests.simulated import run_simulated

TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def report() -> Any:
    return run_simulated(everything)


@pytest.mark.slow
def test_attention_is_that_of_one_device(report: Any) -> None:
    for case, found in report["errors"].items():
        assert max(found) < TOLERANCE[CASES[case][3]], (case, found)


@pytest.mark.slow
def test_another_ring_would_be_seen(report: Any) -> None:
    assert set(report["mutants"]) == set(MUTANTS)
    assert min(report["mutants"].values()) > 1e-2, report["mutants"]


@pytest.mark.slow
def test_a_query_depends_on_the_past_of_its_document_alone(report: Any) -> None:
    segment = draw()[4][0]
    expected = [((np.arange(S) <= s) & (segment == segment[s])).tolist() for s in QUERIES]
    assert report["seen"] == expected


@pytest.mark.slow
def test_keys_and_values_go_round_and_are_never_gathered(report: Any) -> None:
    compiler = report["gathers"].pop("left to the compiler")
    assert compiler > 0  # it would be seen
    assert set(report["gathers"].values()) == {0}
    assert report["permutes"] > 0


@pytest.mark.slow
def test_a_batch_is_laid_out_without_sending(report: Any) -> None:
    assert report["arranged"]["parts"] == zigzag(S, 4).reshape(4, -1).tolist()
    assert report["arranged"]["collectives"] == []


@pytest.mark.slow
def test_experts_serve_whom_they_serve_on_one_device(report: Any) -> None:
    assert report["capacity"]


@pytest.mark.slow
def test_what_does_not_divide_is_refused(report: Any) -> None:
    assert report["refusals"] == [
        "data.seq_len=36 is not divisible by 2 * cp = 8: a ring cuts the sequence into two chunks per device; use a "
        "multiple of 8, or mesh.cp in 1, 2",
        "data.seq_len=34 is not divisible by cp = 4: every device holds an equal part of the sequence; use a multiple "
        "of 4, or mesh.cp in 1, 2",
        "model.attention.kv_heads=4 is not divisible by cp * tp = 4 * 2, and with AllToAll every device takes whole "
        "heads; use mesh.cp in 1, 2, or compute.context_parallel.kind=Ring",
    ]


def test_zigzag_gives_every_device_a_chunk_from_each_end() -> None:
    assert zigzag(16, 4).reshape(4, 4).tolist() == [[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]]
    for devices in (1, 2, 3, 8):
        assert sorted(zigzag(48, devices)) == list(range(48))
        # What the queries of a device see, in all: the same for each.
        work = (zigzag(48, devices).reshape(devices, -1) + 1).sum(axis=1)
        assert len(set(work.tolist())) == 1


def products(jaxpr: Any, times: int = 1) -> Iterator[int]:
    """Multiplications of every matrix product of a program, those of its loops as often as they run."""
    for equation in jaxpr.eqns:
        assert equation.primitive.name != "cond"
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            yield times * equation.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))
        inside = times * equation.params.get("length", 1)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner, inside)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_every_device_does_an_equal_part_of_half_the_products(devices: int) -> None:
    """One program without branches for all devices: what it does is what each of them does."""
    length, heads, width = 4096, 2, 8

    def attend(q_BSHK: jax.Array, segments_BS: jax.Array) -> jax.Array:
        on_ring = ring(_blocks(Scoring(1.0)), "cp", devices)
        return on_ring(q_BSHK, q_BSHK, q_BSHK, segments_BS, None)

    part = jax.ShapeDtypeStruct((1, length // devices, heads, width), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, length // devices), jnp.int32)
    jaxpr = jax.make_jaxpr(attend, axis_env=[("cp", devices)])(part, segments)
    causal = length * (length + 1) // 2 * heads * width * 2 // devices
    assert causal < sum(products(jaxpr.jaxpr)) < 1.13 * causal
