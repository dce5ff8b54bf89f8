"""Where a run executes, as values: the mesh and what each device recomputes."""

from typing import Literal

from jaxllm.core.config import config


@config
class Across:
    """How often each mesh axis is repeated over the slower network: between TPU slices, or between islands of GPUs."""

    dp: int = 1
    fsdp: int = 1
    pp: int = 1
    ep: int = 1
    cp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        if min(self.dp, self.fsdp, self.pp, self.ep, self.cp, self.tp) < 1:
            raise ValueError("dp, fsdp, pp, ep, cp and tp are at least 1")


@config
class Mesh:
    """Devices along each mesh axis, within a slice; -1 on one axis takes the devices that the others leave.

    dp repeats the parameters; fsdp, ep and cp shard them. dp, fsdp and ep split the batch, cp the sequence; tp splits
    heads, feed-forward and vocabulary, pp the layers, ep the experts. across: an axis is `across` times as long as it
    is within a slice; slices are joined by the data-centre network.
    sequence_parallel lets tp also split the sequence of the residual stream (a row of the activation table).
    """

    dp: int = -1
    fsdp: int = 1
    pp: int = 1
    ep: int = 1
    cp: int = 1
    tp: int = 1
    across: Across = Across()
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        sizes = (self.dp, self.fsdp, self.pp, self.ep, self.cp, self.tp)
        if any(n == 0 or n < -1 for n in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"dp, fsdp, pp, ep, cp, tp = {sizes}: positive numbers; one may be -1 for the rest")


@config
class Compute:
    """How a step is computed. None of it changes what is computed; some of it moves bits (numerics fingerprint).

    remat: what a layer keeps for its backward pass. micro_batch: sequences per gradient accumulation slice of the
    global batch; None takes the whole batch at once. attention: which implementation; 'auto' says what it chose.
    loss_chunks: the tokens of a batch are scored in that many slices, so that all logits never exist at once.
    xla_flags: 'table' sets the flags that core/xla_flags.py has for the platform, where the user has set none.
    """

    remat: Literal["none", "full", "dots", "dots_no_batch", "qkv_attention"] = "none"
    micro_batch: int | None = None
    attention: Literal["auto", "reference", "blocks"] = "auto"
    loss_chunks: int = 8
    excess_precision: bool = True  # XLA's xla_allow_excess_precision; False makes remat exact in bfloat16
    xla_flags: Literal["table", "none"] = "table"

    def __post_init__(self) -> None:
        if self.loss_chunks < 1 or (self.micro_batch is not None and self.micro_batch < 1):
            raise ValueError("loss_chunks and micro_batch are at least 1")
