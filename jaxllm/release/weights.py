"""The weights and the training states in a release, held against what the record says of them. No jax."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.checkpoint.layout import read_meta
from jaxllm.checkpoint.manifest import ArrayRecord, state_digest
from jaxllm.convert.published import open_published
from jaxllm.core.errors import CheckFailed
from jaxllm.core.mixing import array_digest
from jaxllm.release import checks
from jaxllm.release.layout import HF, STATE, CheckpointEntry, Release

Report = Callable[[str, int, int], None]
Event = Mapping[str, Any]


def states(folder: Path, release: Release, events: Sequence[Event], report: Report) -> int:
    """How many training states there are, each of which is to the bit the one whose saving the journal records.

    CheckFailed names checkpoint and field, or array.
    """
    saved = {(e["lineage"], e["step"]): str(e["digest"]) for e in events if e["event"] == "checkpoint"}
    count = 0
    for i, entry in enumerate(release.checkpoints):
        report("states", i, len(release.checkpoints))
        _told(entry, saved)
        if "state" not in entry.items:
            continue
        place, where = folder / entry.folder / STATE, f"{entry.folder}/{STATE}"
        manifest, _ = read_meta(place, entry.step)
        due = {
            "state_digest": (entry.state_digest, manifest.state_digest),
            "parameters_digest": (entry.parameters_digest, state_digest(manifest.of_items(["params"]).values())),
            "lineage": (entry.lineage, manifest.lineage),
            "tokens": (entry.tokens, manifest.tokens),
        }
        for name, (listed, found) in due.items():
            if listed != found:
                raise CheckFailed(f"{entry.branch}: {name} is {listed}, the state in {where} has {found}")
        checks.arrays(place, entry.step, manifest, where)
        count += 1
    return count


def weights(folder: Path, release: Release, report: Report) -> tuple[int, int]:
    """(checkpoints whose Hugging Face weights are the parameters that were saved, those whose weights were rounded).

    Rounded ones cannot be held against a digest: their bits are other ones. CheckFailed names the checkpoint.
    """
    exact = rounded = 0
    for entry in release.checkpoints:
        published = open_published(folder / entry.folder / HF)
        if any(e.dtype != "F32" for e in published.entries.values()):
            rounded += 1
            continue

        def told(_: str, done: int, total: int, branch: str = entry.branch) -> None:
            report(f"{branch} weights", done, total)

        found = [
            ArrayRecord(name=f"params.{path}", shape=x.shape, dtype="float32", digest=array_digest(x))
            for path, x in published.arrays(told)
        ]
        if (digest := state_digest(found)) != entry.parameters_digest:
            raise CheckFailed(
                f"{entry.branch}: the weights in {entry.folder}/{HF} digest to {digest[:12]}, "
                f"parameters_digest is {entry.parameters_digest[:12]}"
            )
        exact += 1
    return exact, rounded


def _told(entry: CheckpointEntry, saved: Mapping[tuple[int, int], str]) -> None:
    """The journal knows this checkpoint, with this state."""
    known = saved.get((entry.lineage, entry.step))
    if known != entry.state_digest:
        said = "no such checkpoint" if known is None else f"state {known[:12]}"
        raise CheckFailed(f"{entry.branch}: state_digest is {entry.state_digest[:12]}, the journal has {said}")
