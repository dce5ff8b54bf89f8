import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.core.errors import LedgerError
from jaxllm.ledger.records import EXACT, StepLog, StepRecord, compare, read_steps


def record(step: int, lineage: int = 0, **changes: object) -> StepRecord:
    values: dict = {
        "lineage": lineage,
        "step": step,
        "cursor": 16 * (step - 1),
        "stage": "prose",
        "sequences": 16,
        "tokens": 16 * 128,
        "loss": np.float32(5.0) / np.float32(step),
        "grad_norm": np.float32(0.7),
        "lr": np.float32(3e-4),
        "batch": f"{step:016x}",
        "losses": f"{step * 7:016x}",
        "refused": False,
    }
    return StepRecord.of_values(**{**values, **changes})


def write(folder: Path, records: Iterable[StepRecord], per_segment: int = 5) -> None:
    with StepLog(folder, per_segment) as log:
        for r in records:
            log.append(r)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_records_come_back_in_order_over_segments(tmp_path: Path) -> None:
    written = [record(s) for s in range(1, 18)]
    write(tmp_path, written)
    assert list(read_steps(tmp_path)) == written
    assert names(tmp_path) == [f"{n:06d}.jsonl" for n in range(4)]
    assert list(read_steps(tmp_path / "nothing")) == []


def test_every_start_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    for first in range(1, 18, 3):
        write(tmp_path, [record(s) for s in range(first, first + 3)])
    assert [r.step for r in read_steps(tmp_path)] == list(range(1, 19))
    assert len(names(tmp_path)) == 4


def test_values_are_exact_and_json_has_no_nan(tmp_path: Path) -> None:
    odd = np.array([0x7FC12345, 0xFF800000, 0x00000001], np.uint32).view(np.float32)
    one = record(1, loss=odd[0], grad_norm=odd[1], lr=odd[2], refused=True)
    write(tmp_path, [one])
    (read,) = read_steps(tmp_path)
    assert read == one
    assert (read.loss, read.grad_norm) == (None, None)
    assert (read.loss_bits, read.grad_norm_bits, read.lr_bits) == ("7fc12345", "ff800000", "00000001")
    assert read.lr == float(odd[2])
    line = (tmp_path / "000000.jsonl").read_text().splitlines()[1]
    assert "NaN" not in line
    assert json.loads(line)["schema"] == 1


def test_the_last_record_of_a_step_wins_in_the_place_of_the_first(tmp_path: Path) -> None:
    again = [record(s, tokens=1) for s in (4, 7, 12)]
    twice = record(7, tokens=2)
    write(tmp_path, [*(record(s) for s in range(1, 13)), *again, twice, record(13)])
    read = list(read_steps(tmp_path))
    assert [r.step for r in read] == list(range(1, 14))
    assert {r.step: r.tokens for r in read if r.tokens < 16} == {4: 1, 7: 2, 12: 1}


def test_lineages_are_kept_apart(tmp_path: Path) -> None:
    old, new = [record(s) for s in range(1, 9)], [record(s, lineage=1, tokens=3) for s in range(5, 11)]
    write(tmp_path, [*old, *new])
    assert list(read_steps(tmp_path)) == [*old, *new]
    assert list(read_steps(tmp_path, lineage=0)) == old
    assert list(read_steps(tmp_path, lineage=1)) == new
    with StepLog(tmp_path) as log:
        assert log.at(0, 6) == old[5]
        assert log.at(1, 6) == new[1]
        assert log.at(1, 4) is None
        assert log.recorded_after(0, 6) == old[6:]
        assert log.recorded_after(1, 0) == new


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.integers(0, 3)), max_size=60),
    st.integers(1, 7),
    st.integers(0, 2),
    st.integers(0, 12),
)
def test_reading_equals_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, int, int]],
    per_segment: int,
    lineage: int,
    after: int,
) -> None:
    """Any order of lineages and steps, whatever the segments: last record wins, first place counts."""
    folder = tmp_path_factory.mktemp("steps")
    written = [record(s, lineage=x, tokens=t) for x, s, t in steps]
    write(folder, written, per_segment)
    expected = {(r.lineage, r.step): r for r in written}
    assert list(read_steps(folder)) == list(expected.values())
    with StepLog(folder, per_segment) as log:
        later = sorted((s, r) for (x, s), r in expected.items() if x == lineage and s > after)
        assert log.recorded_after(lineage, after) == [r for _, r in later]
        assert log.at(lineage, after) == expected.get((lineage, after))


