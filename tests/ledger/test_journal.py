import json
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pytest

from jaxllm.core.errors import LedgerError
from jaxllm.ledger.journal import DIGITS, EVENTS, Journal, holds, read_journal

START = {"lineage": 0, "identity": "a" * 64, "fingerprint": "b" * 64, "fence": 1}


def fill(path: Path) -> list[dict]:
    with Journal(path) as journal:
        journal.append("start", **START, host="tübingen", pid=7)
        journal.append("stage", lineage=0, step=1, stage="prose", cursor=0)
        journal.append("checkpoint", lineage=0, step=20, digest="c" * 64, tokens=12345)
        journal.append("finish", lineage=0, step=30, digest="d" * 64)
        return list(journal.events)


def overwrite(file: BinaryIO, at: int, byte: int) -> None:
    file.seek(at)
    file.write(bytes([byte]))


def test_events_come_back_as_written(tmp_path: Path) -> None:
    events = fill(tmp_path / "journal.jsonl")
    assert read_journal(tmp_path / "journal.jsonl") == events
    assert [e["seq"] for e in events] == [0, 1, 2, 3]
    assert all(e["schema"] == 1 and e["time"].endswith("Z") for e in events)
    assert events[0]["host"] == "tübingen"


def test_the_chain_can_be_checked_without_our_code(tmp_path: Path) -> None:
    fill(tmp_path / "journal.jsonl")
    prev = "0" * 64
    for line in (tmp_path / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        assert event["prev"] == prev
        prev = event["hash"]
        assert sha256(line.replace(f',"hash":"{prev}"', "").encode()).hexdigest() == prev
        del event["hash"]
        assert sha256(json.dumps(event, sort_keys=True, separators=(",", ":")).encode()).hexdigest() == prev


def test_reopening_goes_on_with_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path)
    with Journal(path) as journal:
        assert journal.cut == 0
        head = journal.head
        added = journal.append("resume", **START, step=20)
    assert added["seq"] == 4
    assert added["prev"] == head
    events = read_journal(path)
    assert events[-1] == added
    assert holds(events, head)
    assert holds(events, "0" * DIGITS)
    assert not holds(events[:3], head)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path)
    good = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at in range(len(good)):
            line = good.count(b"\n", 0, at) + 1
            for bit in range(8):
                overwrite(file, at, good[at] ^ 1 << bit)
                with pytest.raises(LedgerError, match=rf"journal\.jsonl line {line}\b"):
                    read_journal(path)
            overwrite(file, at, good[at])
    assert len(read_journal(path)) == 4


def test_opening_for_writing_refuses_a_broken_chain_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path)
    bad = path.read_bytes().replace(b"12345", b"12346")
    path.write_bytes(bad)
    with pytest.raises(LedgerError, match=r"line 3 \(after event 1 \(stage\)\): its hash is .* its content hashes to"):
        Journal(path)
    assert path.read_bytes() == bad


def test_removed_moved_and_rewritten_lines_are_found(tmp_path: Path) -> None:
    path, other = tmp_path / "journal.jsonl", tmp_path / "other.jsonl"
    fill(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for broken, number in (
        ([lines[0], *lines[2:]], 2),
        (lines[1:], 1),
        ([lines[0], lines[2], lines[1], lines[3]], 2),
        ([*lines[:2], lines[1], *lines[2:]], 3),
    ):
        path.write_bytes(b"".join(broken))
        with pytest.raises(LedgerError, match=rf"line {number}\b.*it follows a line with hash"):
            read_journal(path)
    with Journal(other) as journal:  # a first line with a good hash of its own, under the old rest
        journal.append("start", **{**START, "fence": 9})
    path.write_bytes(other.read_bytes() + b"".join(lines[1:]))
    with pytest.raises(LedgerError, match=r"line 2 .*that one was changed"):
        read_journal(path)


def test_a_lost_last_line_shows_only_against_a_hash_kept_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    events = fill(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    shorter = read_journal(path)
    assert shorter == events[:-1]
    assert holds(shorter, events[-2]["hash"])
    assert not holds(shorter, events[-1]["hash"])


def test_a_torn_last_line_is_ignored_then_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    events = fill(path)
    good = path.read_bytes()
    begin = good.rfind(b"\n", 0, -1) + 1
    for end in [begin, begin + 1, *range(begin + 2, len(good) - 1, 9), len(good) - 1]:
        path.write_bytes(good[:end])
        assert read_journal(path) == events[:-1]
        with Journal(path) as journal:
            assert journal.cut == end - begin
            assert journal.events == events[:-1]
            journal.append("stop", lineage=0, step=25, why="SIGTERM")
        assert [e["event"] for e in read_journal(path)] == ["start", "stage", "checkpoint", "stop"]


def test_an_event_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path)
    good = path.read_bytes()

    def full_after_half(fd: int, data: bytes) -> None:
        import os

        os.write(fd, bytes(data[: len(data) // 2]))
        raise OSError(28, "No space left on device")

    with Journal(path) as journal:
        monkeypatch.setattr("jaxllm.ledger.chain.write_all", full_after_half)
        with pytest.raises(OSError, match="No space"):
            journal.append("stop", lineage=0, step=30, why="SIGINT")
        assert path.read_bytes() == good
        monkeypatch.undo()
        journal.append("stop", lineage=0, step=30, why="SIGINT")
    assert len(read_journal(path)) == 5


def test_unknown_events_and_wrong_fields_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for event, fields, words in (
            ("checkpiont", {}, "did you mean 'checkpoint'"),
            ("stop", {"lineage": 0, "step": 3}, "needs 'why'"),
            ("stop", {"lineage": 0, "step": "3", "why": "x"}, "step='3' is not a int"),
            ("stop", {"lineage": 0, "step": True, "why": "x"}, "step=True"),
            ("stop", {"lineage": 0, "step": 3, "why": "x", "hash": "0"}, "hash is written by the journal"),
            ("numerics", {"lineage": 0, "step": 3, "fingerprint": "x", "changes": "all"}, "is not a list"),
        ):
            with pytest.raises(LedgerError, match=words):
                journal.append(event, **fields)
        assert journal.events == []
    assert read_journal(tmp_path / "journal.jsonl") == []


def test_every_event_of_the_table_can_be_written(tmp_path: Path) -> None:
    example = {int: 3, str: "x", list: ["a", "b"], dict: {"a": 1}}
    with Journal(tmp_path / "journal.jsonl") as journal:
        for event, fields in EVENTS.items():
            journal.append(event, **{name: example[kind] for name, kind in fields.items()})
    assert [e["event"] for e in read_journal(tmp_path / "journal.jsonl")] == list(EVENTS)


def test_a_second_writer_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path)
    with Journal(path) as one, Journal(path) as two:
        two.append("stop", lineage=0, step=3, why="two")
        with pytest.raises(LedgerError, match="another one writes"):
            one.append("stop", lineage=0, step=3, why="one")
    assert read_journal(path)[-1]["why"] == "two"


def test_no_journal_and_newer_schemas_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError, match="there is no journal"):
        read_journal(tmp_path / "journal.jsonl")
    monkeypatch.setattr("jaxllm.ledger.journal.SCHEMA", 2)
    fill(tmp_path / "journal.jsonl")
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="line 1: schema 2, this jaxllm reads 1 to 1; update"):
        read_journal(tmp_path / "journal.jsonl")
