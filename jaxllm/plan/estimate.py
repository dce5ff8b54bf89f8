"""What a step would need, by arithmetic alone: rough, fast, and good for leaving out what cannot be best. No jax.

Whatever a plan prints is of a compiled step; these figures only choose what is compiled.
"""

import math
from dataclasses import dataclass

from jaxllm.core.chips import Chip
from jaxllm.models.config import Gelu, Model, Moe
from jaxllm.models.count import flops_per_token, matmul_parameters, parameters
from jaxllm.parallel.config import AXES
from jaxllm.parallel.schedule import Schedule
from jaxllm.plan.measure import main_batch
from jaxllm.plan.target import Target
from jaxllm.run import RunConfig

# The share of a forward pass that the backward pass does again, by remat policy; attention apart.
_REPEATED = {"none": 0.0, "full": 1.0, "dots": 0.05, "dots_no_batch": 0.15, "qkv_attention": 0.8}
_HALF, _SINGLE = 2.0, 4.0
_IDLE = 0.1  # of a second on what does not bind, for each that it is busy: nothing hides perfectly


@dataclass(frozen=True)
class Estimate:
    """bytes: the memory of one device. seconds: of a step, by resource."""

    bytes: float
    compute: float
    links: float
    network: float

    @property
    def seconds(self) -> float:
        """What binds, and a little of what does not."""
        parts = (self.compute, self.links, self.network)
        return max(parts) + _IDLE * (sum(parts) - max(parts))


def sizes_of(run: RunConfig) -> dict[str, int]:
    """Devices along each axis of a config's mesh, slices included, in which none is left open."""
    mesh = run.mesh
    return {axis: int(getattr(mesh, axis) * getattr(mesh.across, axis)) for axis in AXES}


def pipeline_of(run: RunConfig) -> Schedule:
    """How the stages of a config share the work, whether or not layers divide; one stage takes all at once."""
    stages, how = sizes_of(run)["pp"], run.compute.pipeline
    return Schedule(1, 1, 1) if stages == 1 else Schedule(stages, how.micro_batches or stages, how.rounds)


def batch_parts(run: RunConfig) -> int:
    """Of what number a batch, or an accumulation slice of it, has to be a multiple."""
    sizes = sizes_of(run)
    return sizes["dp"] * sizes["fsdp"] * sizes["ep"] * pipeline_of(run).micro_batches


def estimate(run: RunConfig, target: Target) -> Estimate:
    """Of a config whose mesh has the target's number of devices."""
    sizes, model, chip = sizes_of(run), run.model, target.chip
    batch, S = main_batch(run), run.data.seq_len
    rounds = batch // (run.compute.micro_batch or batch)
    rows = batch / (sizes["dp"] * sizes["fsdp"] * sizes["ep"])  # sequences of a device in a step
    tokens = rows * S / sizes["cp"]
    width = _HALF if run.precision.compute == "bfloat16" else _SINGLE
    tp, layers = sizes["tp"], model.layers / sizes["pp"]
    spread = sizes["fsdp"] * sizes["ep"] * sizes["cp"]  # what gathers the parameters of a layer
    shards = spread * tp * sizes["pp"]
    state = parameters(model) * _SINGLE * ((5 if run.optimizer.ema else 4) + (rounds > 1)) / shards
    residual = model.width / (tp if run.mesh.sequence_parallel else 1)
    kept = _kept(model, _policy(run), tp, residual) * layers
    working = _kept(model, "none", tp, residual) * 1.5 + model.width * 4
    scores = 2 * S / sizes["cp"] * model.attention.heads / tp if run.compute.attention == "reference" else 0.0
    logits = 3 * model.vocab_size / tp / run.compute.loss_chunks * _SINGLE / width
    bytes_ = state + tokens / rounds * width * (kept + working + scores + logits)
    bytes_ += 4 * width * _layer(model) / tp  # two layers' parameters, gathered, and their gradients

    repeat = 1 + _REPEATED[_policy(run)] / 3
    flops = flops_per_token(model, S, causal=True) * batch * S * repeat / target.devices
    per_layer = 2 * (model.width * tokens * width)  # what a pair of collectives over tp carries, into and out of
    keys = 2 * tokens * width * model.attention.kv_heads * model.attention.head_width / tp
    passes = 2 + (run.compute.remat == "full")
    gathered = width * _gathered(model, sizes["ep"]) / (tp * sizes["pp"]) * (passes * rounds + rounds)
    exchanged = {
        "tp": 2 * per_layer * layers * passes * (tp - 1) / tp,
        "fsdp": gathered * (spread - 1) / spread,
        "cp": 3 * keys * layers * (sizes["cp"] - 1),
        "ep": _exchanged(model) * tokens * width * layers * passes * 2 * (sizes["ep"] > 1),
        "pp": 2 * tokens * width * model.width * (sizes["pp"] > 1),
    }  # fmt: skip
    between = 2 * _SINGLE * parameters(model) / shards if target.slices > 1 else 0.0
    along = sizes | {"fsdp": spread}
    return Estimate(
        bytes_,
        flops / chip.flops / (1 - pipeline_of(run).bubble),
        sum(sent / axis_rate(chip, along[axis], target) for axis, sent in exchanged.items()),
        between / chip.network,
    )


def _policy(run: RunConfig) -> str:
    """A policy's name; tensors that are named one by one count as the policy that keeps a few."""
    return run.compute.remat if isinstance(run.compute.remat, str) else "qkv_attention"


def axis_rate(chip: Chip, size: int, target: Target) -> float:
    """Bytes/s that leave a device along an axis: its share of the torus, or the switch."""
    if chip.torus == 0:
        return chip.link if size <= chip.node else chip.network * chip.node
    within = math.prod(target.shape)
    share = math.log(max(2, size)) / math.log(max(2, within))
    return 2 * chip.link * max(1.0, min(float(chip.torus), chip.torus * share))


def _layer(model: Model) -> float:
    """Parameters of one layer."""
    return (matmul_parameters(model) - model.width * model.vocab_size) / model.layers


def _gathered(model: Model, ep: int) -> float:
    """Parameters that a device must see in a pass: all but the experts of others."""
    if not isinstance(model.ffn, Moe):
        return float(parameters(model))
    each = (2 if isinstance(model.ffn.expert, Gelu) else 3) * model.width * model.ffn.expert.width
    return parameters(model) - model.layers * model.ffn.experts * each * (1 - 1 / ep)


def _exchanged(model: Model) -> float:
    return model.width * model.ffn.top_k if isinstance(model.ffn, Moe) else 0.0


def _kept(model: Model, remat: str, tp: int, residual: float) -> float:
    """Numbers that a layer keeps of every token for its backward pass."""
    part = model.attention
    queries, keys = part.heads * part.head_width / tp, 2 * part.kv_heads * part.head_width / tp
    if isinstance(model.ffn, Moe):
        expert, copies = model.ffn.expert, model.ffn.top_k
    else:
        expert, copies = model.ffn, 1
    wide = copies * (1 if isinstance(expert, Gelu) else 2) * expert.width / tp
    match remat:
        case "full":
            return residual
        case "qkv_attention":
            return residual + 2 * queries + keys
        case "dots_no_batch":
            return 3 * residual + queries + keys + wide
        case "dots":
            return 3 * residual + 2 * queries + keys + wide
        case _:
            return 10 * residual + 3 * queries + 2 * keys + 2 * wide + copies * expert.width / tp
