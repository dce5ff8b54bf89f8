"""A mixture of experts as a layer: what routers say, against the loop over tokens, and what may move its numbers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.config import Capacity, Dropless, GeGlu, Model, Moe, SwiGlu
from jaxllm.models.context import Context, Remat
from jaxllm.models.declare import init
from jaxllm.models.decoder import describe
from jaxllm.models.moe import Routing
from jaxllm.optim.config import AdamW, LrMultiplier, warmup_cosine
from tests.models.small import MODEL, moe_in_numpy

Tree = Any
Array = np.ndarray[Any, Any]

B, S = 3, 10
X_BSD = np.random.default_rng(5).normal(size=(B, S, MODEL.width)).astype(np.float32)
MOE = Moe(experts=5, top_k=2, expert=SwiGlu(width=12), balance=0.3, z_loss=0.01, bias_rate=0.01)


def model_of(moe: Moe, layers: int = 1) -> Model:
    return dataclasses.replace(MODEL, layers=layers, ffn=moe)


@functools.cache
def parameters(moe: Moe) -> Tree:
    """Of one layer, with a balance that changes choices."""
    layers = jax.jit(lambda: init(describe(model_of(moe)), 3))()["blocks"]["mlp"]
    return jax.tree.map(lambda x: x[0], layers) | {"balance": jnp.linspace(-0.2, 0.2, moe.experts)}


@functools.cache
def compiled(moe: Moe) -> Callable[[Tree, Array], tuple[jax.Array, Routing]]:
    """One layer by itself."""
    declared = describe(model_of(moe))

    def run(params: Tree, x_BSD: jax.Array) -> tuple[jax.Array, Routing]:
        whole = declared.tree(lambda leaf: jnp.zeros(leaf.shape))
        whole["blocks"]["mlp"] = jax.tree.map(lambda x: x[None], params)
        layer: Any = jax.tree.map(lambda x: x[0], declared.bind(whole).blocks).mlp
        y_BSD, routing = layer(x_BSD, Context())
        return y_BSD, routing

    return jax.jit(run)


def passed(moe: Moe, x_BSD: Any = X_BSD, params: Tree = None) -> tuple[Array, Routing]:
    y_BSD, routing = compiled(moe)(parameters(moe) if params is None else params, x_BSD)
    return np.asarray(y_BSD), jax.tree.map(np.asarray, routing)


@pytest.mark.parametrize(
    "change",
    [{}, {"gate": "sigmoid", "normalize": False, "scale": 2.0}, {"dispatch": Capacity(factor=0.7)}],
    ids=["softmax", "sigmoid", "capacity"],
)
def test_results_and_what_routers_say_are_those_of_the_loop(change: dict[str, Any]) -> None:
    moe = dataclasses.replace(MOE, **change)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters(moe))
    y_BSD, routing = passed(moe)
    expected, loads_E, penalty_B = moe_in_numpy(moe, params, X_BSD.astype(np.float64))
    np.testing.assert_allclose(y_BSD, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(routing.loads_LE, loads_E)
    np.testing.assert_allclose(routing.penalty_B, penalty_B, rtol=1e-5)
    unbiased = moe_in_numpy(moe, params | {"balance": np.zeros(5)}, X_BSD.astype(np.float64))
    assert (unbiased[1] != loads_E).any()  # the balance chooses


def test_room_for_all_is_dropless() -> None:
    roomy = dataclasses.replace(MOE, dispatch=Capacity(factor=100.0))
    (y_BSD, routing), (expected, same) = passed(roomy), passed(MOE)
    np.testing.assert_allclose(y_BSD, expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(routing.loads_LE, same.loads_LE)
    tight, _ = passed(dataclasses.replace(MOE, dispatch=Capacity(factor=0.7)))
    assert np.abs(tight - expected).max() > 1e-2


@pytest.mark.parametrize("dispatch", [Dropless(), Capacity(factor=0.7)], ids=["dropless", "capacity"])
def test_the_order_of_sequences_changes_none_of_them(dispatch: Any) -> None:
    moe, order = dataclasses.replace(MOE, dispatch=dispatch), [2, 0, 1]
    (y_BSD, routing), (turned, other) = passed(moe), passed(moe, X_BSD[order])
    np.testing.assert_allclose(turned, y_BSD[order], atol=1e-6 * np.abs(y_BSD).max())
    np.testing.assert_array_equal(other.penalty_B, routing.penalty_B[order])
    np.testing.assert_array_equal(other.loads_LE, routing.loads_LE)


def test_capacity_passes_late_tokens_by() -> None:
    """Without a shared network nothing is added to them; with one, its result alone."""
    same = np.repeat(X_BSD[:, :1], S, axis=1)  # all tokens of a sequence go to the same two experts
    moe = dataclasses.replace(MOE, dispatch=Capacity(factor=1.0))  # 4 of 10
    y_BSD, _ = passed(moe, same)
    assert (np.abs(y_BSD[:, :4]).max(-1) > 0).all() and not y_BSD[:, 4:].any()
    with_shared = dataclasses.replace(moe, shared=GeGlu(width=6))
    params = parameters(with_shared)
    y_BSD, _ = passed(with_shared, same, params)
    alone, _ = passed(with_shared, same, params | {"down": 0 * params["down"]})
    np.testing.assert_array_equal(y_BSD[:, 4:], alone[:, 4:])
    assert np.abs(alone[:, 4:]).max() > 0


def gradients(remat: Remat) -> Tree:
    declared = describe(model_of(MOE, layers=2))
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, MODEL.vocab_size, (B, S), dtype=np.int32))
    positions = jnp.tile(jnp.arange(S, dtype=jnp.int32), (B, 1))

    def total(params: Tree) -> jax.Array:
        x_BSD, routing = declared.bind(params).hidden(tokens, 0 * tokens, positions, Context(remat=remat))
        assert routing is not None and routing.loads_LE.shape == (2, 5) and routing.penalty_B.shape == (B,)
        return jnp.square(x_BSD[..., 0]).sum() + routing.penalty_B.sum()

    return jax.jit(lambda: jax.grad(total)(init(declared, 3)))()


def test_recomputing_changes_gradients_by_rounding_alone() -> None:
    kept = gradients("none")
    assert not np.asarray(kept["blocks"]["mlp"]["balance"]).any()
    assert all(np.abs(kept["blocks"]["mlp"][name]).max() > 0 for name in ("router", "gate", "up", "down"))
    for remat in ("full", "dots"):
        for got, expected in zip(jax.tree.leaves(gradients(remat)), jax.tree.leaves(kept), strict=True):
            np.testing.assert_allclose(got, expected, atol=5e-6 * np.abs(expected).max() + 1e-30)


@pytest.mark.parametrize(
    "fields", [{"decay_roles": ("matrix", "balance")}, {"lr_multipliers": (LrMultiplier(role="balance", value=2.0),)}]
)
def test_no_optimizer_moves_the_balance(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a balance moves by the loads"):
        AdamW(schedule=warmup_cosine(peak=1.0, end=0.1, warmup_steps=1, total_steps=2), **fields)
