"""How the layers of a stack follow one another."""

from collections.abc import Callable
from typing import Any, Protocol

import jax


class Stack(Protocol):
    """How the layers of a stack follow one another: (x after the last, what each gave back, [L, ...] in every array).

    layer(x, rows, xs) -> (x, back) is one of them. x and every array of `rows` begin with an axis of sequences, each of
    which a layer treats by itself; those of `xs` begin with one of layers. saved: makes of a function one that keeps
    for its backward pass what it should. join(back, uncut): where the sequences were cut into N parts, makes [L, ...]
    of what layers gave back, [N, L, ...]; uncut puts [N, B / N, ...] back in order, [B, ...].
    """

    def __call__(
        self,
        layer: Callable[..., tuple[jax.Array, Any]],
        x_BSD: jax.Array,
        rows: Any,
        xs: Any,
        *,
        saved: Callable[[Callable[..., Any]], Callable[..., Any]],
        unroll: int,
        join: Callable[..., Any],
    ) -> tuple[jax.Array, Any]: ...


def in_turn(
    layer: Callable[..., tuple[jax.Array, Any]],
    x_BSD: jax.Array,
    rows: Any,
    xs: Any,
    *,
    saved: Callable[[Callable[..., Any]], Callable[..., Any]],
    unroll: int,
    join: Callable[..., Any],
) -> tuple[jax.Array, Any]:
    """The default of `Context.stack`: one layer after the other, each for all sequences."""

    def body(x_BSD: jax.Array, xs: Any) -> tuple[jax.Array, Any]:
        return layer(x_BSD, rows, xs)

    after_BSD, back = jax.lax.scan(saved(body), x_BSD, xs, unroll=unroll)
    return after_BSD, back
