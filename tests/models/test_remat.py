"""Remat by name: what is named is kept or moved, all else is computed again, and no number changes."""

import dataclasses
import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxllm.core.tensors import TENSORS
from jaxllm.models.config import Model, Moe, PostNorm, SwiGlu
from jaxllm.models.context import Context
from jaxllm.models.decoder import describe
from jaxllm.ops.attention import Kernel
from jaxllm.parallel.config import Named, Remat
from tests.models.small import MODEL
from tests.models.test_decoder import assert_same_bits, batch, dots, gradients

Kept = Counter[tuple[tuple[int, ...], bool]]

ALL = tuple(TENSORS)
EXPERTS = dataclasses.replace(MODEL, ffn=Moe(experts=3, top_k=2, expert=SwiGlu(width=12)))
# By B, S, D, H, G, K, F of the small model.
INPUT, HEADS, PAIRS, WIDE = (2, 70, 20), (2, 70, 6, 8), (2, 70, 2, 8), (2, 70, 44)
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "input": [],
    "normed": [INPUT, INPUT],
    "qkv": [HEADS, PAIRS, PAIRS],
    "attention": [HEADS, (2, 2, 3, 70, 1)],
    "attention_out": [INPUT],
    "widened": [WIDE, WIDE],
    "experts_out": [],  # there are none
    "ffn_out": [],  # nobody needs it: it is added, and what is added to is known
}


@functools.cache
def kept(remat: Remat, model: Model = MODEL, kernel: Kernel = "blocks") -> Kept:
    """What a layer hands to its backward pass: (shape, is it on the host) -> how many."""
    declared, context = describe(model), Context(attention=kernel, remat=remat, dtype="bfloat16")
    inputs, segments, positions = map(jnp.asarray, batch(70))

    def total(params: Any) -> jax.Array:
        return declared.bind(params).hidden(inputs, segments, positions, context)[0].sum()

    program = jax.make_jaxpr(jax.grad(total))(declared.abstract())
    layers = next(e for e in program.jaxpr.eqns if e.primitive.name == "scan")
    # What is carried on leaves the loop as it leaves a layer, the rest with all layers stacked.
    of_one = layers.params["jaxpr"].out_avals
    given = [v.aval for v, x in zip(layers.outvars, of_one, strict=True) if v.aval.shape != x.shape]
    return Counter((x.shape[1:], x.memory_space == jax.memory.Space.Host) for x in given)


def gained(keep: str, model: Model = MODEL, kernel: Kernel = "blocks") -> Kept:
    """What naming a tensor adds."""
    return kept(Named(keep=(keep,)), model, kernel) - kept(Named(), model, kernel)


@pytest.mark.parametrize("name", ALL)
def test_a_named_tensor_is_moved_and_no_other(name: str) -> None:
    """A layer keeps what it is given, in any case, on the device unless that is named itself."""
    expected = Counter([(INPUT, name == "input"), *((shape, True) for shape in SHAPES[name])])
    assert kept(Named(offload=(name,))) == expected


def test_tensors_are_kept_and_moved_side_by_side() -> None:
    assert kept(Named()) == Counter({(INPUT, False): 1})
    both = kept(Named(keep=("qkv",), offload=("widened", "input")))
    assert both == Counter({(INPUT, True): 1, (HEADS, False): 1, (PAIRS, False): 2, (WIDE, True): 2})


def test_experts_and_norms_that_come_last() -> None:
    experts = dataclasses.replace(MODEL, ffn=Moe(experts=3, top_k=2, expert=SwiGlu(width=12)))
    assert gained("experts_out", experts) == Counter({((280, 20), False): 1})
    assert gained("widened", experts) == Counter({((280, 12), False): 2})
    assert gained("ffn_out", dataclasses.replace(MODEL, residual=PostNorm())) == Counter({(INPUT, False): 1})


def test_kernels_for_accelerators_keep_what_their_backward_pass_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced only. Two of them pad to 128; the log of the sums goes with the result."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91002)
    sums = ((2, 6, 128), False)
    assert gained("attention", kernel="splash") == Counter({((2, 6, 128, 8), False): 1, sums: 1})
    assert gained("attention", kernel="pallas_gpu") == Counter({((2, 128, 6, 8), False): 1, sums: 1})
    assert gained("attention", kernel="cudnn") == Counter({(HEADS, False): 1, ((2, 6, 70), False): 1})


def test_what_has_no_name_is_computed_again() -> None:
    assert dots(Named()) == dots("full")
    assert dots(Named(keep=("qkv", "attention"))) == dots("qkv_attention")
    assert dots(Named(keep=("widened",))) == dots("full") - 2  # gate and up
    assert dots(Named(keep=ALL)) == dots(Named(offload=ALL)) == dots("none")


def test_no_bit_changes_in_float32() -> None:
    remat = Named(keep=("normed", "attention"), offload=("input", "widened"))
    assert_same_bits(gradients(Context(remat=remat)), gradients(Context()))
