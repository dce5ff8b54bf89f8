"""Routing by hand, and the way to the experts and back against a loop over tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops import moe
from jaxllm.ops.moe import Choice, Product, balance_loss, capacity, choose, dropless, limited, rebalanced, router_z_loss

Array = np.ndarray[Any, Any]

B, S, J, D, E = 2, 9, 2, 4, 5
DICE = np.random.default_rng(0)
X_BSD = DICE.normal(size=(B, S, D)).astype(np.float32)
W_EDF = DICE.normal(size=(E, D, D)).astype(np.float32)
LOGITS_BSE = DICE.normal(size=(B, S, E)).astype(np.float32)


def chosen(logits: Any, balance: Any = None, **how: Any) -> Choice:
    options = {"top_k": J, "gate": "softmax", "normalize": True, "scale": 1.0} | how
    return choose(jnp.asarray(logits, jnp.float32), None if balance is None else jnp.asarray(balance), **options)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_equal_scores_go_to_the_lower_number(gate: str) -> None:
    choice = chosen([[[0.5, 2.0, 0.5, 0.5, 2.0, 0.5]]], top_k=4, gate=gate)
    np.testing.assert_array_equal(choice.experts_BSJ, [[[1, 4, 0, 2]]])
    np.testing.assert_array_equal(choice.loads_BE, [[1, 1, 1, 0, 1, 0]])


def test_weights_are_the_scores_of_the_chosen() -> None:
    logits = [[[1.0, 3.0, -2.0, 0.0]]]
    softmax = np.exp(logits) / np.exp(logits).sum()
    first, second = softmax[0, 0, 1], softmax[0, 0, 0]
    np.testing.assert_allclose(chosen(logits, normalize=False).weights_BSJ, [[[first, second]]], rtol=1e-6)
    total = first + second
    np.testing.assert_allclose(chosen(logits, scale=2.5).weights_BSJ[0, 0], 2.5 * softmax[0, 0, [1, 0]] / total, 1e-6)
    sigmoid = 1 / (1 + np.exp([-3.0, -1.0]))
    np.testing.assert_allclose(chosen(logits, gate="sigmoid", normalize=False).weights_BSJ[0, 0], sigmoid, rtol=1e-6)
    np.testing.assert_allclose(chosen(logits, gate="sigmoid").weights_BSJ[0, 0], sigmoid / sigmoid.sum(), rtol=1e-6)


def test_the_balance_chooses_and_does_not_weigh() -> None:
    logits, balance = [[[1.0, 3.0, -2.0, 0.0]]], [0.0, 0.0, 9.0, 0.0]
    choice = chosen(logits, balance, normalize=False, gate="sigmoid")
    np.testing.assert_array_equal(choice.experts_BSJ, [[[2, 1]]])
    np.testing.assert_allclose(choice.weights_BSJ[0, 0], 1 / (1 + np.exp([2.0, -3.0])), rtol=1e-6)

    def total(logits: jax.Array, balance: jax.Array) -> jax.Array:
        choice = chosen(logits, balance)
        return choice.weights_BSJ[..., 0].sum() + balance_loss(choice).sum()

    by_logits, by_balance = jax.grad(total, argnums=(0, 1))(jnp.asarray(LOGITS_BSE), jnp.zeros(E))
    assert np.abs(by_logits).max() > 1e-3 and not np.asarray(by_balance).any()


def test_balance_loss_is_one_for_equal_loads_and_more_for_one_expert() -> None:
    even = chosen(np.eye(4)[None] * 0.0 + np.eye(4)[None, :, :] * 1e-3, top_k=1)
    np.testing.assert_allclose(balance_loss(even), [1.0], rtol=1e-5)
    crowded = chosen(np.tile([20.0, 0, 0, 0], (1, 8, 1)), top_k=1)
    np.testing.assert_allclose(balance_loss(crowded), [4.0], rtol=1e-5)


def test_losses_are_those_of_each_sequence() -> None:
    """With another sequence beside it, a sequence's loss stays."""
    together, z = balance_loss(chosen(LOGITS_BSE)), router_z_loss(jnp.asarray(LOGITS_BSE))
    for b in range(B):
        np.testing.assert_array_equal(balance_loss(chosen(LOGITS_BSE[b : b + 1])), together[b : b + 1])
        expected = np.square(np.log(np.exp(LOGITS_BSE[b].astype(np.float64)).sum(-1))).mean()
        np.testing.assert_allclose(z[b], expected, rtol=1e-6)
    assert abs(together[0] - together[1]) > 1e-3


