"""A long record as a folder of numbered files, each a chain that goes on from the one before it.

The first line of a segment is its head: its number, and the highest step of every lineage recorded before it, so that
readers know how far back they have to look.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxllm.core.errors import LedgerError
from jaxllm.ledger.chain import AppendFile, Fields, forge, origin, read_chain

SCHEMA = 1
DIGITS = 16

_NAME = re.compile(r"(\d{6,})\.jsonl")

Highest = dict[int, int]  # lineage -> step


@dataclass(frozen=True)
class Segment:
    """A verified segment. `highest` is that before it; `torn` counts the bytes of an unterminated last line."""

    path: Path
    prev: str
    highest: Highest
    records: list[Fields]
    head: str
    size: int
    torn: int

    def highest_after(self) -> Highest:
        """The highest steps, this segment included."""
        highest = dict(self.highest)
        for fields in self.records:
            raise_highest(highest, fields["lineage"], fields["step"])
        return highest


def raise_highest(highest: Highest, lineage: int, step: int) -> bool:
    """Note a recorded step; False if the lineage had come as far before, so that this one may be recorded again."""
    if step <= highest.get(lineage, -1):
        return False
    highest[lineage] = step
    return True


class SegmentWriter:
    """Appends chained lines to the newest segment and opens the next one when it is full.

    Nothing is ever rewritten: an unterminated last line stays where it is, its segment is sealed, the next line opens a
    new one.
    """

    def __init__(self, folder: Path, lines_per_segment: int) -> None:
        """Verifies the newest segment and its link to the one before."""
        self.folder, self._limit = folder, lines_per_segment
        self.paths = segment_paths(folder)
        self._file: AppendFile | None = None
        self._room, self.head = 0, origin(DIGITS)
        self.highest: Highest = {}
        newest = next(newest_first(self.paths), None)
        if newest is None:
            return
        self.head, self.highest = newest.head, newest.highest_after()
        file = AppendFile(newest.path, size=newest.size + newest.torn)  # a killed process may have left it unsynced
        self._room = self._limit - len(newest.records)
        if newest.torn or newest.path != self.paths[-1] or self._room <= 0:
            file.close()
        else:
            self._file = file

    def append(self, fields: Fields) -> None:
        """Hand one line to the operating system. `fields` has lineage and step."""
        file = self._file if self._file is not None and self._room > 0 else self._next_file()
        opening, prev = b"", self.head
        if file.size == 0:
            opening, prev = forge(
                {"schema": SCHEMA, "segment": len(self.paths) - 1, "highest": self.highest}, self.head, DIGITS
            )
        line, head = forge(fields, prev, DIGITS)
        file.append(opening + line)
        self._room -= 1
        self.head = head
        raise_highest(self.highest, fields["lineage"], fields["step"])

    def sync(self) -> None:
        """Return when every line appended so far would survive a power cut."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Sync, then close. Appending later opens the next segment."""
        if self._file is not None:
            self._file.sync()
            self._file.close()
            self._file = None

    def _next_file(self) -> AppendFile:
        self.close()  # synced, before it is out of reach of sync()
        self._file = AppendFile(self.folder / segment_name(len(self.paths)))
        self.paths.append(self._file.path)
        self._room = self._limit
        return self._file


def read_segment(path: Path, prev: str | None) -> Segment | None:
    """Read and verify a segment that follows a line with hash `prev` (None: whatever it says).

    None if its writer was killed before it held a whole line. LedgerError names line and step.
    """
    chain = read_chain(path, prev, DIGITS, _words)
    if chain.head is None:
        return None
    head, *records = chain.objects
    if "segment" not in head or segment_name(head["segment"]) != path.name:
        raise LedgerError(f"{label(path)} line 1: it is not the head of this segment; restore the file from a copy")
    if type(head.get("schema")) is not int or not 1 <= head["schema"] <= SCHEMA:
        raise LedgerError(
            f"{label(path)}: schema {head.get('schema')!r}, this jaxllm reads 1 to {SCHEMA}; update jaxllm"
        )
    for number, fields in enumerate(records, start=2):
        if type(fields.get("step")) is not int or type(fields.get("lineage")) is not int:
            raise LedgerError(f"{label(path)} line {number}: it is no step record; restore the file from a copy")
    highest = {int(lineage): int(step) for lineage, step in head["highest"].items()}
    return Segment(path, head["prev"], highest, records, chain.head, chain.size, chain.torn)


def newest_first(paths: Sequence[Path]) -> Iterator[Segment]:
    """The segments that hold records, each yielded when its link to the one before it is verified."""
    newer: Segment | None = None
    for path in reversed(paths):
        segment = read_segment(path, None)
        if segment is None:
            continue
        if newer is not None:
            _check_link(newer, segment.head, f"{label(path)} ends with")
            yield newer
        newer = segment
    if newer is not None:
        _check_link(newer, origin(DIGITS), "the first record follows")
        yield newer


def segment_paths(folder: Path) -> list[Path]:
    """The numbered files of a folder, from 000000.jsonl on. LedgerError if one is missing between others."""
    if not folder.is_dir():
        return []
    found = sorted((int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)))
    for expected, (number, path) in enumerate(found):
        if number != expected:
            missing = f"{folder.name}/{segment_name(expected)}"
            raise LedgerError(f"{missing} is missing before {path.name}; restore it from a copy")
    return [p for _, p in found]


def segment_name(number: int) -> str:
    """The file name of a segment."""
    return f"{number:06d}.jsonl"


def label(path: Path) -> str:
    """A file as errors name it: with its folder."""
    return f"{path.parent.name}/{path.name}"


def _words(fields: Fields) -> str:
    return f"step {fields['step']}" if "step" in fields else "the head of the segment"


def _check_link(newer: Segment, expected: str, whose: str) -> None:
    if newer.prev != expected:
        raise LedgerError(
            f"{label(newer.path)} line 1: it follows a record with hash {newer.prev}, {whose} {expected}: that record "
            f"was changed, or records were removed; restore both files from a copy"
        )
