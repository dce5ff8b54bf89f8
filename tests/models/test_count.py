"""Counts from the config alone: against the declared arrays, a traced program, and what was published."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxllm.models.config import Attention, Model, Moe, SwiGlu
from jaxllm.models.context import Context
from jaxllm.models.count import flops_per_token, matmul_parameters, parameter_bytes, parameters, shapes
from jaxllm.models.decoder import describe
from tests.models.small import MODEL
from tests.models.test_decoder import MODELS

TIED = dataclasses.replace(MODEL, tied_embeddings=True)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_shapes_are_the_declared_ones(model: Model) -> None:
    declared = describe(model)
    assert shapes(model) == {leaf.path: leaf.shape for leaf in declared.leaves}
    assert parameters(model) == sum(leaf.size for leaf in declared.leaves)
    assert parameter_bytes(model) == sum(leaf.nbytes for leaf in declared.leaves)
    assert parameter_bytes(model, 2) * 2 == parameter_bytes(model)


def llama(vocab_size: int, width: int, layers: int, heads: int, kv_heads: int, ffn: int) -> Model:
    attention = Attention(heads=heads, kv_heads=kv_heads, head_width=width // heads)
    return Model(vocab_size=vocab_size, width=width, layers=layers, attention=attention, ffn=SwiGlu(width=ffn))


MIXTRAL = dataclasses.replace(
    llama(32_000, 4096, 32, 32, 8, 1), ffn=Moe(experts=8, top_k=2, expert=SwiGlu(width=14_336))
)


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (llama(32_000, 4096, 32, 32, 32, 11_008), 6_738_415_616),  # LLaMA-7B, Amber
        (llama(32_032, 8192, 80, 64, 64, 22_016), 65_286_000_000),  # K2-65B
        (llama(128_256, 4096, 32, 32, 8, 14_336), 8_030_261_248),  # Llama 3 8B
        (MIXTRAL, 46_702_792_704),  # Mixtral 8x7B
    ],
    ids=["7B", "65B", "8B", "8x7B"],
)
def test_published_counts(model: Model, published: int) -> None:
    assert parameters(model) == pytest.approx(published, rel=0 if published % 1000 else 1e-5)


def products(jaxpr: Any, times: int = 1) -> int:
    """FLOPs of every matrix product of a program, loops multiplied out."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = 1
            for axis in contracted:
                depth *= left[axis]
            total += times * 2 * depth * equation.outvars[0].aval.size
        if equation.primitive.name == "ragged_dot_general":
            # Each row meets the kernel of its own expert; where kernels' gradients sum over rows, each counts once too.
            total += times * 2 * equation.invars[0].aval.size * equation.outvars[0].aval.shape[-1]
        inner_times = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += products(inner, inner_times)
    return total


MIXED = dataclasses.replace(
    MODEL, ffn=Moe(experts=6, top_k=2, expert=SwiGlu(width=12), shared=SwiGlu(width=7), bias_rate=0.01)
)


@pytest.mark.parametrize("model", [MODEL, TIED, MIXED], ids=["untied", "tied", "experts"])
def test_flops_are_those_of_the_program(model: Model) -> None:
    B, S = 2, 16
    declared = describe(model)
    tokens = jax.ShapeDtypeStruct((B, S), jnp.int32)

    def total(params: Any, tokens: jax.Array) -> jax.Array:
        module = declared.bind(params)
        x_BSD, _ = module.hidden(tokens, tokens, tokens, Context())
        return jnp.einsum("BSD,VD->BSV", x_BSD, module.head_VD()).sum()

    forward = jax.make_jaxpr(total)(declared.abstract(), tokens).jaxpr
    assert products(forward) == B * S * flops_per_token(model, S) / 3
    assert matmul_parameters(model) < parameters(model)
    both = jax.make_jaxpr(jax.value_and_grad(total))(declared.abstract(), tokens).jaxpr
    assert products(both) == B * S * flops_per_token(model, S)


def test_accounting_by_hand() -> None:
    # 8 layers of width 256, F = 688, V = 8192, S = 512, as facts on CPU peers count it: 63.1 MFLOP per token.
    model = llama(8192, 256, 8, 4, 4, 688)
    by_hand = 6 * (8 * (4 * 256**2 + 3 * 256 * 688) + 256 * 8192) + 12 * 8 * 256 * 512
    assert flops_per_token(model, 512) == by_hand
    assert by_hand == pytest.approx(63.1e6, rel=1e-3)
    causal = flops_per_token(model, 512, causal=True)
    assert by_hand - causal == 12 * 8 * 256 * (512 - 513 / 2)
    assert matmul_parameters(model) == parameters(model) - 8192 * 256 - 17 * 256
