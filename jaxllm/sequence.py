"""How the sequence lies on the devices of mesh axis cp, and what a model is told of it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxllm.core.errors import LayoutError
from jaxllm.models.context import Axes, Context
from jaxllm.ops import partial_attention
from jaxllm.ops.attention import ABILITIES, SAVED, Choice, Kernel, Scoring, attention
from jaxllm.parallel.config import AllToAll, Ring
from jaxllm.parallel.heads import exchanged
from jaxllm.parallel.mesh import mapped
from jaxllm.parallel.ring import Blocks, ring, zigzag
from jaxllm.parallel.rules import partition_spec
from jaxllm.parallel.shard import AnyMesh, Sharder
from jaxllm.run import RunConfig

Batch = Mapping[str, jax.Array]

_QUERIES: Axes = ("batch", "seq", "heads", "head")
_KEYS: Axes = ("batch", "seq", "kv_heads", "head")
_PART: Axes = ("batch", "seq")
_WHOLE: Axes = ("batch", None)  # on every device of cp


# What attends where `on_ring` says so, whatever kernel the config names.
ON_RING = Choice("blocks", "those of the ring over cp")


def on_ring(run: RunConfig, mesh: AnyMesh) -> bool:
    """Whether keys and values go round the devices of cp."""
    return mesh.shape["cp"] > 1 and isinstance(run.compute.context_parallel, Ring)


def over_devices(context: Context, run: RunConfig, sharder: Sharder) -> Context:
    """`context` for sequences that lie on several devices; itself where cp is 1.

    LayoutError if the sequence or the heads of `run` do not divide.
    """
    devices = sharder.mesh.shape["cp"]
    if devices == 1:
        return context
    S = run.data.seq_len
    match run.compute.context_parallel:
        case Ring():
            _check_length(S, 2 * devices, "a ring cuts the sequence into two chunks per device", sharder)
            order, attend = zigzag(S, devices), _ring(sharder, devices)
        case AllToAll():
            _check_length(S, devices, "every device holds an equal part of the sequence", sharder)
            _check_heads(run, sharder)
            order, attend = np.arange(S, dtype=np.int32), _exchange(sharder)
        case _:
            assert_never(run.compute.context_parallel)
    return replace(
        context,
        self_attention=attend,
        arrange=functools.partial(_arranged, sharder, order),
        by_sequence=functools.partial(_by_sequence, sharder, order),
        sequence_parts=devices,
    )


# ---- attention -------------------------------------------------------------------------------------------------------


def _blocks(scoring: Scoring) -> Blocks:
    return Blocks(
        forward=functools.partial(partial_attention.forward, scoring=scoring),
        backward=functools.partial(partial_attention.backward, scoring=scoring),
        keep=functools.partial(checkpoint_name, name=SAVED),
    )


def _ring(sharder: Sharder, devices: int) -> Callable[..., jax.Array]:
    def attend(
        q_BSHK: jax.Array,
        k_BSGK: jax.Array,
        v_BSGK: jax.Array,
        segments_BS: jax.Array,
        *,
        kernel: Kernel,  # of one device
        scoring: Scoring,
    ) -> jax.Array:
        on_ring = ring(_blocks(scoring), "cp", devices)
        inputs, arrays = [_QUERIES, _KEYS, _KEYS, _PART], [q_BSHK, k_BSGK, v_BSGK, segments_BS]
        return _shared_out(sharder, on_ring, inputs, arrays, scoring)

    return attend


def _exchange(sharder: Sharder) -> Callable[..., jax.Array]:
    def attend(
        q_BSHK: jax.Array,
        k_BSGK: jax.Array,
        v_BSGK: jax.Array,
        segments_BS: jax.Array,
        *,
        kernel: Kernel,
        scoring: Scoring,
    ) -> jax.Array:
        alone = ring(_blocks(scoring), "cp", 1)

        def whole(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, *more: jax.Array | None) -> jax.Array:
            segments_BS, slopes_H = more
            if segments_BS is None:
                raise AssertionError("attention without segments")
            if slopes_H is None:
                return attention(q_BSHK, k_BSGK, v_BSGK, segments_BS, kernel=kernel, scoring=scoring)
            # Kernels know slopes as constants, and here every device has those of other heads.
            share = slopes_H.shape[0] // sharder.mesh.shape["cp"]
            mine_H = jax.lax.dynamic_slice_in_dim(slopes_H, jax.lax.axis_index("cp") * share, share)
            return alone(q_BSHK, k_BSGK, v_BSGK, segments_BS, mine_H)

        inputs, arrays = [_QUERIES, _KEYS, _KEYS, _WHOLE], [q_BSHK, k_BSGK, v_BSGK, segments_BS]
        checked = not ABILITIES[kernel].per_device
        return _shared_out(sharder, exchanged(whole, "cp"), inputs, arrays, scoring, checked=checked)

    return attend


def _shared_out(
    sharder: Sharder,
    attend: Callable[..., jax.Array],
    inputs: Sequence[Axes],
    arrays: Sequence[jax.Array],
    scoring: Scoring,
    *,
    checked: bool = True,
) -> jax.Array:
    """attend(*arrays, slopes of the heads at hand or None), by every device for its share. checked: it says over which
    devices its results vary, which kernels written in Pallas do not."""
    axes: list[Axes] = list(inputs)
    given = list(arrays)
    if scoring.slopes is not None:
        axes.append(("heads",))
        given.append(jnp.asarray(scoring.slopes, jnp.float32))

    def run(*shares: jax.Array) -> jax.Array:
        return attend(*shares) if scoring.slopes is not None else attend(*shares, None)

    into = tuple(partition_spec(sharder.rules, a, "attention") for a in axes)
    out = partition_spec(sharder.rules, _QUERIES, "attention")
    found: jax.Array = mapped(run, sharder.mesh, into, out, check_vma=checked)(*given)
    return found


# ---- order -----------------------------------------------------------------------------------------------------------


def _arranged(sharder: Sharder, order_S: np.ndarray, batch: Batch) -> Batch:
    """Every array of a batch in the order in which positions lie on the devices, and there. Rows come whole to each of
    them, so nothing travels."""
    return {name: sharder(jnp.take(x_BS, order_S, axis=1), *_PART) for name, x_BS in batch.items()}


def _by_sequence(
    sharder: Sharder, order_S: np.ndarray, function: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    back_S = np.argsort(order_S).astype(np.int32)

    def run(x: jax.Array) -> jax.Array:
        whole = sharder(x, *_WHOLE, *[None] * (x.ndim - 2))
        found = jnp.take(function(jnp.take(whole, back_S, axis=1)), order_S, axis=1)
        return sharder(found, *_PART, *[None] * (found.ndim - 2))

    return run


# ---- refusals --------------------------------------------------------------------------------------------------------


def _check_length(seq_len: int, parts: int, why: str, sharder: Sharder) -> None:
    devices = sharder.mesh.shape["cp"]
    if seq_len % parts == 0:
        return
    each = parts // devices
    would_do = [1] + [c for c in range(2, devices) if seq_len % (each * c) == 0 and sharder.mesh.size % c == 0]
    raise LayoutError(
        f"data.seq_len={seq_len} is not divisible by {f'{each} * ' if each > 1 else ''}cp = {parts}: {why}; use a "
        f"multiple of {parts}, or mesh.cp in {', '.join(map(str, would_do))}"
    )


def _check_heads(run: RunConfig, sharder: Sharder) -> None:
    cp, tp, part = sharder.mesh.shape["cp"], sharder.mesh.shape["tp"], run.model.attention
    for name, heads in (("heads", part.heads), ("kv_heads", part.kv_heads)):
        if heads % (cp * tp):
            would_do = [1] + [c for c in range(2, cp) if heads % (c * tp) == 0 and sharder.mesh.size % c == 0]
            raise LayoutError(
                f"model.attention.{name}={heads} is not divisible by cp * tp = {cp} * {tp}, and with AllToAll every "
                f"device takes whole heads; use mesh.cp in {', '.join(map(str, would_do))}, or "
                f"compute.context_parallel.kind=Ring"
            )