def test_a_log_knows_every_hash_it_held(tmp_path: Path) -> None:
    heads = []
    with StepLog(tmp_path, 3) as log:
        for step in range(1, 8):
            log.append(record(step))
            heads.append(log.head)
    log = StepLog(tmp_path, 3)
    assert all(log.holds(head) for head in heads) and not log.holds("0" * 16)
    (tmp_path / "000002.jsonl").unlink()
    assert not StepLog(tmp_path, 3).holds(heads[-1])


def test_looking_back_reads_only_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [record(s) for s in range(1, 101)], per_segment=10)
    read: list[str] = []
    whole = Path.read_bytes

    def note(path: Path) -> bytes:
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", note)
    with StepLog(tmp_path, 10) as log:
        assert set(read) == {"000009.jsonl", "000008.jsonl"}
        read.clear()
        assert [r.step for r in log.recorded_after(0, 84)] == list(range(85, 101))
        assert set(read) == {"000009.jsonl", "000008.jsonl", "000007.jsonl"}  # the third for its link


def test_compare_names_the_exact_fields() -> None:
    one = record(3)
    assert compare(one, one) == []
    assert compare(one, dataclasses.replace(one, lineage=2)) == []
    for field in EXACT:
        value = getattr(one, field)
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value[:-1] + "#"
        changes: dict[str, Any] = {field: other}
        assert compare(one, dataclasses.replace(one, **changes)) == [field]
    assert compare(one, record(3, loss=np.nextafter(np.float32(5 / 3), np.float32(9)), lr=np.float32(0))) == [
        "loss_bits",
        "lr_bits",
    ]
    assert compare(record(3, lr=np.float32(0.0)), record(3, lr=np.float32(-0.0))) == ["lr_bits"]


def test_every_flipped_bit_is_found_and_its_step_named(tmp_path: Path) -> None:
    write(tmp_path, [record(s) for s in range(1, 8)], per_segment=3)
    for path in sorted(tmp_path.iterdir()):
        good = path.read_bytes()
        lines = good.splitlines()
        steps = [None, *(json.loads(line)["step"] for line in lines[1:])]
        with path.open("r+b", buffering=0) as file:
            for at in range(len(good)):
                number = good.count(b"\n", 0, at) + 1
                before = "the head of the segment" if number == 2 else f"step {steps[number - 2]}" if number > 2 else ""
                words = rf"{path.name} line {number}\b" + (rf" \(after {before}\)" if before else "")
                file.seek(at)
                file.write(bytes([good[at] ^ 1 << random.Random(at).randrange(8)]))
                with pytest.raises(LedgerError, match=words):
                    list(read_steps(tmp_path))
                file.seek(at)
                file.write(good[at : at + 1])
    assert len(list(read_steps(tmp_path))) == 7


def forged(line: bytes, **changes: object) -> bytes:
    """A line with other values and a hash that fits: what somebody would write who knows the format."""
    fields = {**json.loads(line), **changes}
    del fields["hash"]
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f'{body[:-1]},"hash":"{hashlib.sha256(body.encode()).hexdigest()[:16]}"}}'.encode()


def test_a_record_rewritten_with_a_fitting_hash_breaks_the_chain(tmp_path: Path) -> None:
    write(tmp_path, [record(s) for s in range(1, 8)], per_segment=3)
    first, second = tmp_path / "000000.jsonl", tmp_path / "000001.jsonl"
    good = first.read_bytes().splitlines()
    for number in (1, 2):
        bad = [*good[:number], forged(good[number], tokens=1), *good[number + 1 :]]
        first.write_bytes(b"\n".join(bad) + b"\n")
        with pytest.raises(LedgerError, match=rf"000000\.jsonl line {number + 2} \(after step {number}\): it follows"):
            list(read_steps(tmp_path))
    first.write_bytes(b"\n".join([*good[:3], forged(good[3], tokens=1)]) + b"\n")  # the last of its segment
    with pytest.raises(LedgerError, match=r"000001\.jsonl line 1: it follows"):
        list(read_steps(tmp_path))
    first.write_bytes(b"\n".join(good) + b"\n")
    second.write_bytes(b"\n".join([good[0], *second.read_bytes().splitlines()[1:]]) + b"\n")
    with pytest.raises(LedgerError, match=r"000001\.jsonl line 1"):
        list(read_steps(tmp_path))


