"""What attention knows of positions, by its config."""

import math
from collections.abc import Callable
from typing import assert_never

import jax
import numpy as np

from jaxllm.models.config import Alibi, DynamicNtk, LinearScaling, Llama3Scaling, NoPosition, Position, Rope, Yarn
from jaxllm.ops import rope
from jaxllm.ops.rope import Rotation

# Queries or keys [B, S, heads, K] -> the same, carrying their position.
Place = Callable[[jax.Array], jax.Array]


def turn_of(position: Position, positions_BS: jax.Array, head_width: int) -> Rotation | None:
    """By which angles queries and keys at `positions_BS` (int32) turn: computed once for all layers."""
    match position:
        case Rope():
            return rope.rotation(positions_BS, *_frequencies(position, positions_BS, head_width))
        case Alibi() | NoPosition():  # ALiBi marks the scores and not the vectors
            return None
        case _:
            assert_never(position)


def placed(position: Position, x_BSHK: jax.Array, turn: Rotation | None) -> jax.Array:
    """Queries or keys, marked with where they are; `turn` is that of the same sequences."""
    match position:
        case Rope(pairs=pairs):
            assert turn is not None
            return rope.rotate(x_BSHK, turn, pairs)
        case Alibi() | NoPosition():
            return x_BSHK
        case _:
            assert_never(position)


def _frequencies(position: Rope, positions_BS: jax.Array, head_width: int) -> tuple[np.ndarray | jax.Array, float]:
    """(radians per position [W/2], the factor on cosine and sine)."""
    width, theta = position.width(head_width), position.theta
    match position.scaling:
        case None:
            return rope.frequencies(width, theta), 1.0
        case LinearScaling(factor=factor):
            return rope.frequencies(width, theta) / factor, 1.0
        case DynamicNtk(factor=factor, original_length=length):
            return rope.dynamic_ntk(positions_BS, width, theta, factor=factor, original_length=length), 1.0
        case Llama3Scaling() as s:
            plain = rope.frequencies(width, theta)
            low, high = s.low_frequency_factor, s.high_frequency_factor
            return rope.llama3(plain, factor=s.factor, low=low, high=high, original_length=s.original_length), 1.0
        case Yarn() as s:
            found = rope.yarn(
                width,
                theta,
                factor=s.factor,
                original_length=s.original_length,
                fast=s.fast,
                slow=s.slow,
                truncate=s.truncate,
            )
            derived = 1.0 if s.factor <= 1 else 0.1 * math.log(s.factor) + 1.0
            return found, derived if s.magnitude is None else s.magnitude
        case _:
            assert_never(position.scaling)
