"""RunConfig: the rules between its sections, what its identity is, and that old schemas open for ever."""

import dataclasses
from typing import Any

import pytest

import jaxllm.run
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.core.config import encode, essential, override
from jaxllm.core.errors import ConfigError
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.models.config import Attention, Model, SwiGlu
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.parallel.config import Compute
from jaxllm.run import (
    IDENTITY,
    NUMERICS,
    SCHEMA,
    RunConfig,
    decode_run,
    identity,
    identity_changes,
    identity_hash,
    run_folder,
)


def small(**changes: Any) -> RunConfig:
    mixture = (Share(source="a", weight=0.7), Share(source="b", weight=0.3))
    fields: dict[str, Any] = {
        "name": "small",
        "seed": 1,
        "model": Model(
            vocab_size=64,
            width=16,
            layers=2,
            attention=Attention(heads=4, kv_heads=2, head_width=4),
            ffn=SwiGlu(width=32),
        ),
        "data": Data(
            store=StoreAt(path="store"),
            seq_len=8,
            stages=(
                Stage(name="one", steps=10, batch_size=4, mixture=mixture),
                Stage(name="two", steps=5, batch_size=8, mixture=mixture),
            ),
        ),
        "optimizer": AdamW(schedule=warmup_cosine(peak=1e-3, end=1e-4, warmup_steps=2, total_steps=15)),
        "checkpoints": Checkpoints(every_steps=5),
    }
    return RunConfig(**(fields | changes))


def test_length() -> None:
    assert small().steps == 15
    assert small().tokens == 8 * (10 * 4 + 5 * 8)


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": SCHEMA + 1}, f"schema={SCHEMA + 1}, but this jaxllm writes schema {SCHEMA}"),
        ({"name": "a/b"}, "name='a/b' names a folder; use letters, digits, '-' and '_'"),
        ({"name": ""}, "name='' names a folder"),
        ({"name": ".."}, "name='..' names a folder"),
        ({"name": "a\\b"}, "names a folder"),
        ({"seed": -1}, "seed=-1 lies in 0..2^63-1"),
        ({"seed": 2**63}, "seed=9223372036854775808 lies in 0..2^63-1"),
        (
            {"compute": Compute(micro_batch=3)},
            "data.stages.0.batch_size=4 is not a multiple of compute.micro_batch=3; use a divisor of the batch size",
        ),
        ({"compute": Compute(micro_batch=8)}, "data.stages.0.batch_size=4 is not a multiple of compute.micro_batch=8"),
        (
            {"checkpoints": Checkpoints(every_steps=5, keep_steps=(5, 16))},
            "checkpoints.keep_steps names step 16, but the run ends at step 15",
        ),
    ],
)
def test_rules_between_sections(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"compute": Compute(micro_batch=4)},
        {"checkpoints": Checkpoints(every_steps=5, keep_steps=(15,))},
    ],
)
def test_what_lies_just_within_the_rules(changes: dict[str, Any]) -> None:
    small(**changes)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"name='' .*; seed=-1 .*micro_batch=3.*; data\.stages\.1.*micro_batch=3"):
        small(name="", seed=-1, compute=Compute(micro_batch=3))


def test_rules_hold_for_saved_and_overridden_runs_too() -> None:
    with pytest.raises(ConfigError, match=r"^run: data\.stages\.0\.batch_size=4 is not a multiple"):
        override(small(), ["compute.micro_batch=3"])
    with pytest.raises(ConfigError, match=r"^run: seed=-1 "):
        decode_run({**encode(small()), "seed": -1})


# ---- identity and placement ------------------------------------------------------------------------------------------

PLACEMENT = [
    "mesh.fsdp=2",
    "compute.micro_batch=2",
    "compute.remat=full",
    "checkpoints.every_steps=1",
    "evaluation.windows=1",
    "guard.lag=2",
    "logging.every_steps=1",
    "io.root=elsewhere",
    "name=other",
]
CHANGED = [
    "seed=2",
    "model.width=32",
    "model.position.kind=NoPosition",
    "model.tied_embeddings=true",
    "data.seq_len=16",
    "data.stages.1.steps=6",
    "data.stages.0.mixture.0.weight=0.8",
    "data.block=16",
    "optimizer.beta2=0.99",
    "optimizer.ema.decay=0.99",
    "optimizer.schedule.1.end=0",
    "loss.z_loss=1e-4",
    "precision.compute=bfloat16",
]


