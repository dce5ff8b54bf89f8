"""What a recipe reads: its files, listed in a fixed order, and the units of work that they are cut into.

The order of documents is the order of the recipe: sources as listed, patterns as listed, files by name within a
pattern, documents as they come in a file. Cutting depends on the inputs alone, and no byte of the store depends on
the cutting.
"""

import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jaxllm.core.config import Json
from jaxllm.core.errors import DataError
from jaxllm.core.files import read_json, sha256_file, write_json_atomic
from jaxllm.data import python_text
from jaxllm.data.config import DataRecipe, PythonCode, PythonProse, SourceRecipe, TextFiles
from jaxllm.data.documents import FORMATS, Format, Piece, format_of, row_groups

# Larger files are known by size and time of change until they are read for good: hashing them takes longer than
# a start may. The manifest has the sha256 of every input.
HASHED_AT_ONCE = 256 << 20

_SMALLEST_UNIT, _LARGEST_UNIT = 1 << 20, 64 << 20
_UNITS_WANTED = 256
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input file. `origin` is its name in the store. A large one has `changed` (ns), the others `sha256`."""

    source: int
    path: str
    origin: str
    format: Format
    size: int
    sha256: str | None
    changed: int | None

    def listed(self) -> Json:
        """What tells this input from another one, without reading much."""
        return [self.source, self.origin, self.size, self.sha256, self.changed]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Consecutive pieces of one source, read and tokenized as one restartable task."""

    source: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(p.size for p in self.pieces)


def list_inputs(recipe: DataRecipe) -> list[Input]:
    """Every input file of a recipe, in the order of its documents. DataError if a pattern matches nothing."""
    named = [(i, *file) for i, source in enumerate(recipe.sources) for file in _files(source)]

    def describe(file: tuple[int, str, str, Format]) -> Input:
        source, path, origin, form = file
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: not a regular file; name files, folders or patterns")
            large = status.st_size > HASHED_AT_ONCE
            digest = None if large else sha256_file(path)
        except OSError as err:
            raise DataError(f"{path}: cannot be read ({err.strerror}); mend it or leave it out") from None
        changed = status.st_mtime_ns if large else None
        return Input(
            source=source, path=path, origin=origin, format=form, size=status.st_size, sha256=digest, changed=changed
        )

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(describe, named))


