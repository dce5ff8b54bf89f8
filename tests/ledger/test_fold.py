from pathlib import Path

from jaxllm.ledger.fold import Committed, Present, present, story
from jaxllm.ledger.journal import EVENTS, Journal

RUN = {"lineage": 0, "identity": "a" * 64, "fingerprint": "b" * 64}
EXAMPLE = {int: 3, str: "x", list: ["a", "b"]}
BY_NAME = {
    "edits": [{"kind": "skip", "first": 1000, "count": 16}, {"kind": "defer", "first": 40, "count": 8}],
    "origin": {"run": "other", "digest": "e" * 64},
}


def saved(step: int, digest: str = "d") -> dict:
    return {"lineage": 0, "step": step, "digest": digest, "tokens": step * 100}


def test_before_the_first_event() -> None:
    assert present([]) == Present()
    assert Present().last_checkpoint is None
    assert story([]) == []


def test_a_run_with_everything_in_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append("start", **RUN, fence=1)
        journal.append("stage", lineage=0, step=1, stage="prose", cursor=0)
        journal.append("checkpoint", **saved(20))
        journal.append("checkpoint", **saved(40))
        assert present(journal.events).last_checkpoint == Committed(**saved(40))
        journal.append("fallback", lineage=0, step=40, why="params: the digest differs")
        journal.append("resume", **RUN, step=20, fence=2)
        now = present(journal.events)
        assert now.last_checkpoint == Committed(**saved(20))
        assert (now.starts, now.fence, now.resumed_from, now.bad_steps) == (2, 2, 20, (40,))
        journal.append("refused", lineage=0, step=33)
        journal.append("stage", lineage=0, step=35, stage="code", cursor=560)
        journal.append("checkpoint", **saved(40, "e"))
        journal.append("stop", lineage=0, step=40, why="SIGTERM")
        now = present(journal.events)
        assert (now.stopped, now.stage, now.refused, now.bad_steps) == ("SIGTERM", "code", 1, ())
        assert now.checkpoints == (Committed(**saved(20)), Committed(**saved(40, "e")))
        assert (now.identity, now.fingerprint, now.claim) == ("a" * 64, "b" * 64, "bitwise")
        journal.append("resume", **{**RUN, "fingerprint": "c" * 64}, step=40, fence=3)
        journal.append("numerics", lineage=0, step=40, fingerprint="c" * 64, changes=["jax: 0.10.2 -> 0.12.0"])
        journal.append("divergence", lineage=0, step=41, fields=["loss_bits"])
        now = present(journal.events)
        assert (now.fingerprint, now.claim, now.divergences, now.stopped) == ("c" * 64, "rounding", 1, None)
        assert now.finished is None
        journal.append("checkpoint", **saved(60, "f"))
        journal.append("finish", lineage=0, step=60, digest="f")
        now = present(journal.events)
        assert now.finished == Committed(**saved(60, "f"))
        assert now.last_event == "finish"


def test_a_divergence_that_nothing_explains_stays_one() -> None:
    def event(name: str, **fields: object) -> dict:
        return {"event": name, "time": "2026-01-01T00:00:00.000Z", "lineage": 0, "step": 1, **fields}

    events = [event("divergence", fields=["loss_bits"]), event("numerics", fingerprint="c", changes=[])]
    assert present(events).claim == "different"
    assert present(events[::-1]).claim == "rounding"


def test_the_story_has_one_aligned_line_for_every_event(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for name, fields in EVENTS.items():
            journal.append(name, **{field: BY_NAME.get(field) or EXAMPLE[kind] for field, kind in fields.items()})
        journal.append("resume", **{**RUN, "lineage": 2}, step=1234, fence=1, host="node7", pid=88)
        events = journal.events
    lines = story(events)
    assert len(lines) == len(events)
    assert not any("\n" in line for line in lines)
    start = len("2026-01-01 00:00:00  ") + max(map(len, EVENTS)) + 2
    for line, event in zip(lines, events, strict=True):
        assert line[:19] == event["time"][:19].replace("T", " ")
        assert line[21:].startswith(event["event"])
        assert line[start - 2 : start] == "  "
        assert line[start] != " "
    assert lines[-1].endswith("from step 1,234, numerics bbbbbbbbbbbb, process 88 on node7 [lineage 2]")


def test_an_event_of_a_later_version_is_shown_and_changes_nothing() -> None:
    later = {"event": "merge", "time": "2030-01-01T00:00:00.000Z", "seq": 0, "hash": "", "prev": "", "sample": 7}
    assert story([later]) == ["2030-01-01 00:00:00  merge  sample=7"]
    assert present([later]) == Present(last_event="merge", last_time="2030-01-01T00:00:00.000Z")


def test_going_back_reopens_a_run_and_its_checkpoints_are_those_along_the_path() -> None:
    def event(name: str, step: int, lineage: int = 0, **fields: object) -> dict:
        return {"event": name, "time": "2026-01-01T00:00:00.000Z", "lineage": lineage, "step": step, **fields}

    events = [event("stage", s, stage=f"from{s}", cursor=s) for s in (1, 15)]
    events += [event("checkpoint", s, digest=f"d{s}", tokens=s) for s in (10, 20, 30)]
    events += [event("finish", 30, digest="d30")]
    assert present(events).finished is not None and present(events).stage == "from15"
    events += [event("rollback", 10, 1, seq=4, parent=0, last=30, edits=[], why="", by="person")]
    now = present(events)
    assert now.finished is None and now.lineage == 1 and now.rollbacks == 1 and now.stage == "from1"
    assert [c.step for c in now.checkpoints_of()] == [10]
    assert [c.step for c in now.checkpoints_of(0)] == [10, 20, 30]
    now = present([*events, event("checkpoint", 20, 1, digest="e20", tokens=20)])
    assert now.last_checkpoint is not None and now.last_checkpoint.digest == "e20"