def test_every_section_is_identity_or_placement() -> None:
    """Whoever adds a section decides what it is."""
    placement = {"schema", "name", "checkpoints", "evaluation", "guard", "logging", "io"}
    fields = {f.name for f in dataclasses.fields(RunConfig)}
    assert fields == set(IDENTITY) | set(NUMERICS) | placement
    assert not set(IDENTITY) & set(NUMERICS)


@pytest.mark.parametrize("change", PLACEMENT)
def test_placement_may_change(change: str) -> None:
    new = override(small(), [change])
    assert new != small()
    assert identity_hash(new) == identity_hash(small())
    assert identity_changes(small(), new) == []


@pytest.mark.parametrize("change", CHANGED)
def test_identity_changes_are_named(change: str) -> None:
    new = override(small(), [change])
    assert identity_hash(new) != identity_hash(small())
    changed = identity_changes(small(), new)
    path = change.partition("=")[0]
    assert changed
    assert all(line.startswith((path, path.rpartition(".")[0])) for line in changed)


def test_identity_changes_show_both_values() -> None:
    new = override(small(), ["seed=2", "model.layers=3"])
    assert identity_changes(small(), new) == ["model.layers: 2 -> 3", "seed: 1 -> 2"]


def test_identity_hash_is_frozen() -> None:
    """Journals and checkpoints on disk carry it. If it moves, runs of before no longer recognise themselves."""
    assert set(identity(small())) == set(IDENTITY)
    assert identity_hash(small()) == "e87eeddf5089557e1c05f64523972a8c4bb323b8c1c7b8996a5b697434e693b0"


# ---- saved form ------------------------------------------------------------------------------------------------------


def test_an_older_schema_is_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema 1 called the seed `random_seed`, schema 2 had no name; today's is 3."""

    def one_to_two(raw: dict[str, Any]) -> dict[str, Any]:
        rest = {k: v for k, v in raw.items() if k != "random_seed"}
        return rest | {"schema": 2, "seed": raw["random_seed"]}

    def two_to_three(raw: dict[str, Any]) -> dict[str, Any]:
        return raw | {"schema": 3, "name": "unnamed"}

    monkeypatch.setattr(jaxllm.run, "SCHEMA", 3)
    monkeypatch.setattr(jaxllm.run, "UPGRADES", {1: one_to_two, 2: two_to_three})
    today = small(schema=3, name="unnamed")
    second = {k: v for k, v in encode(today).items() if k != "name"} | {"schema": 2}
    first = {k: v for k, v in second.items() if k != "seed"} | {"schema": 1, "random_seed": 1}
    before = dict(first)
    assert decode_run(first) == decode_run(second) == decode_run(encode(today)) == today
    assert first == before
    with pytest.raises(ConfigError, match=r"^run has no field 'random_seed'"):
        decode_run(first | {"schema": 3})


@pytest.mark.parametrize("schema", [0, -1, SCHEMA + 1, "1", None, 1.0])
def test_an_unknown_schema_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^run\.schema={schema!r}: this jaxllm reads schemas 1 to {SCHEMA}"):
        decode_run({**encode(small()), "schema": schema})


def test_every_older_schema_has_its_upgrade() -> None:
    assert set(jaxllm.run.UPGRADES) == set(range(1, SCHEMA))


@pytest.mark.parametrize("raw", [[], None, "run", 3])
def test_a_saved_run_is_an_object(raw: Any) -> None:
    with pytest.raises(ConfigError, match="a saved run is a JSON object"):
        decode_run(raw)


def test_where_a_run_lives() -> None:
    assert run_folder(small()) == "runs/small"
    assert run_folder(override(small(), ["io.root=/data/runs/"])) == "/data/runs/small"


def test_a_store_that_was_moved_is_the_same_data() -> None:
    moved = override(small(), ["data.store.path=elsewhere"])
    assert identity_changes(small(), moved) == [] and identity_hash(small()) == identity_hash(moved)
    assert identity_changes(small(), override(moved, ["data.manifest=abc"])) == ['data.manifest: null -> "abc"']


def test_what_has_its_default_does_not_enter_the_hash() -> None:
    """Else every field that is added would give all old runs another identity."""
    raw = essential(small())
    assert "norm" not in raw["model"] and raw["model"]["width"] == 16
    assert raw["data"]["store"] == {"kind": "StoreAt", "path": "store"}
    assert [set(stage) for stage in raw["data"]["stages"]] == [{"name", "steps", "batch_size", "mixture"}] * 2
    assert decode_run(raw | {"schema": SCHEMA}) == small()
    for change in ("model.norm.eps=1e-6", "model.tied_embeddings=true", "loss.z_loss=0.1", "data.windows=disjoint"):
        assert identity_hash(override(small(), [change])) != identity_hash(small())
