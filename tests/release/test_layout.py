"""release.json as a value: one spelling, and every field of it is looked at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxllm.core.errors import CheckFailed, ConfigError, JaxllmError, LedgerError, RunError
from jaxllm.release.layout import (
    ROLES,
    Chains,
    CheckpointEntry,
    EditEntry,
    FileEntry,
    LineageEntry,
    MadeWith,
    Release,
    RunEntry,
    ScoreEntry,
    StepsChain,
    branch_name,
    decode_release,
    encode_release,
    read_release,
    role_of,
)
from jaxllm.release.sealed import RELEASE


def checkpoint(step: int, parent: str | None, lineage: int = 0, live: bool = True) -> CheckpointEntry:
    branch = branch_name(step, step * 64, None if live else lineage)
    return CheckpointEntry(
        branch=branch,
        lineage=lineage,
        step=step,
        tokens=step * 64,
        first=step - 8,
        last=step,
        parent=parent,
        state_digest="a" * 64,
        parameters_digest="b" * 64,
        folder=f"checkpoints/{branch}",
        items=("hf", "state"),
        scores=(ScoreEntry(step=step, source="prose", nats_per_token=None, bits_per_byte=1.5, tokens=9),),
    )


def release() -> Release:
    return Release(
        made_with=MadeWith(jaxllm="0.1.0", package="c" * 64),
        run=RunEntry(
            name="é", identity="i", model="llama", parameters=1, steps=16, planned_steps=16, tokens=1024, finished=True
        ),
        licence="Apache-2.0",
        data_licence="not stated",
        contents=("optimizer",),
        chains=Chains(journal_head="d" * 64, journal_events=3, steps=StepsChain(segments=1, head="e" * 16)),
        lineages=(
            LineageEntry(lineage=0, parent=None, step=0, edits=(EditEntry(kind="skip", first=3, count=4),)),
            LineageEntry(lineage=1, parent=0, step=8, edits=()),
        ),
        checkpoints=(checkpoint(8, None), checkpoint(12, "step8-tokens512", 0, live=False)),
        files=(
            FileEntry(path="LICENSE", sha256="f" * 64, bytes=1, role="licence"),
            FileEntry(path="record/journal.jsonl", sha256="f" * 64, bytes=2, role="journal"),
        ),
    )


def test_its_bytes_are_a_function_of_the_value(tmp_path: Path) -> None:
    made = release()
    data = encode_release(made)
    assert data == encode_release(decode_release(json.loads(data))) and decode_release(json.loads(data)) == made
    assert list(json.loads(data))[-1] == "sha256"
    (tmp_path / RELEASE).write_bytes(data)
    assert read_release(tmp_path) == made
    assert made.checkpoints[1].branch == "lineage0-step12-tokens768"
    (tmp_path / RELEASE).write_bytes(data.replace(b'"steps": 16', b'"steps": 17'))
    with pytest.raises(CheckFailed, match="first difference"):
        read_release(tmp_path)
    with pytest.raises(RunError, match="is no release"):
        read_release(tmp_path / "elsewhere")


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        node: Any = raw
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (put("format", value="x"), LedgerError, "not that of a release"),
        (put("schema", value=2), LedgerError, "schema 2, this jaxllm reads 1"),
        (put("run", "steps", value="16"), ConfigError, r"release.json.run.steps=\"16\""),
        (put("run", "more", value=1), ConfigError, "release.json.run has no field 'more'"),
        (lambda raw: raw["checkpoints"][0].pop("first"), ConfigError, "release.json.checkpoints.0 needs .*'first'"),
        (put("checkpoints", 0, "step", value=9), ConfigError, "checkpoints.0: branch='step8-tokens512' is not"),
        (put("checkpoints", 0, "first", value=9), ConfigError, "first=9, last=8 are no span"),
        (put("checkpoints", 0, "items", value=["state"]), ConfigError, "items="),
        (put("checkpoints", 1, "parent", value="step9-tokens576"), ConfigError, "its parent .* is not in the release"),
        (put("checkpoints", 0, "state_digest", value="A" * 64), ConfigError, "64 hex digits"),
        (put("chains", "steps", "head", value="e" * 15), ConfigError, "hashes of last lines"),
        (put("contents", value=["optimiser"]), ConfigError, "'optimiser' is none of"),
        (put("files", 0, "role", value="journal"), ConfigError, "files.0: LICENSE: role='journal' should be 'licence'"),
        (put("files", 0, "path", value="../LICENSE"), ConfigError, "no plain path"),
        (put("files", 0, "path", value="record/../x"), ConfigError, "no plain path"),
        (put("files", 0, "path", value="virus.exe"), ConfigError, "a release has no file of this name"),
        (put("files", 0, "path", value="release.json"), ConfigError, "does not list itself"),
        (lambda raw: raw["files"].reverse(), ConfigError, "files are listed by path"),
        (lambda raw: raw["checkpoints"].reverse(), ConfigError, "checkpoints are listed by lineage and step"),
        (lambda raw: raw.update(run=raw.pop("run")), LedgerError, "not in its place"),
        (lambda raw: raw.pop("schema") and raw.update(schema=1), LedgerError, "not in its place"),
    ],
)
def test_what_was_not_written_so_is_refused(
    change: Callable[[dict[str, Any]], Any], error: type[JaxllmError], said: str
) -> None:
    raw = json.loads(encode_release(release()))
    change(raw)
    with pytest.raises(error, match=said):
        decode_release(raw)


def test_what_a_file_is_for_is_said_by_its_path() -> None:
    assert role_of("checkpoints/step8-tokens512/hf/model-00001-of-00002.safetensors") == "weights"
    assert role_of("checkpoints/step8-tokens512/hf/model.safetensors.index.json") == "weights"
    assert role_of("checkpoints/step8-tokens512/hf/config.json") == "model configuration"
    assert role_of("checkpoints/step8-tokens512/state/00000008/params/d/x") == "training state"
    assert role_of("record/losses/0/sum/c/0") == "losses" and role_of("record/tokenizer.json") == "tokenizer"
    assert role_of("metrics/tensorboard/events.out") == "tensorboard" and role_of("metrics/steps.csv") == "metrics"
    assert {role_of(path) for path in ("README.md", "DATA.md", "mof.json")} <= set(ROLES.values())