def unit_size(inputs: Sequence[Input]) -> int:
    """Bytes of input in a unit: enough units to share out and to restart by, not so many that they cost."""
    return min(max(sum(i.size for i in inputs) // _UNITS_WANTED, _SMALLEST_UNIT), _LARGEST_UNIT)


def cuts(entry: Input, unit_bytes: int) -> list[int]:
    """Where a file of lines is cut, in bytes from its beginning; [0] if it stays whole."""
    return list(range(0, max(entry.size, 1), unit_bytes)) if entry.format == "jsonl" else [0]


def survey(path: str, starts: list[int], out: Path) -> None:
    """Read a file once: its sha256, and for each cut the number of the first line that begins at or after it."""
    digest, firsts, lines, at = hashlib.sha256(), [0], 0, 0
    waiting = iter(starts[1:])
    cut = next(waiting, None)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            begin = 0
            # The byte before the cut is left out: if it ends a line, the line after it begins at the cut itself.
            while cut is not None and cut - 1 <= at + len(chunk):
                lines += chunk.count(b"\n", begin, cut - 1 - at)
                begin = cut - 1 - at
                firsts.append(lines + 1)
                cut = next(waiting, None)
            lines += chunk.count(b"\n", begin)
            at += len(chunk)
    write_json_atomic(out, {"sha256": digest.hexdigest(), "first_lines": firsts, "bytes": at})


def read_survey(path: Path, entry: Input) -> tuple[str, list[int]]:
    """(sha256, first lines) as `survey` found them. DataError if the file changed since it was listed."""
    found = read_json(path)
    if found["bytes"] != entry.size or entry.sha256 not in (None, found["sha256"]):
        raise DataError(f"{entry.origin}: changed while it was being prepared; prepare again when it is at rest")
    return found["sha256"], found["first_lines"]


def units_of(inputs: Sequence[Input], first_lines: Sequence[list[int]], unit_bytes: int) -> list[Unit]:
    """The inputs cut into units of about `unit_bytes`; `first_lines` has an item per input, for its `cuts`."""
    units: list[Unit] = []
    held: list[Piece] = []

    def close(source: int) -> None:
        if held:
            units.append(Unit(source=source, pieces=tuple(held)))
            held.clear()

    for i, entry in enumerate(inputs):
        if i and inputs[i - 1].source != entry.source:
            close(inputs[i - 1].source)
        for piece in _pieces(entry, first_lines[i], unit_bytes):
            if held and sum(p.size for p in held) + piece.size > unit_bytes:
                close(entry.source)
            held.append(piece)
    if inputs:
        close(inputs[-1].source)
    return units


def inputs_file(inputs: Sequence[Input], digests: Sequence[str], recipe: DataRecipe) -> str:
    """The text of inputs.jsonl: a line per input file."""
    rows = (
        {"source": recipe.sources[i.source].name, "origin": i.origin, "bytes": i.size, "sha256": digest}
        for i, digest in zip(inputs, digests, strict=True)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def _pieces(entry: Input, first_lines: list[int], unit_bytes: int) -> Iterator[Piece]:
    path, origin = entry.path, entry.origin
    if entry.format == "jsonl":
        starts = cuts(entry, unit_bytes)
        for start, stop, first in zip(starts, [*starts[1:], entry.size], first_lines, strict=True):
            size = stop - start
            yield Piece(path=path, origin=origin, format="jsonl", size=size, start=start, stop=stop, first_line=first)
    elif entry.format == "parquet":
        try:
            groups = row_groups(entry.path) if entry.size else []
        except DataError as err:
            note = str(err).removeprefix(f"{entry.path}: ")
            yield Piece(path=path, origin=origin, format="broken", size=entry.size, note=note)
            return
        if not sum(rows for rows, _ in groups):
            yield Piece(path=path, origin=origin, format="broken", size=entry.size, note="the file is empty")
            return
        first = 0
        for number, (rows, size) in enumerate(groups):
            yield Piece(path=path, origin=origin, format="parquet", size=size, start=number, first_line=first)
            first += rows
    else:
        yield Piece(path=path, origin=origin, format=entry.format, size=entry.size)


def _files(source: SourceRecipe) -> Iterator[tuple[str, str, Format]]:
    """(path, origin, format) of the files of a source, each once."""
    match source.documents:
        case PythonProse():
            yield from ((str(path), name, "python_prose") for name, path in python_text.library_files("prose"))
        case PythonCode():
            yield from ((str(path), name, "python_code") for name, path in python_text.library_files("code"))
        case TextFiles() as files:
            seen = set()
            for pattern in files.paths:
                for path, form in _matches(pattern, files.suffixes, source.name):
                    if path not in seen:
                        seen.add(path)
                        yield path, Path(path).as_posix(), form


def _matches(pattern: str, suffixes: tuple[str, ...], source: str) -> Iterator[tuple[str, Format]]:
    pattern = os.path.expanduser(pattern)
    paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    found = False
    for path in paths:
        if os.path.isdir(path):
            members = list(_members(path, suffixes))
            found = found or bool(members)
            yield from members
        elif (form := format_of(path, suffixes)) is not None:
            found = True
            yield path, form
        elif path == pattern or not suffixes:
            raise DataError(
                f"{path}: not {', '.join(FORMATS)} nor a folder; to read it as plain text, list its suffix in suffixes"
            )
    if not found:
        raise DataError(f"{pattern}: no such file, or nothing to read in it (source {source!r}); mend the path")


def _members(folder: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Format]]:
    """The files of a folder, by name: tables and lines of JSON as such, anything else as one document each.

    Hidden files are left out, and so are links: a folder that somebody else made must not reach out of itself.
    """
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(d for d in inner if not d.startswith(".") and d != "__pycache__")
        for name in sorted(files):
            path = os.path.join(place, name)
            if name.startswith(".") or not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            if suffixes and not name.lower().endswith(tuple(s.lower() for s in suffixes)):
                continue
            form = format_of(name)
            yield path, "member" if form in (None, "text") else form
