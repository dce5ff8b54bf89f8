"""Lines that vouch for each other: what the journal and the step records are written in.

A line is one JSON object, ASCII, ended by a newline: the members sorted by name, and `hash` behind them. `prev` is the
hash of the line before (zeros before the first), `hash` is the leading hex digits of the sha256 of the object without
its hash, as spelled. So anyone can check a line without code of ours: take `,"hash":"..."` out of it and run sha256sum.
A changed byte breaks the line's own hash; a line that was rewritten with a fitting hash, removed or moved breaks the
`prev` of the next one. What a file cannot show by itself is whole lines missing at its end, or a chain written anew
from some line on: for that, the last hash has to be kept elsewhere (checkpoints keep it).

A line exists when its newline does. Bytes behind the last newline are what a killed process left of a write that nobody
was told of as done.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllm.core.config import canonical
from jaxllm.core.errors import LedgerError
from jaxllm.core.files import fsync_dir, write_all

_MARK = b',"hash":"'

Fields = dict[str, Any]


class BrokenLineError(ValueError):
    """Why a line is not what was written."""


def origin(digits: int) -> str:
    """What stands in `prev` of a first line."""
    return "0" * digits


def forge(fields: Fields, prev: str, digits: int) -> tuple[bytes, str]:
    """(line with its newline, hash) of a JSON object that follows the line with hash `prev`."""
    body = canonical({**fields, "prev": prev})
    digest = hashlib.sha256(body).hexdigest()[:digits]
    return body[:-1] + _MARK + digest.encode() + b'"}\n', digest


def unforge(line: bytes, prev: str | None, digits: int) -> Fields:
    """The object that `forge` was given, with `prev` and `hash`. BrokenLineError says what does not hold.

    line: without its newline. prev: the hash of the line before; None takes whatever the line says.
    """
    tail = len(_MARK) + digits + 2
    body, ending = line[:-tail] + b"}", line[-tail:]
    if len(line) <= tail or not ending.startswith(_MARK) or not ending.endswith(b'"}'):
        raise BrokenLineError(f"it does not end in a hash of {digits} digits")
    said, computed = ending[len(_MARK) : -2].decode("ascii", "replace"), hashlib.sha256(body).hexdigest()[:digits]
    if said != computed:
        raise BrokenLineError(f"its hash is {_short(said)}, its content hashes to {_short(computed)}")
    try:
        fields = json.loads(line)
    except ValueError as err:
        raise BrokenLineError(f"it is not JSON: {err}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prev"), str):
        raise BrokenLineError("it names no line before it")
    if prev is not None and fields["prev"] != prev:
        raise BrokenLineError(
            f"it follows a line with hash {_short(fields['prev'])}, the line before has {_short(prev)}: "
            f"that one was changed, or lines were removed, added or moved"
        )
    return fields


@dataclass(frozen=True)
class Chain:
    """A file read and verified: its objects, the hash of the last (None if there is none), whole bytes, torn bytes."""

    objects: list[Fields]
    head: str | None
    size: int
    torn: int


def read_chain(path: Path, prev: str | None, digits: int, words: Callable[[Fields], str]) -> Chain:
    """Read a file of chained lines whose first follows `prev` (None: unknown), ignoring an unterminated last line.

    LedgerError names file, line number and what differs, and by `words(object)` the line before, which still holds.
    """
    data = path.read_bytes()
    cut = data.rfind(b"\n") + 1
    objects: list[Fields] = []
    try:
        for line in data[:cut].split(b"\n")[:-1]:
            objects.append(unforge(line, prev, digits))
            prev = str(objects[-1]["hash"])
        _check_torn(data[cut:])
    except BrokenLineError as err:
        where = f"{path.parent.name}/{path.name} line {len(objects) + 1}"
        where += f" (after {words(objects[-1])})" if objects else ""
        raise LedgerError(f"{where}: {err}; restore the file from a copy, this is not what was written") from None
    return Chain(objects, str(objects[-1]["hash"]) if objects else None, cut, len(data) - cut)


class AppendFile:
    """A file opened for appending by its one writer.

    `append` hands the bytes to the operating system before it returns: a killed process loses nothing that was
    appended, a power cut nothing that was synced.
    """

    def __init__(self, path: Path, *, size: int | None = None) -> None:
        """Create (size None), or open an existing file and cut off what is behind its first `size` bytes.

        What a killed process had appended there is synced first: from now on it may be relied on.
        """
        self.path = path
        create = os.O_CREAT | os.O_EXCL if size is None else 0
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | create, 0o666)
        self.size = size or 0
        if size is not None:
            if os.fstat(self._fd).st_size > size:
                os.ftruncate(self._fd, size)
            os.fsync(self._fd)
        fsync_dir(path.parent)

    def append(self, lines: bytes) -> None:
        """Write whole lines: all of them, or (OSError: disk full) nothing.

        LedgerError if the length is not what this process left: another one writes to the file.
        """
        found = os.fstat(self._fd).st_size
        if found != self.size:
            raise LedgerError(
                f"{self.path} has {found} bytes, this process left {self.size}: another one writes to it; stop one"
            )
        try:
            write_all(self._fd, lines)
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(lines)

    def sync(self) -> None:
        """Return when everything appended would survive a power cut."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close without syncing. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _check_torn(rest: bytes) -> None:
    """BrokenLineError if the bytes behind a file's last newline cannot be the start of a line.

    A torn write is a strict beginning of a line, so it cannot hold a whole object and more: that is a last newline
    which was changed, and its line must not pass for one that was never finished.
    """
    try:
        _, end = json.JSONDecoder().raw_decode(rest.decode("latin-1"))
    except ValueError:
        return
    if end < len(rest):
        raise BrokenLineError(f"byte {rest[end]:#04x} stands in place of its newline")


def _short(digest: str) -> str:
    return digest[:16] + "..." if len(digest) > 16 else digest
