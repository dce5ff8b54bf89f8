"""Optimizers and schedules as values."""

from typing import Literal

from jaxllm.core.config import config, variant
from jaxllm.core.dims import Role

Shape = Literal["linear", "cosine", "inverse_sqrt"]


@config
class Piece:
    """One stretch of a learning-rate schedule: from `start` to `end` in `shape`, left after `steps` updates.

    `horizon` is the number of updates over which the shape was planned; a piece that is left before its horizon stops
    on the way (Crystal phase 1 planned 294,337 updates of decay and stopped at 79,635 of them). Update k (from 0) of
    the piece has progress k / horizon. The last piece is not left: from its horizon on it holds its `end` for ever.
    """

    steps: int
    start: float
    end: float
    shape: Shape = "linear"
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.horizon is not None and self.horizon < self.steps):
            raise ValueError(f"steps={self.steps} is at least 1 and horizon={self.horizon} at least steps")
        if min(self.start, self.end) < 0:
            raise ValueError("a learning rate is not negative")
        if self.shape == "inverse_sqrt" and min(self.start, self.end) == 0:
            raise ValueError("inverse_sqrt has neither start=0 nor end=0; use a linear piece")


Schedule = tuple[Piece, ...]


def warmup_cosine(*, peak: float, end: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Linear from 0 to `peak`, then cosine to `end` at `total_steps` (Amber, K2, LLaMA)."""
    return (
        Piece(steps=warmup_steps, start=0.0, end=peak),
        Piece(steps=total_steps - warmup_steps, start=peak, end=end, shape="cosine"),
    )


def warmup_linear(
    *, peak: float, end: float, warmup_steps: int, decay_steps: int, stop_after: int | None = None
) -> Schedule:
    """Linear from 0 to `peak`, then linear to `end` over `decay_steps`; left `stop_after` updates in all (Crystal)."""
    steps = decay_steps if stop_after is None else stop_after - warmup_steps
    return (
        Piece(steps=warmup_steps, start=0.0, end=peak),
        Piece(steps=steps, start=peak, end=end, horizon=decay_steps),
    )


def warmup_stable_decay(
    *, peak: float, end: float, warmup_steps: int, decay_steps: int, total_steps: int, shape: Shape = "linear"
) -> Schedule:
    """Warm up, hold, decay at the end (WSD, https://arxiv.org/abs/2404.06395)."""
    return (
        Piece(steps=warmup_steps, start=0.0, end=peak),
        Piece(steps=total_steps - warmup_steps - decay_steps, start=peak, end=peak),
        Piece(steps=decay_steps, start=peak, end=end, shape=shape),
    )


@config
class LrMultiplier:
    """The learning rate of every parameter of one role, times `value` (muP: matrices by base_width / width)."""

    role: Role
    value: float


@config
class Ema:
    """An averaged copy of the parameters: average <- decay * average + (1 - decay) * parameters after each update."""

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0.0 < self.decay < 1.0:
            raise ValueError(f"decay={self.decay} lies between 0 and 1")


@variant
class AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101), bias-corrected, with decoupled weight decay on `decay_roles` only."""

    schedule: Schedule
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_roles: tuple[Role, ...] = ("embedding", "head", "matrix")
    lr_multipliers: tuple[LrMultiplier, ...] = ()
    clip_norm: float | None = 1.0
    ema: Ema | None = None

    def __post_init__(self) -> None:
        if not self.schedule:
            raise ValueError("schedule needs at least one piece")
        if not (0.0 <= self.beta1 < 1.0 and 0.0 <= self.beta2 < 1.0):
            raise ValueError(f"beta1={self.beta1} and beta2={self.beta2} lie in [0, 1)")
        if self.eps <= 0 or self.weight_decay < 0 or (self.clip_norm is not None and self.clip_norm <= 0):
            raise ValueError("eps and clip_norm are positive, weight_decay is not negative")
        roles = [m.role for m in self.lr_multipliers]
        if len(set(roles)) < len(roles):
            raise ValueError("lr_multipliers names a role twice")
        if "balance" in (*self.decay_roles, *roles):
            raise ValueError(
                "decay_roles and lr_multipliers: a balance moves by the loads of experts (model.ffn.bias_rate)"
            )


Optimizer = AdamW
