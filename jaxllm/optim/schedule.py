"""The learning rate: a pure function of the update's number, computed on the host.

A record's learning rate can be recomputed by anyone with numpy, on any platform, to the bit; no count inside an
optimizer can bend it, and a resumed run cannot stretch it. No jax here.
"""

import math
from typing import assert_never

import numpy as np

from jaxllm.optim.config import Piece, Schedule


def learning_rate(schedule: Schedule, step: int) -> float:
    """The learning rate of update `step` (from 0): a float that is exactly a float32.

    Computed in float64 and rounded once. Pieces follow each other; the last one is never left, and stays at its `end`
    from its horizon on. ValueError for a negative step or an empty schedule.
    """
    if step < 0 or not schedule:
        raise ValueError(f"learning rate of update {step} in {len(schedule)} pieces: updates count from 0")
    for piece in schedule[:-1]:
        if step < piece.steps:
            return _at(piece, step)
        step -= piece.steps
    return _at(schedule[-1], step)


def _at(piece: Piece, k: int) -> float:
    """The learning rate at update k of a piece."""
    horizon = piece.horizon or piece.steps
    if k >= horizon:
        return float(np.float32(piece.end))
    progress = k / horizon
    match piece.shape:
        case "linear":
            value = piece.start * (1.0 - progress) + piece.end * progress
        case "cosine":
            kept = 0.5 * (1.0 + _cos_pi(progress))
            value = piece.start * kept + piece.end * (1.0 - kept)
        case "inverse_sqrt":
            # start * sqrt(t0 / (t0 + k)), with the t0 that gives `end` at the horizon. After a linear warm-up of t0
            # updates that is the schedule of https://arxiv.org/abs/1706.03762.
            if piece.start == piece.end:
                value = piece.start
            else:
                t0 = horizon * piece.end**2 / (piece.start**2 - piece.end**2)
                value = piece.start * math.sqrt(t0 / (t0 + k))
        case _:
            assert_never(piece.shape)
    return float(np.float32(value))


def _cos_pi(x: float) -> float:
    """cos(pi x) for 0 <= x <= 1, within 6e-16.

    A Taylor sum of IEEE operations: the C library's cosine may differ in the last bit between platforms.
    """
    angle = math.pi * (0.5 - x)  # cos(pi x) = sin(pi / 2 - pi x)
    total = 1.0
    for n in range(26, 0, -2):
        total = 1.0 - angle * angle / (n * (n + 1)) * total
    return angle * total
