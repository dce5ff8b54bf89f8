"""Which process computed which steps, and the source as bytes that anyone can make again."""

import io
import tarfile
from pathlib import Path
from typing import Any

import jaxllm
from jaxllm.checkpoint.revision import package_sha256
from jaxllm.release.environments import environments, fingerprints, lock, source_tar, stays


def began(event: str, fingerprint: str, lineage: int = 0, **more: Any) -> dict[str, Any]:
    environment = {
        "platform": "cpu",
        "device_kind": "cpu",
        "devices": 1,
        "processes": 1,
        "mesh": {},
        "versions": {"jax": f"1.{fingerprint}"},
    }
    source = {"commit": "c", "dirty": False, "jaxllm": "0.1.0"}
    common = {"lineage": lineage, "fingerprint": fingerprint, "environment": environment, "source": source}
    return {"event": event, **common, **more}


def back(lineage: int, step: int, last: int) -> dict[str, Any]:
    return {"event": "rollback", "lineage": lineage, "parent": lineage - 1, "step": step, "last": last}


def covered(events: list[dict[str, Any]], newest: dict[int, int]) -> list[tuple[str, int, int, int]]:
    return [(s.event["fingerprint"], s.lineage, s.first, s.last) for s in stays(events, newest)]


def test_a_step_belongs_to_the_process_that_computed_it_last() -> None:
    # Killed behind its checkpoint 8, at 11 say: 9 to 11 were computed again by the next process.
    assert covered([began("start", "1"), began("resume", "2", step=8)], {0: 20}) == [("1", 0, 1, 8), ("2", 0, 9, 20)]
    # One that did nothing is not there.
    idle = [began("start", "1"), began("resume", "2", step=8), began("resume", "3", step=8)]
    assert covered(idle, {0: 9}) == [("1", 0, 1, 8), ("3", 0, 9, 9)]


def test_going_back_ends_a_lineage_and_opens_the_next() -> None:
    # In the middle of a process.
    assert covered([began("start", "1"), back(1, 8, 11)], {0: 11, 1: 20}) == [("1", 0, 1, 11), ("1", 1, 9, 20)]
    # By a person, between two of them.
    apart = [began("start", "1"), back(1, 8, 11), began("resume", "2", 1, step=8)]
    assert covered(apart, {0: 11, 1: 20}) == [("1", 0, 1, 11), ("2", 1, 9, 20)]


def test_a_fork_computes_nothing_before_it_is_resumed() -> None:
    events = [began("fork", "1", step=24), began("resume", "2", step=24)]
    assert covered(events, {0: 30}) == [("2", 0, 25, 30)] and covered(events[:1], {}) == []


def test_neighbours_that_computed_alike_are_one_on_the_card() -> None:
    found = stays([began("start", "1"), began("resume", "1", step=8), began("resume", "2", step=12)], {0: 20})
    assert [(e.fingerprint, e.first, e.last) for e in environments(found)] == [("1", 1, 12), ("2", 13, 20)]
    assert [len(f["covers"]) for f in fingerprints(found)] == [2, 1]
    assert "jax==1.2\n" in lock(found)


def test_the_source_has_the_same_bytes_whoever_packs_it_and_is_the_package(tmp_path: Path) -> None:
    packed = source_tar()
    assert packed == source_tar()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert all(m.mtime == 0 and m.uid == 0 and m.mode == 0o644 for m in tar)
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None and ".." not in member.name
            path = tmp_path / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
    assert package_sha256(tmp_path / "jaxllm") == package_sha256(Path(jaxllm.__file__).parent)
