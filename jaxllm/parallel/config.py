"""Where a run executes, as values: the mesh and what each device recomputes."""

from typing import Literal

from jaxllm.core.config import config


@config
class Mesh:
    """Devices along each mesh axis; -1 on one axis takes the devices that the others leave.

    dp repeats the parameters, fsdp shards them over the same batch split, tp splits heads, feed-forward and vocabulary.
    sequence_parallel lets tp also split the sequence of the residual stream (a row of the activation table).
    """

    dp: int = -1
    fsdp: int = 1
    tp: int = 1
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        sizes = (self.dp, self.fsdp, self.tp)
        if any(n == 0 or n < -1 for n in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"dp, fsdp, tp = {sizes}: positive numbers, one of them may be -1 for the rest")


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
