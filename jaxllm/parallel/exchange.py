"""Rows sent to the devices whose experts they are for, and their results sent back (ep).

To be called by every device for its own share, inside shard_map. Nothing is ever dropped: between any two devices there
is room for all that one could have for the other. Rows move by exchanges and gathers both ways, forwards and backwards,
and what fills the room up is zero and looked at by nobody.
"""

from dataclasses import dataclass
from functools import partial
from typing import assert_never

import jax
import jax.numpy as jnp

from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import ExpertExchange


@dataclass(frozen=True)
class Exchange:
    """The devices that exchange rows: those that differ in their place on the mesh axes `axes` alone.

    ragged: rows travel as they are (`jax.lax.ragged_all_to_all`); otherwise each pair of devices exchanges all the room
    there is between them. Both give the same bits.
    """

    axes: tuple[str, ...]
    devices: int
    ragged: bool

    @property
    def method(self) -> str:
        """For people."""
        return "ragged all-to-all" if self.ragged else "padded all-to-all"


# Where a ragged exchange has been seen to compile. libtpu 0.0.42 refuses it on v5e pods, whose links route less. On
# GPUs it compiles, but users of other stacks tell of wrong gradients: it is taken there only if asked for.
_RAGGED_KINDS = ("TPU v5", "TPU v5p")


def chosen(wanted: ExpertExchange, platform: str, kind: str) -> bool:
    """Whether rows travel ragged on devices of a platform ('cpu', 'gpu', 'tpu') and kind (as jax names it). LayoutError
    if they cannot: XLA on CPU has no such thing."""
    match wanted:
        case "auto":
            return kind in _RAGGED_KINDS
        case "ragged":
            if platform == "cpu":
                raise LayoutError("compute.expert_exchange=ragged does not run on CPU; use padded, or auto")
            return True
        case "padded":
            return False
        case _:
            assert_never(wanted)


@partial(
    jax.tree_util.register_dataclass,
    meta_fields=["exchange", "rows", "room"],
    data_fields=["starts_U", "sent_U", "received_U", "origins_U"],
)
@dataclass(frozen=True)
class Route:
    """Which rows of one device travel. rows: how many it has. room: how many one device may have for another, at most.

    int32 [U]: `sent` many go to each device, found from `starts` on; `received` many come from each, found there from
    `origins` on.
    """

    exchange: Exchange
    rows: int
    room: int
    starts_U: jax.Array
    sent_U: jax.Array
    received_U: jax.Array
    origins_U: jax.Array


def routed(exchange: Exchange, sizes_E: jax.Array, *, rows: int, room: int) -> tuple[Route, jax.Array]:
    """(the route, which expert of this device each of the A = U * room places of `sent` holds a row for), int32.

    sizes_E: how many rows this device has for each expert; device 0 has the first E / U of these, and so on. Rows are
    sorted by expert, so those for one device are neighbours. Places that hold none count as expert E / U.
    """
    U = exchange.devices
    me = jax.lax.axis_index(exchange.axes)
    # [U of the rows, U of the experts, E / U].
    sizes_UUE = jax.lax.all_gather(sizes_E, exchange.axes).reshape(U, U, -1)
    count_UU = sizes_UUE.sum(axis=-1, dtype=jnp.int32)
    start_UU = jnp.cumsum(count_UU, axis=1, dtype=jnp.int32) - count_UU
    route = Route(exchange, rows, room, start_UU[me], count_UU[me], count_UU[:, me], start_UU[:, me])
    ends_UE = jnp.cumsum(sizes_UUE[:, me], axis=1, dtype=jnp.int32)
    later_UCE = jnp.arange(room, dtype=jnp.int32)[None, :, None] >= ends_UE[:, None]
    return route, later_UCE.sum(axis=-1, dtype=jnp.int32).reshape(-1)


@jax.custom_vjp
def sent(x_MD: jax.Array, route: Route) -> jax.Array:
    """x_MD -> [A, D], A = U * room: `room` places for each device, the rows that it sent us and zeros after them."""
    U, (M, D) = route.exchange.devices, x_MD.shape
    if route.exchange.ragged:
        empty_AD = jnp.zeros_like(x_MD, shape=(U * route.room, D))
        ours_U = jnp.full_like(route.sent_U, jax.lax.axis_index(route.exchange.axes) * route.room)
        return _ragged(x_MD, empty_AD, route, route.starts_U, route.sent_U, ours_U, route.received_U)
    place = jnp.arange(route.room, dtype=jnp.int32)
    row_UC = jnp.where(place < route.sent_U[:, None], route.starts_U[:, None] + place, M)
    x_AD = jnp.take(x_MD, row_UC.reshape(-1), axis=0, mode="fill", fill_value=0)
    return jax.lax.all_to_all(x_AD, route.exchange.axes, 0, 0, tiled=True)


@jax.custom_vjp
def returned(y_AD: jax.Array, route: Route) -> jax.Array:
    """The way back of `sent`: y_AD -> [M, D], for every row that this device sent what its place holds."""
    U, D = route.exchange.devices, y_AD.shape[1]
    if route.exchange.ragged:
        empty_MD = jnp.zeros_like(y_AD, shape=(route.rows, D))
        places_U = jnp.arange(U, dtype=jnp.int32) * route.room
        return _ragged(y_AD, empty_MD, route, places_U, route.received_U, route.origins_U, route.sent_U)
    y_AD = jax.lax.all_to_all(y_AD, route.exchange.axes, 0, 0, tiled=True)
    row_M = jnp.arange(route.rows, dtype=jnp.int32)
    to_M = (row_M[:, None] >= route.starts_U + route.sent_U).sum(axis=-1, dtype=jnp.int32)
    return jnp.take(y_AD, to_M * route.room + row_M - route.starts_U[to_M], axis=0, mode="fill")


def _ragged(x_MD: jax.Array, empty_AD: jax.Array, route: Route, *where_U: jax.Array) -> jax.Array:
    return jax.lax.ragged_all_to_all(x_MD, empty_AD, *where_U, axis_name=route.exchange.axes)


# Each is the other's transpose: where a row went, its gradient is.
sent.defvjp(lambda x_MD, route: (sent(x_MD, route), route), lambda route, dx_AD: (returned(dx_AD, route), None))
returned.defvjp(lambda y_AD, route: (returned(y_AD, route), route), lambda route, dy_MD: (sent(dy_MD, route), None))


def dealt(exchange: Exchange, x_BECD: jax.Array) -> jax.Array:
    """[B, E, C, D] for all experts -> [U * B, E / U, C, D]: what all devices have for the experts of this one."""
    return jax.lax.all_to_all(x_BECD, exchange.axes, 1, 0, tiled=True)


def collected(exchange: Exchange, y_BECD: jax.Array) -> jax.Array:
    """The way back of `dealt`."""
    return jax.lax.all_to_all(y_BECD, exchange.axes, 0, 1, tiled=True)