def test_missing_segments_and_records_are_found(tmp_path: Path) -> None:
    write(tmp_path, [record(s) for s in range(1, 10)], per_segment=3)
    middle = tmp_path / "000001.jsonl"
    good = middle.read_bytes()
    middle.unlink()
    with pytest.raises(LedgerError, match=r"000001\.jsonl is missing before 000002\.jsonl"):
        list(read_steps(tmp_path))
    for text in (b"", b"\n".join(good.splitlines()[:3]) + b"\n"):  # emptied, or shortened by a record
        middle.write_bytes(text)
        with pytest.raises(LedgerError, match=r"000002\.jsonl line 1: it follows"):
            list(read_steps(tmp_path))
        with pytest.raises(LedgerError, match=r"000002\.jsonl line 1: it follows"):
            StepLog(tmp_path, 3)


def test_floats_must_be_what_their_bits_say(tmp_path: Path) -> None:
    write(tmp_path, [record(1)])
    path = tmp_path / "000000.jsonl"
    head, line = path.read_bytes().splitlines()
    path.write_bytes(head + b"\n" + forged(line, loss=4.0) + b"\n")
    with pytest.raises(LedgerError, match=r"000000\.jsonl step 1: loss is 4\.0, its bits say 5\.0"):
        list(read_steps(tmp_path))
    for changes, words in (
        ({"schema": 2}, "schema 2, this jaxllm reads 1 to 1"),
        ({"extra": 1}, "unknown in schema 1: extra"),
        ({"tokens": "9"}, "tokens='9' is not of type int"),
        ({"lr_bits": "xyz"}, "lr_bits"),
    ):
        path.write_bytes(head + b"\n" + forged(line, **changes) + b"\n")
        with pytest.raises(LedgerError, match=words):
            list(read_steps(tmp_path))


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    with StepLog(tmp_path) as log:
        with pytest.raises(LedgerError, match="stage=3 is not of type str"):
            log.append(record(1, stage=3))
        with pytest.raises(LedgerError, match="loss is 1"):
            log.append(dataclasses.replace(record(1), loss=1.0))
        log.append(record(1))
    assert [r.step for r in read_steps(tmp_path)] == [1]


def test_a_torn_last_line_is_never_read_and_its_segment_is_sealed(tmp_path: Path) -> None:
    write(tmp_path, [record(s) for s in range(1, 4)], per_segment=10)
    path = tmp_path / "000000.jsonl"
    good = path.read_bytes()
    ends = [m.end() for m in re.finditer(rb"\n", good)]
    cuts = [0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[1] - 1, ends[1], ends[2] + 200, len(good) - 2, len(good) - 1]
    for cut in cuts:
        for p in tmp_path.iterdir():
            p.unlink()
        path.write_bytes(good[:cut])
        whole = max(0, sum(end <= cut for end in ends) - 1)
        assert [r.step for r in read_steps(tmp_path)] == list(range(1, whole + 1))
        for more in (20, 30):
            write(tmp_path, [record(more)], per_segment=10)
        assert path.read_bytes()[:cut] == good[:cut]  # nothing is rewritten
        assert [r.step for r in read_steps(tmp_path)] == [*range(1, whole + 1), 20, 30]
        sealed = cut not in ends
        assert names(tmp_path) == (["000000.jsonl", "000001.jsonl"] if sealed else ["000000.jsonl"])


def test_a_full_disk_loses_no_record_and_breaks_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full_after_half(fd: int, data: bytes) -> None:
        os.write(fd, bytes(data[: len(data) // 2]))
        raise OSError(28, "No space left on device")

    with StepLog(tmp_path, 2) as log:
        for step in range(1, 8):
            monkeypatch.setattr("jaxllm.ledger.chain.write_all", full_after_half)
            with pytest.raises(OSError, match="No space"):
                log.append(record(step))
            monkeypatch.undo()
            log.append(record(step))
    assert [r.step for r in read_steps(tmp_path)] == list(range(1, 8))


def test_sync_reaches_every_file_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process left unsynced included: a record that is compared with is relied on."""
    import os

    synced: set[str] = set()
    real = os.fsync

    def note(fd: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real(fd)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to name a descriptor")
    monkeypatch.setattr(os, "fsync", note)
    log = StepLog(tmp_path, 3)
    for step in range(1, 6):
        log.append(record(step))
    log.sync()
    assert {"000000.jsonl", "000001.jsonl", tmp_path.name} <= synced
    log.append(record(6))  # fills the segment; the process dies without a sync
    del log
    synced.clear()
    with StepLog(tmp_path, 3):
        assert {"000001.jsonl", tmp_path.name} <= synced
