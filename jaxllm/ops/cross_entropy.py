"""Cross-entropy of a language model's head, in slices of the sequence: all logits never exist at once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxllm.ops.slices import over_slices

Shard = Callable[..., jax.Array]
_Saved = tuple[jax.Array, jax.Array, jax.Array]
_How = tuple[float, float | None]  # z_loss, softcap
_Cut = tuple[int, int]  # chunks, parts


def _anywhere(x: jax.Array, *axes: str) -> jax.Array:
    return x


def cross_entropy(
    x_BSD: jax.Array,
    head_VD: jax.Array,
    labels_BS: jax.Array,
    mask_BS: jax.Array,
    *,
    denominator: jax.Array | float,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunks: int = 8,
    parts: int = 1,
    shard: Shard = _anywhere,
) -> tuple[jax.Array, jax.Array]:
    """(objective, loss_B): what is differentiated, and what is recorded.

    With logits = x head^T (or softcap * tanh of it / softcap) and Z = sum(exp(logits)), a label costs
    -log softmax(logits)[label].
    objective: float32 scalar, (sum of costs + z_loss * sum of log(Z)^2) / denominator over the labels that `mask_BS`
    (bool) allows. loss_B: float32, the sum of costs of each sequence alone, in nats; no gradient passes through it.

    The denominator is given, and not counted here, so that slices of a batch add up to the whole of it; it has no
    gradient. x_BSD and the products are in the compute type, head_VD (float32) is cast to it; logits, softmax, sums
    and the head's gradient are float32. z-loss: https://arxiv.org/abs/2204.02311

    chunks: the sequence is cut into this many slices, the last one shorter where S does not divide. Where gradients
    are asked for, they are computed slice by slice in the forward pass, while the logits are at hand, and never again.
    parts: the sequence lies in so many equal parts on several devices, and each cuts its own part into slices.
    """
    if chunks < 1 or x_BSD.shape[1] % parts:
        raise AssertionError(f"chunks={chunks}, parts={parts} of {x_BSD.shape[1]} positions")
    x_BSD = shard(x_BSD, "shared_batch", "seq", "embed")
    head_VD = shard(head_VD, "vocab", "embed")
    return _cross_entropy(
        (z_loss, softcap),
        (chunks, parts),
        shard,
        x_BSD,
        head_VD,
        labels_BS,
        mask_BS,
        jnp.asarray(denominator, jnp.float32),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(
    how: _How,
    cut: _Cut,
    shard: Shard,
    x_BSD: jax.Array,
    head_VD: jax.Array,
    labels_BS: jax.Array,
    mask_BS: jax.Array,
    denominator: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    cast_VD = head_VD.astype(x_BSD.dtype)

    def score(nothing: None, xs: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        x_BSD, labels_BS, mask_BS = xs
        return nothing, _slice(x_BSD, cast_VD, labels_BS, mask_BS, how[1], shard)[2:4]

    _, (cost_BS, z_BS) = over_slices(score, None, (x_BSD, labels_BS, mask_BS), cut[0], parts=cut[1])
    return _totals(cost_BS, z_BS, how[0], denominator)


def _forward(
    how: _How,
    cut: _Cut,
    shard: Shard,
    x_BSD: jax.Array,
    head_VD: jax.Array,
    labels_BS: jax.Array,
    mask_BS: jax.Array,
    denominator: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], _Saved]:
    z_loss, softcap = how
    dtype = x_BSD.dtype
    cast_VD = head_VD.astype(dtype)

    def score(dhead_DV: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        x_BSD, labels_BS, mask_BS = xs
        p_BSV, log_sum_BS, cost_BS, z_BS, slope_BSV = _slice(x_BSD, cast_VD, labels_BS, mask_BS, softcap, shard)
        weight_BS = mask_BS.astype(jnp.float32) / denominator
        slope_BS = weight_BS * (1 + 2 * z_loss * log_sum_BS)
        dlogits_BSV = p_BSV * slope_BS[..., None] - jnp.where(_hot(labels_BS, p_BSV), weight_BS[..., None], 0)
        dlogits_BSV = (dlogits_BSV if slope_BSV is None else dlogits_BSV * slope_BSV).astype(dtype)
        dx_BSD = jnp.einsum("BSV,VD->BSD", dlogits_BSV, cast_VD, preferred_element_type=jnp.float32).astype(dtype)
        # In this order the narrow operand is the one that is turned.
        dhead_DV += jnp.einsum("BSD,BSV->DV", x_BSD, dlogits_BSV, preferred_element_type=jnp.float32)
        return shard(dhead_DV, "embed", "vocab"), (cost_BS, z_BS, dx_BSD)

    zeros_DV = jnp.zeros(head_VD.shape[::-1], jnp.float32)
    dhead_DV, (cost_BS, z_BS, dx_BSD) = over_slices(score, zeros_DV, (x_BSD, labels_BS, mask_BS), cut[0], parts=cut[1])
    return _totals(cost_BS, z_BS, z_loss, denominator), (dx_BSD, dhead_DV.T.astype(head_VD.dtype), denominator)


def _backward(
    how: _How, cut: _Cut, shard: Shard, saved: _Saved, slopes: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, None, jax.Array]:
    dx_BSD, dhead_VD, denominator = saved
    slope, _ = slopes  # loss_B is for the record
    dx_BSD = (dx_BSD.astype(jnp.float32) * slope).astype(dx_BSD.dtype)
    return dx_BSD, dhead_VD * slope.astype(dhead_VD.dtype), None, None, jnp.zeros_like(denominator)


_cross_entropy.defvjp(_forward, _backward)


def _slice(
    x_BSD: jax.Array,
    head_VD: jax.Array,
    labels_BS: jax.Array,
    mask_BS: jax.Array,
    softcap: float | None,
    shard: Shard,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """(softmax, log Z, masked cost, masked log(Z)^2, slope of the softcap: None without one) of one slice."""
    logits_BSV = jnp.einsum("BSD,VD->BSV", x_BSD, head_VD, preferred_element_type=jnp.float32)
    logits_BSV = shard(logits_BSV, "shared_batch", "seq", "vocab")
    slope_BSV = None
    if softcap is not None:
        bent_BSV = jnp.tanh(logits_BSV / softcap)
        logits_BSV, slope_BSV = softcap * bent_BSV, 1 - jnp.square(bent_BSV)
    top_BS1 = logits_BSV.max(axis=-1, keepdims=True)
    e_BSV = jnp.exp(logits_BSV - top_BS1)
    sum_BS1 = e_BSV.sum(axis=-1, keepdims=True)
    log_sum_BS = (jnp.log(sum_BS1) + top_BS1)[..., 0]
    # A masked sum and not a gather: it stays local where the vocabulary is sharded.
    picked_BS = jnp.where(_hot(labels_BS, logits_BSV), logits_BSV, 0).sum(axis=-1)
    cost_BS = jnp.where(mask_BS, log_sum_BS - picked_BS, 0)
    return e_BSV / sum_BS1, log_sum_BS, cost_BS, jnp.where(mask_BS, jnp.square(log_sum_BS), 0), slope_BSV


def _hot(labels_BS: jax.Array, like_BSV: jax.Array) -> jax.Array:
    return labels_BS[..., None] == jnp.arange(like_BSV.shape[-1], dtype=labels_BS.dtype)


def _totals(cost_BS: jax.Array, z_BS: jax.Array, z_loss: float, denominator: jax.Array) -> tuple[jax.Array, jax.Array]:
    loss_B = cost_BS.sum(axis=1)
    objective = loss_B.sum() if z_loss == 0.0 else loss_B.sum() + z_loss * z_BS.sum()
    return objective / denominator, loss_B
