"""Mixture of experts as pure functions: which experts serve a token, the way there and back, and what keeps them busy.

Rows of tokens are moved by gathers both ways, forwards and backwards: no sums in an order that a device may choose.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.parallel.exchange import Exchange, collected, dealt, returned, routed, sent

# (rows of all experts, a kernel of each) -> their products, rows by rows.
Product = Callable[[jax.Array, jax.Array], jax.Array]
# What an expert does with its rows, in terms of such products.
Network = Callable[[jax.Array, Product], jax.Array]


class Choice(NamedTuple):
    """experts_BSJ: int32, the experts of every token. weights_BSJ: float32, what their results are multiplied by.
    loads_BE: int32, how many tokens of each sequence chose an expert. share_BSE: float32, the scores of every token as
    shares that sum to one."""

    experts_BSJ: jax.Array
    weights_BSJ: jax.Array
    loads_BE: jax.Array
    share_BSE: jax.Array


def choose(
    logits_BSE: jax.Array,
    balance_E: jax.Array | None,
    *,
    top_k: int,
    gate: Literal["softmax", "sigmoid"],
    normalize: bool,
    scale: float,
) -> Choice:
    """The `top_k` experts of the highest scores for every token; of equal ones, those of lower number.

    logits_BSE: float32. Scores are their softmax over the experts, or their sigmoid. balance_E, float32, is added to
    the scores that choose and not to those that weigh, and has no gradient (https://arxiv.org/abs/2408.15664).
    Weights are the chosen scores, divided by their sum if `normalize`, times `scale`.
    """
    match gate:
        case "softmax":
            scores_BSE = share_BSE = jax.nn.softmax(logits_BSE)
        case "sigmoid":
            scores_BSE = jax.nn.sigmoid(logits_BSE)
            share_BSE = scores_BSE / (scores_BSE.sum(axis=-1, keepdims=True) + _TINY)
    choosing_BSE = jax.lax.stop_gradient(scores_BSE if balance_E is None else scores_BSE + balance_E)
    _, experts_BSJ = jax.lax.top_k(choosing_BSE, top_k)
    weights_BSJ = jnp.take_along_axis(scores_BSE, experts_BSJ, axis=-1)
    if normalize:
        weights_BSJ = weights_BSJ / (weights_BSJ.sum(axis=-1, keepdims=True) + _TINY)
    if scale != 1.0:
        weights_BSJ = weights_BSJ * scale
    loads_BE = _chosen(experts_BSJ, logits_BSE.shape[-1]).sum(axis=1, dtype=jnp.int32)
    return Choice(experts_BSJ, weights_BSJ, loads_BE, share_BSE)


_TINY = 1e-20  # moves no sum but one of sigmoids that have all underflowed


def balance_loss(choice: Choice) -> jax.Array:
    """[B] float32: E * sum over experts of (share of the sequence's choices) * (mean score), 1 where all are equal.

    https://arxiv.org/abs/2101.03961, equations 4-6, for a sequence and any top_k; its gradient goes by the scores.
    """
    S, J = choice.experts_BSJ.shape[1:]
    E = choice.loads_BE.shape[1]
    taken_BE = choice.loads_BE.astype(jnp.float32) / (S * J)
    return E * (taken_BE * choice.share_BSE.mean(axis=1)).sum(axis=-1)


def router_z_loss(logits_BSE: jax.Array) -> jax.Array:
    """[B] float32: the mean over a sequence of log(sum(exp(logits)))^2 (https://arxiv.org/abs/2202.08906)."""
    return jnp.square(jax.nn.logsumexp(logits_BSE, axis=-1)).mean(axis=-1)


def rebalanced(balance_LE: jax.Array, loads_LE: jax.Array, rate: float) -> jax.Array:
    """balance + rate * sign(mean load - load), each layer by itself, from int32 loads: compared exactly, so that every
    layout moves alike."""
    total_L1, E = loads_LE.sum(axis=-1, keepdims=True), loads_LE.shape[-1]
    below_LE, above_LE = loads_LE < (total_L1 + E - 1) // E, loads_LE > total_L1 // E
    return balance_LE + rate * (below_LE.astype(jnp.float32) - above_LE.astype(jnp.float32))


def dropless(
    x_BSD: jax.Array,
    experts_BSJ: jax.Array,
    weights_BSJ: jax.Array,
    experts: int,
    network: Network,
    exchange: Exchange | None = None,
) -> jax.Array:
    """Every token served by all its experts: [B, S, D] float32, the sum of their results times their weights.

    The tokens of all sequences are sorted by expert, and those of an expert multiplied with its kernels: products are
    `jax.lax.ragged_dot`. On backends without such an instruction that costs as much as all experts for every token.
    With an `exchange`, arrays are the shares of one device, and `network` has the kernels of its experts alone.
    """
    expert_M = experts_BSJ.reshape(-1)
    M = expert_M.size
    there_M, back_M, sizes_E = _sorted(expert_M, experts)

    def product(x_MD: jax.Array, w_EDF: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x_MD, w_EDF, sizes_E)

    x_MD = moved(_repeated(x_BSD, experts_BSJ).reshape(1, M, -1), there_M[None], back_M[None])[0]
    if exchange is None:
        y_MD = network(x_MD, product)
    else:
        B, S, J = experts_BSJ.shape
        y_MD = _elsewhere(x_MD, sizes_E, network, exchange, room=B * S * min(J, experts // exchange.devices))
    y_MD = moved(y_MD[None], back_M[None], there_M[None])
    return _weighed(y_MD.reshape(*experts_BSJ.shape, -1), weights_BSJ)


def _elsewhere(x_MD: jax.Array, sizes_E: jax.Array, network: Network, exchange: Exchange, *, room: int) -> jax.Array:
    """`network` of rows sorted by expert, computed by the devices of these experts.

    room: how many rows a device may have for another, at most.
    """
    route, expert_A = routed(exchange, sizes_E, rows=x_MD.shape[0], room=room)
    there_A, back_A, sizes_E = _sorted(expert_A, sizes_E.size // exchange.devices)
    filled_A1 = jnp.arange(there_A.size)[:, None] < sizes_E.sum()

    def product(x_AD: jax.Array, w_EDF: jax.Array) -> jax.Array:
        # Backends may leave rows beyond the last group as they find them.
        return jnp.where(filled_A1, jax.lax.ragged_dot(x_AD, w_EDF, sizes_E), 0)

    x_AD = moved(sent(x_MD, route)[None], there_A[None], back_A[None])[0]
    y_AD = moved(network(x_AD, product)[None], back_A[None], there_A[None])[0]
    return returned(y_AD, route)


def _sorted(expert_M: jax.Array, experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(rows in the order of their experts [M], its inverse [M], rows of each expert [E]), int32. Numbers from `experts`
    on come last and are not counted."""
    M = expert_M.size
    there_M = jnp.argsort(expert_M, stable=True).astype(jnp.int32)
    back_M = jnp.zeros(M, jnp.int32).at[there_M].set(jnp.arange(M, dtype=jnp.int32), unique_indices=True)
    sizes_E = (expert_M[:, None] == jnp.arange(experts)).sum(axis=0, dtype=jnp.int32)
    return there_M, back_M, sizes_E


def capacity(tokens: int, top_k: int, experts: int, factor: float) -> int:
    """How many tokens of a sequence one expert serves: ceil(factor * tokens * top_k / experts), at most all."""
    return min(tokens, math.ceil(factor * tokens * top_k / experts))


def within_capacity(experts_BSJ: jax.Array, experts: int, served: int) -> jax.Array:
    """[B, S, J] int32: the chosen experts, and `experts` in place of those that `served` earlier tokens of the sequence
    chose already."""
    return jnp.where(_places(experts_BSJ, experts) < served, experts_BSJ, experts)


def _places(experts_BSJ: jax.Array, experts: int) -> jax.Array:
    """How many earlier tokens at hand chose the same expert; none is not counted."""
    mask_BSE = _chosen(experts_BSJ, experts)
    earlier_BSE = jnp.cumsum(mask_BSE, axis=1, dtype=jnp.int32) - mask_BSE
    return jnp.take_along_axis(earlier_BSE, experts_BSJ, axis=-1)


def limited(
    x_BSD: jax.Array,
    experts_BSJ: jax.Array,
    weights_BSJ: jax.Array,
    experts: int,
    network: Network,
    exchange: Exchange | None = None,
    *,
    served: int,
) -> jax.Array:
    """As `dropless`, but an expert serves the first `served` of the tokens of every sequence that chose it, and adds
    nothing to the others, nor to those whose expert is `experts`: none. Products are over [B, E, C, D], full or not."""
    B, S, J = experts_BSJ.shape
    M, A = S * J, experts * served
    place_BSJ = _places(experts_BSJ, experts)
    fits_BSJ = (place_BSJ < served) & (experts_BSJ < experts)
    back_BM = jnp.where(fits_BSJ, experts_BSJ * served + place_BSJ, A).reshape(B, M)

    def inverse(back_M: jax.Array) -> jax.Array:
        return jnp.full(A, M, jnp.int32).at[back_M].set(jnp.arange(M, dtype=jnp.int32), mode="drop")

    there_BA = jax.vmap(inverse)(back_BM)

    def product(x_BECD: jax.Array, w_EDF: jax.Array) -> jax.Array:
        return jnp.einsum("BECD,EDF->BECF", x_BECD, w_EDF)

    x_BAD = moved(_repeated(x_BSD, experts_BSJ).reshape(B, M, -1), there_BA, back_BM)
    x_BECD = x_BAD.reshape(B, experts, served, -1)
    if exchange is None:
        y_BECD = network(x_BECD, product)
    else:
        y_BECD = collected(exchange, network(dealt(exchange, x_BECD), product))
    y_BMD = moved(y_BECD.reshape(B, A, -1), back_BM, there_BA)
    return _weighed(y_BMD.reshape(B, S, J, -1), weights_BSJ)


@jax.custom_vjp
def moved(x_BMD: jax.Array, there_BA: jax.Array, back_BM: jax.Array) -> jax.Array:
    """[B, A, D]: row a is x's row there[a], and zero where there[a] is M.

    there_BA and back_BM, int32, are inverse to each other: back[there[a]] == a; back is A for rows that go nowhere.
    """
    return jnp.take_along_axis(x_BMD, there_BA[..., None], axis=1, mode="fill", fill_value=0)


def _moved_forward(
    x_BMD: jax.Array, there_BA: jax.Array, back_BM: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return moved(x_BMD, there_BA, back_BM), (there_BA, back_BM)


def _moved_backward(saved: tuple[jax.Array, jax.Array], dy_BAD: jax.Array) -> tuple[jax.Array, None, None]:
    there_BA, back_BM = saved
    return moved(dy_BAD, back_BM, there_BA), None, None


moved.defvjp(_moved_forward, _moved_backward)


def _chosen(experts_BSJ: jax.Array, experts: int) -> jax.Array:
    """[B, S, E] bool: the tokens that chose an expert."""
    return (experts_BSJ[..., None] == jnp.arange(experts, dtype=experts_BSJ.dtype)).any(axis=2)


def _repeated(x_BSD: jax.Array, experts_BSJ: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x_BSD[:, :, None], (*experts_BSJ.shape, x_BSD.shape[-1]))


def _weighed(y_BSJD: jax.Array, weights_BSJ: jax.Array) -> jax.Array:
    # Elementwise: a product of matrices may round float32 on accelerators.
    return (y_BSJD.astype(jnp.float32) * weights_BSJ[..., None]).sum(axis=2)
