"""One writer per run: a lock that dies with its holder, a note saying who that is, and a number that only grows."""

import fcntl
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxllm.core.errors import JaxllmError, RunError
from jaxllm.core.files import fsync_dir, make_folder, read_json, write_json_atomic

SCHEMA = 1
LOCK = "lease.lock"
NOTE = "lease.json"

_GLANCE_SECONDS = 0.05

_open_here: set[int] = set()  # descriptors that a forked child must not keep


def _let_go_in_child() -> None:
    # A flock belongs to the open file, which a forked child shares: a data worker that outlives a killed trainer would
    # hold the run for ever. Closing the child's copy leaves the parent's lock alone.
    for fd in _open_here:
        os.close(fd)
    _open_here.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class HeldError(RunError):
    """Somebody else holds the run. holder: who, in words; brief: not for long."""

    def __init__(self, folder: Path, holder: str, brief: bool) -> None:
        super().__init__(f"{folder} is being written by {holder}; wait for it, or stop it")
        self.holder, self.brief = holder, brief


class Lease:
    """The right to write to a run folder. Use as a context manager, or call `release`.

    The lock is the kernel's (flock), so it ends with the process however that ends. `fence` is one more than that of
    the holder before: what carries an older number is from a writer that lost the run.
    """

    def __init__(self, folder: Path, fd: int, note: dict[str, Any]) -> None:
        self._folder, self._fd, self._note = folder, fd, note

    @classmethod
    def acquire(cls, run_folder: Path | str, *, brief: bool = False, patience: float = 0.0) -> "Lease":
        """Take the lease, creating the run folder if need be. HeldError says who holds it, and since when.

        brief: it is for a moment, as commands need it. For such a holder this waits up to `patience` seconds.
        """
        folder = Path(run_folder)
        make_folder(folder)
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(fd, folder, patience)
        except HeldError:
            os.close(fd)
            raise
        except OSError as err:
            os.close(fd)
            raise RunError(
                f"{folder} cannot be locked ({err}); keep runs on a file system that has file locks"
            ) from None
        _open_here.add(fd)
        try:
            fsync_dir(folder)
            note = {
                "schema": SCHEMA,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                "fence": _last_fence(folder) + 1,
                "released": False,
                **({"brief": True} if brief else {}),
            }
            write_json_atomic(folder / NOTE, note)
        except BaseException:
            _close(fd)
            raise
        return cls(folder, fd, note)

    @property
    def fence(self) -> int:
        """1 for the first holder."""
        return int(self._note["fence"])

    @property
    def holder(self) -> dict[str, Any]:
        """host, pid, since (UTC), fence."""
        return _who(self._note)

    def check(self) -> None:
        """RunError if the lease is no longer this one's: somebody removed the lock file, and another took the run."""
        if self._fd < 0:
            raise RunError(f"{self._folder}: the lease was released; acquire it anew")
        if _last_fence(self._folder) != self.fence:
            raise RunError(
                f"{self._folder}: {_words(_holding(self._folder))} took over while this process held it (fence "
                f"{self.fence}); stop one, and never remove {LOCK} of a live run"
            )

    def release(self) -> None:
        """Give the lease back. May be called again."""
        fd, self._fd = self._fd, -1
        if fd < 0 or self._note["pid"] != os.getpid():  # a forked child never held it
            return
        try:
            if _last_fence(self._folder) == self.fence:
                write_json_atomic(self._folder / NOTE, {**self._note, "released": True})
        finally:
            _close(fd)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def note_of(run_folder: Path | str) -> dict[str, Any] | None:
    """What `Lease.holder` says, of the lease that was last taken of a run; None if there is no note to be read."""
    note = _read_note(Path(run_folder))
    return None if note is None else _who(note)


def is_held(run_folder: Path | str) -> bool | None:
    """Whether a process still holds the lease of a run, by its note; None if that one is on another machine."""
    note = _read_note(Path(run_folder))
    if note is None or note["released"]:
        return False
    return _alive(note["pid"]) if note["host"] == socket.gethostname() else None


def _who(note: dict[str, Any]) -> dict[str, Any]:
    return {key: note[key] for key in ("host", "pid", "since", "fence")}


def _lock(fd: int, folder: Path, patience: float) -> None:
    """HeldError if somebody else has the lock for long, or longer than `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            note = _holding(folder)
            # One who has just begun says in a moment for how long.
            brief = note is None or bool(note.get("brief"))
            if not brief or time.monotonic() >= deadline:
                raise HeldError(folder, _words(note), brief) from None
        time.sleep(_GLANCE_SECONDS)


def _close(fd: int) -> None:
    _open_here.discard(fd)
    os.close(fd)


def _read_note(folder: Path) -> dict[str, Any] | None:
    path = folder / NOTE
    if not path.is_file():
        return None
    note = read_json(path)
    if not isinstance(note, dict) or type(note.get("fence")) is not int:
        raise JaxllmError(f"{path} is no lease note: it has no fence; restore the file from a copy")
    return note


def _last_fence(folder: Path) -> int:
    note = _read_note(folder)
    return 0 if note is None else int(note["fence"])


def _holding(folder: Path) -> dict[str, Any] | None:
    """The holder's note. None between its taking the lock and writing it, when the note is still of the one before."""
    note = _read_note(folder)
    if note is None or note["released"] or (note["host"] == socket.gethostname() and not _alive(note["pid"])):
        return None
    return note


def _words(note: dict[str, Any] | None) -> str:
    """A holder in words."""
    if note is None:
        return "a process that has just begun"
    return f"process {note['pid']} on {note['host']} since {note['since']} (fence {note['fence']})"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
