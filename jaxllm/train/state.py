"""What the step carries from update to update."""

from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxllm.models.moe import Routing

Tree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Parameters, optimizer state and, if asked for, the averaged parameters. All float32 but the optimizer's counts.

    The step number and the data cursor are host integers and not in here: the device never needs them.
    """

    params: Tree
    opt: Tree
    ema: Tree | None = None

    def items(self) -> dict[str, Tree]:
        """The parts that are saved, by name."""
        parts = {"params": self.params, "opt": self.opt}
        return parts if self.ema is None else parts | {"ema": self.ema}

    def with_items(self, parts: dict[str, Tree]) -> "State":
        """The inverse of `items`."""
        return replace(self, **parts)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metrics:
    """What a step says about itself; small, replicated, fetched one step late.

    loss: float32, mean over the unmasked tokens of the global batch. loss_B: float32 sum per sequence. tokens_B: int32
    unmasked tokens per sequence. grad_norm: float32, before clipping. refused: bool, the update was not applied.
    norms: by kind ('gradient', 'update', 'parameter') and parameter path, float32, one per layer where stacked.
    routing: what the routers of a mixture of experts say of the whole batch; None without one.
    """

    loss: jax.Array
    loss_B: jax.Array
    tokens_B: jax.Array
    grad_norm: jax.Array
    refused: jax.Array
    norms: dict[str, dict[str, jax.Array]]
    routing: Routing | None = None
