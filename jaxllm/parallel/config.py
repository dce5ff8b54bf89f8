"""Where a run executes, as values: the mesh and what each device recomputes."""

from typing import Annotated, Literal

from pydantic import Field

from jaxllm.core.config import config, suggest, variant
from jaxllm.core.tensors import TENSORS

# Of a mesh, outer to inner: neighbours on the last axis are the closest devices, and tp talks in every layer.
AXES = ("dp", "fsdp", "pp", "ep", "cp", "tp")

# Implementations of attention; what each can do stands in ops/attention/choice.py.
Kernel = Literal["reference", "blocks", "splash", "cudnn", "pallas_gpu"]


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


RematPolicy = Literal["none", "full", "dots", "dots_no_batch", "qkv_attention"]


@variant
class Named:
    """Remat tensor by tensor: what a layer keeps for its backward pass, what it moves to the memory of the host until
    then, by the names of core/tensors.py. The rest is recomputed; without any name, that is 'full'."""

    keep: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = (*self.keep, *self.offload)
        for name in named:
            if name not in TENSORS:
                raise ValueError(f"a layer has no tensor {name!r}{suggest(name, TENSORS)}")
            if named.count(name) > 1:
                raise ValueError(f"{name!r} is named twice; a tensor is either kept or offloaded")


Remat = RematPolicy | Named


@config
class Pipeline:
    """How the layers of a mesh with pp > 1 work at once. Nothing of it matters where pp is 1.

    micro_batches: into how many parts the sequences of a step (of an accumulation slice, where there are some) are cut,
    a multiple of the stages; None takes as many as stages. rounds: how often a part passes every stage. A stage holds
    `rounds` pieces of the layers, pp pieces apart: with more, stages idle less and talk more.
    """

    micro_batches: int | None = None
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1 or (self.micro_batches is not None and self.micro_batches < 1):
            raise ValueError("micro_batches and rounds are at least 1")


# Between two devices travel the rows there are, or all that there could be: parallel/exchange.py.
ExpertExchange = Literal["auto", "ragged", "padded"]


@variant
class Ring:
    """Keys and values go round the devices of cp, while the queries stay (https://arxiv.org/abs/2310.01889).

    A device holds a chunk from each end of the sequence, so that causal work is equal (parallel/ring.py); seq_len is a
    multiple of 2 * cp. It has its own blocks of attention: `attention` chooses nothing here.
    """


@variant
class AllToAll:
    """The devices of cp exchange positions for heads before attention and back after it
    (https://arxiv.org/abs/2309.14509), which `attention` computes for whole sequences, but for ALiBi: that takes the
    blocks of a ring of one device. Query and key-value heads are multiples of cp * tp."""


ContextParallel = Annotated[Ring | AllToAll, Field(discriminator="kind")]


@config
class Compute:
    """How a step is computed. None of it changes what is computed; some of it moves bits (numerics fingerprint).

    remat: what a layer keeps for its backward pass: by a policy's name, or `Named` tensors. micro_batch: sequences per
    gradient accumulation slice of the global batch; None takes the whole batch at once. attention: which
    implementation; 'auto' says what it chose. loss_chunks: the tokens of a batch are scored in that many slices, so
    that all logits never exist at once. pipeline: how stages share the work where the mesh has some. expert_exchange:
    how tokens reach experts on other devices without a capacity; 'auto' says what it chose. context_parallel: how
    attention crosses the devices of mesh.cp, if there are several. xla_flags: 'table' sets the flags that
    core/xla_flags.py has for the platform, where the user has set none.
    """

    remat: Remat = "none"
    micro_batch: int | None = None
    attention: Literal["auto", Kernel] = "auto"
    loss_chunks: int = 8
    pipeline: Pipeline = Pipeline()
    expert_exchange: ExpertExchange = "auto"
    context_parallel: ContextParallel = Ring()
    excess_precision: bool = True  # XLA's xla_allow_excess_precision; False makes remat exact in bfloat16
    xla_flags: Literal["table", "none"] = "table"

    def __post_init__(self) -> None:
        if self.loss_chunks < 1 or (self.micro_batch is not None and self.micro_batch < 1):
            raise ValueError("loss_chunks and micro_batch are at least 1")
