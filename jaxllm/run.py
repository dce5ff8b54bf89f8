"""RunConfig: everything a run is, as one value, and the rules that span its sections."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllm.checkpoint.config import Checkpoints
from jaxllm.core.config import Json, canonical, config, decode, differences, encode, essential, fingerprint
from jaxllm.core.errors import ConfigError
from jaxllm.data.config import Data, NoStore, StoreAt
from jaxllm.models.config import Model, Moe
from jaxllm.optim.config import Optimizer
from jaxllm.parallel.config import Compute, Mesh
from jaxllm.train.config import (
    Evaluation,
    Fault,
    Forked,
    FromRun,
    Guard,
    Imported,
    Io,
    Logging,
    Loss,
    Precision,
    Rewind,
    Scratch,
    Start,
)

SCHEMA = 1

# Sections that decide which numbers a run produces (changing one needs an amendment), those that decide how they are
# computed and may move bits (part of the numerics fingerprint), and the rest, which can move nothing.
IDENTITY = ("seed", "start", "model", "data", "optimizer", "loss", "precision", "faults")
NUMERICS = ("mesh", "compute")


@config
class RunConfig:
    """One training run."""

    schema: int = SCHEMA
    name: str
    seed: int
    start: Start = Scratch()
    model: Model
    data: Data
    optimizer: Optimizer
    loss: Loss = Loss()
    precision: Precision = Precision()
    mesh: Mesh = Mesh()
    compute: Compute = Compute()
    checkpoints: Checkpoints = Checkpoints()
    evaluation: Evaluation = Evaluation()
    guard: Guard = Guard()
    faults: tuple[Fault, ...] = ()  # injected on purpose, to see what happens
    logging: Logging = Logging()
    io: Io = Io()

    @property
    def steps(self) -> int:
        """Updates in all stages together."""
        return sum(s.steps for s in self.data.stages)

    @property
    def tokens(self) -> int:
        """Input positions of all stages together."""
        return self.data.seq_len * sum(s.steps * s.batch_size for s in self.data.stages)

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))


def _problems(run: RunConfig) -> Any:
    """Rules between sections; each names the fields, their values and what would do."""
    if run.schema != SCHEMA:
        yield f"schema={run.schema}, but this jaxllm writes schema {SCHEMA}"
    if not run.name or any(c in run.name for c in "/\\\0") or run.name.startswith("."):
        yield f"name={run.name!r} names a folder; use letters, digits, '-' and '_'"
    if not 0 <= run.seed < 2**63:
        yield f"seed={run.seed} lies in 0..2^63-1"
    for i, stage in enumerate(run.data.stages):
        micro = run.compute.micro_batch
        if micro is not None and stage.batch_size % micro:
            yield (
                f"data.stages.{i}.batch_size={stage.batch_size} is not a multiple of "
                f"compute.micro_batch={micro}; use a divisor of the batch size"
            )
    if isinstance(run.start, Imported) != isinstance(run.data.store, NoStore):
        yield "start=Imported and data.store=NoStore go together: what `jaxllm import-hf` writes; train with FromRun"
    spikes, saves = run.guard.spikes, run.checkpoints
    if spikes is not None and isinstance(spikes.action, Rewind):
        kept = saves.every_steps * (saves.keep_latest - 1)
        if spikes.recover_within > kept:
            yield (
                f"guard.spikes.recover_within={spikes.recover_within} could outlast the "
                f"checkpoints from before a spike, which stay for {kept} steps; raise "
                f"checkpoints.keep_latest={saves.keep_latest}"
            )
    for i, fault in enumerate(run.faults):
        if not 1 <= fault.step <= run.steps:
            yield f"faults.{i}.step={fault.step} lies in 1..{run.steps}"
    if run.precision.projections == "float8":
        yield from _float8_problems(run.model)
    late = [s for s in run.checkpoints.keep_steps if s > run.steps]
    if late:
        yield f"checkpoints.keep_steps names step {late[0]}, but the run ends at step {run.steps}"


# What cuBLASLt's products of float8 count in.
_FLOAT8_MULTIPLE = 16


def _float8_problems(model: Model) -> Any:
    ffn, part = model.ffn, model.attention
    if isinstance(ffn, Moe):
        yield "precision.projections=float8: products of experts (model.ffn=Moe) are ragged; use compute"
        return
    inner = {
        "model.width": model.width,
        "model.ffn.width": ffn.width,
        "model.attention.heads x head_width": part.heads * part.head_width,
        "model.attention.kv_heads x head_width": part.kv_heads * part.head_width,
    }
    for name, width in inner.items():
        if width % _FLOAT8_MULTIPLE:
            yield f"precision.projections=float8: {name}={width} is not a multiple of {_FLOAT8_MULTIPLE}"


# ---- saved form ------------------------------------------------------------------------------------------------------

# schema n -> the function that turns a raw config of schema n into one of n + 1. Old runs open for ever.
UPGRADES: dict[int, Any] = {}


def decode_run(raw: Json) -> RunConfig:
    """A saved config of any schema -> RunConfig."""
    if not isinstance(raw, dict):
        raise ConfigError("a saved run is a JSON object")
    schema = raw.get("schema", SCHEMA)
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise ConfigError(f"run.schema={schema!r}: this jaxllm reads schemas 1 to {SCHEMA}; update jaxllm")
    while schema < SCHEMA:
        raw = UPGRADES[schema](raw)
        schema += 1
    return decode(RunConfig, raw)


def identity(run: RunConfig) -> dict[str, Json]:
    """The encoded sections that decide a run's numbers."""
    return _sections(run, encode)


def _sections(run: RunConfig, encode: Callable[[Any], Json]) -> dict[str, Json]:
    found: dict[str, Any] = {k: encode(getattr(run, k)) for k in IDENTITY}
    if isinstance(run.data.store, StoreAt):
        del found["data"]["store"]["path"]  # a store may be moved: what it holds is pinned by data.manifest
    if isinstance(run.start, (FromRun, Forked)):
        del found["start"]["folder"]  # so may a run: start.digest pins its checkpoint
    return found


def identity_hash(run: RunConfig) -> str:
    """sha256 of the identity. Fields at their default do not enter: a later jaxllm, which has more, hashes the same."""
    sections = _sections(run, essential)
    if isinstance(run.start, Scratch):
        del sections["start"]
    if not run.faults:
        del sections["faults"]
    return fingerprint(sections)


def identity_changes(old: RunConfig, new: RunConfig) -> list[str]:
    """The identity fields in which two runs differ, as `path: old -> new`."""
    return differences(identity(old), identity(new))


def run_folder(run: RunConfig) -> str:
    """Where the run lives."""
    return str(Path(run.io.root) / run.name)


__all__ = [
    "SCHEMA",
    "RunConfig",
    "canonical",
    "decode_run",
    "identity",
    "identity_changes",
    "identity_hash",
    "run_folder",
]