@pytest.mark.parametrize(("loads", "moves"), [([3, 5, 4], [1, -1, 0]), ([4, 4, 5], [1, 1, -1]), ([0, 0, 0], [0, 0, 0])])
def test_the_balance_moves_against_the_load(loads: list[int], moves: list[int]) -> None:
    before = np.float32([[0.5, 0.0, -1.0]])
    after = rebalanced(jnp.asarray(before), jnp.asarray([loads], jnp.int32), 0.25)
    np.testing.assert_array_equal(after, before + 0.25 * np.float32([moves]))


def test_loads_are_compared_exactly_where_float32_could_not() -> None:
    loads = jnp.asarray([[2**29 + 1, 2**29, 2**29 - 1]], jnp.int32)
    np.testing.assert_array_equal(rebalanced(jnp.zeros((1, 3)), loads, 1.0), [[-1, 0, 1]])


def test_capacity_rounds_up_and_is_at_most_all() -> None:
    assert capacity(70, 2, 4, 0.8) == 28 and capacity(70, 2, 4, 0.81) == 29
    assert capacity(1, 2, 64, 1.0) == 1 and capacity(9, 2, 4, 100.0) == 9


def network(w_EDF: jax.Array) -> moe.Network:
    def run(x: jax.Array, product: Product) -> jax.Array:
        return jnp.tanh(product(x, w_EDF))

    return run


def by_loop(x: Array, w: Array, choice: Choice, served: int) -> Array:
    experts, weights, y = np.asarray(choice.experts_BSJ), np.asarray(choice.weights_BSJ), np.zeros_like(x)
    for b in range(B):
        loads = np.zeros(E, int)
        for s in range(S):
            for j in range(J):
                e = experts[b, s, j]
                if loads[e] < served:
                    y[b, s] += weights[b, s, j] * np.tanh(x[b, s] @ w[e])
                loads[e] += 1
    return y


def run(x: Any, w: Any, choice: Choice, served: int | None) -> jax.Array:
    args = jnp.asarray(x), choice.experts_BSJ, choice.weights_BSJ, E, network(jnp.asarray(w))
    return dropless(*args) if served is None else limited(*args, served=served)


@pytest.mark.parametrize("served", [None, 1, 3, S])
def test_every_token_gets_its_experts_and_late_ones_are_passed_by(served: int | None) -> None:
    choice = chosen(LOGITS_BSE)
    expected = by_loop(X_BSD, W_EDF, choice, S if served is None else served)
    np.testing.assert_allclose(run(X_BSD, W_EDF, choice, served), expected, atol=1e-6)
    if served == 1:
        assert np.abs(expected - by_loop(X_BSD, W_EDF, choice, S)).max() > 0.1


def test_the_wrong_tokens_dropped_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places counted from the end: as many are dropped, but others."""
    real = jnp.cumsum
    monkeypatch.setattr(moe.jnp, "cumsum", lambda x, **how: jnp.flip(real(jnp.flip(x, 1), **how), 1))
    choice = chosen(LOGITS_BSE)
    assert np.abs(run(X_BSD, W_EDF, choice, 3) - by_loop(X_BSD, W_EDF, choice, 3)).max() > 0.1


@pytest.mark.parametrize("served", [None, 3])
def test_gradients_are_those_of_dense_experts(served: int | None) -> None:
    choice = chosen(LOGITS_BSE)
    kept = np.ones((B, S, J), np.float32)
    if served is not None:
        for b in range(B):
            loads = np.zeros(E, int)
            for s, j in np.ndindex(S, J):
                e = int(choice.experts_BSJ[b, s, j])
                kept[b, s, j], loads[e] = loads[e] < served, loads[e] + 1

    def ours(x: jax.Array, w: jax.Array, weights: jax.Array) -> jax.Array:
        return (run(x, w, choice._replace(weights_BSJ=weights), served) ** 2).sum()

    def dense(x: jax.Array, w: jax.Array, weights: jax.Array) -> jax.Array:
        all_BSED = jnp.tanh(jnp.einsum("BSD,EDF->BSEF", x, w))
        own_BSJD = jnp.take_along_axis(all_BSED, choice.experts_BSJ[..., None], axis=2)
        return ((own_BSJD * (weights * kept)[..., None]).sum(2) ** 2).sum()

    args = jnp.asarray(X_BSD), jnp.asarray(W_EDF), choice.weights_BSJ
    for got, expected in zip(jax.grad(ours, (0, 1, 2))(*args), jax.grad(dense, (0, 1, 2))(*args), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("served", [None, 3])
def test_the_order_of_sequences_changes_none_of_them(served: int | None) -> None:
    choice = chosen(LOGITS_BSE)
    turned = Choice(*(x[::-1] for x in choice))
    np.testing.assert_array_equal(run(X_BSD[::-1], W_EDF, turned, served)[::-1], run(X_BSD, W_EDF, choice, served))
