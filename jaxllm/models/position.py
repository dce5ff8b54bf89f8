"""What attention knows of positions, by its config."""

from collections.abc import Callable
from typing import assert_never

import jax

from jaxllm.models.config import NoPosition, Position, Rope
from jaxllm.ops.rope import rotate, rotation

# Queries or keys [B, S, heads, K] -> the same, carrying their position.
Place = Callable[[jax.Array], jax.Array]


def placer(position: Position, positions_BS: jax.Array, head_width: int) -> Place:
    """How queries and keys at `positions_BS` (int32) are marked. Angles are computed here, once for all layers."""
    match position:
        case Rope(theta=theta):
            turn = rotation(positions_BS, head_width, theta)
            return lambda x_BSHK: rotate(x_BSHK, turn)
        case NoPosition():
            return lambda x_BSHK: x_BSHK
        case _:
            assert_never(position)
