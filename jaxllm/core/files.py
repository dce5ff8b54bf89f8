"""Files that are either whole or not there, and that stay there after a power cut."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, NoReturn

from jaxllm.core.errors import JaxllmError

StrPath = str | os.PathLike[str]
_TAIL = 65536  # bytes read at a time, from the end


def sha256_file(path: StrPath) -> str:
    """sha256 (hex) of a file's bytes, read in pieces."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomic(path: StrPath, content: bytes | str) -> None:
    """Replace `path` by `content` (text as UTF-8): after a crash it holds all of the old content or all of the new.

    Durable when it returns. The folder must exist. OSError leaves the old content in place and no temporary file.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    # Hidden and unique: no glob for the final name's suffix finds it, and two writers do not share it.
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_json_atomic(path: StrPath, value: Any) -> None:
    """`write_atomic` of JSON for people: indented, keys in the order given. ValueError for NaN and infinities."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: StrPath) -> Any:
    """The JSON value in a file. JaxllmError names the file if it holds anything else; a missing file is an OSError."""
    try:
        return json.loads(Path(path).read_bytes(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:  # bad JSON, bad UTF-8, JSON that is nested too deep
        raise JaxllmError(f"{path} is not JSON: {err}; restore the file from a copy") from None


def write_all(fd: int, data: bytes) -> None:
    """os.write until everything is written; a short write (disk full, signal) goes on or raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def make_folder(path: StrPath) -> None:
    """Create a folder and its missing parents, durably: the entry of each new folder is synced in its parent."""
    path = Path(path)
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_dir(folder.parent)


def cut_unfinished_line(path: StrPath) -> None:
    """Remove what follows the last newline of a file, left by a writer that was killed. A missing file is none."""
    try:
        with open(path, "r+b") as f:
            end = f.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - _TAIL)
                f.seek(start)
                newline = f.read(end - start).rfind(b"\n")
                if newline >= 0:
                    f.truncate(start + newline + 1)
                    return
                end = start
            f.truncate(0)
    except FileNotFoundError:
        return


def fsync_dir(path: StrPath) -> None:
    """Make the names in a folder (files created, renamed, removed) survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON value")
