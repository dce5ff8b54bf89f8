"""What a person asks of a run that is running: small files, which its trainer looks for between steps.

    requests/ID.json     what is asked, by whom, since when
    requests/ID.taken    whoever holds the run carries it out, so it cannot be withdrawn any more
    requests/ID.answer   what came of it: the number of the journal's event, or why not
    requests/aside/      what is no request, each beside a .why

A file appears whole, by one rename, and goes from state to state by one. The event that carries a request out names it,
so whoever is killed in between leaves nothing of it or all of it: what is still there is taken up again. The files are
anybody's who may write to the run, so nothing in them is believed before it was held against `Request`.
"""

import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from getpass import getuser
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from jaxllm.core.config import config, decode, encode, variant
from jaxllm.core.errors import RunError
from jaxllm.core.files import fsync_dir, make_folder, write_json_atomic

SCHEMA = 1
FOLDER = "requests"
ASIDE = "aside"
EVERY_SECONDS = 1.0  # how often a trainer looks

_MOST_BYTES = 16_384
_MOST_AT_ONCE = 64  # requests that are looked at together
_LAST_STEP = 10**15
_ID = re.compile(r"[0-9]{8}T[0-9]{12}-[0-9a-f]{8}")
_KEPT = timedelta(days=1)  # an answer that nobody fetched


@variant
class Skip:
    """Take the data of steps that are to come out of the stream, or move it to the end of its stage (`defer`)."""

    steps: tuple[int, int]
    defer: bool
    why: str

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        _check_line("why", self.why, 500)


@variant
class Rollback:
    """Go back to checkpoint `to` (0: the first parameters). data: what becomes of the data seen since, or of that of
    `steps` among it; None takes it again."""

    to: int
    data: Literal["skip", "defer"] | None
    steps: tuple[int, int] | None
    why: str

    def __post_init__(self) -> None:
        if not 0 <= self.to <= _LAST_STEP:
            raise ValueError(f"to={self.to} is a step")
        if self.steps is not None:
            _check_steps(self.steps)
        _check_line("why", self.why, 500)


Asked = Annotated[Skip | Rollback, Field(discriminator="kind")]


@config
class Request:
    """One request. user, host, pid: who waits for its answer; since: UTC."""

    schema: int
    id: str
    asked: Asked
    user: str
    host: str
    pid: int
    since: str

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema {self.schema}, this jaxllm reads {SCHEMA}; use one jaxllm for run and command")
        if not _ID.fullmatch(self.id):
            raise ValueError(f"id={self.id!r} is none")
        for name in ("user", "host", "since"):
            _check_line(name, getattr(self, name), 255)

    @property
    def by(self) -> str:
        """user@host."""
        return f"{self.user}@{self.host}"


@config
class Answer:
    """event: number of the event that carries the request out; refused: why there is none. One of them is None."""

    schema: int
    event: int | None
    refused: str | None

    def __post_init__(self) -> None:
        if self.schema != SCHEMA or (self.event is None) == (self.refused is None):
            raise ValueError(f"schema {self.schema} and one of event and refused are an answer")


class SetAsideError(RunError):
    """A file is no request; it lies in requests/aside/ now."""


def file(folder: Path, asked: Skip | Rollback) -> Request:
    """Ask it of the run in `folder`. Durable when it returns."""
    now = datetime.now(UTC)
    request = Request(
        schema=SCHEMA,
        id=f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}",
        asked=asked,
        user=_user(),
        host=socket.gethostname(),
        pid=os.getpid(),
        since=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    make_folder(folder / FOLDER)
    write_json_atomic(_path(folder, request.id, "json"), encode(request))
    return request


def withdraw(folder: Path, id: str) -> bool:
    """Take a request back; False if it was taken up already, or answered."""
    try:
        _path(folder, id, "json").unlink()
    except FileNotFoundError:
        return False
    fsync_dir(folder / FOLDER)
    return True


def waiting(folder: Path) -> list[str]:
    """The names of what waits to be carried out, taken up already or not, oldest first; not more than can be looked at
    at once."""
    try:
        names = os.listdir(folder / FOLDER)
    except FileNotFoundError:
        return []
    stems = {stem for stem, _, kind in (n.rpartition(".") for n in names) if kind in ("json", "taken")}
    return sorted(s for s in stems if not s.startswith("."))[:_MOST_AT_ONCE]


def take(folder: Path, name: str) -> Request | None:
    """Take up what waits under a name, for who holds the run's lease; None if it was withdrawn.

    SetAsideError: it is no request. Who asked for it, if anybody, has that for an answer.
    """
    taken = _path(folder, name, "taken")
    with suppress(FileNotFoundError):  # withdrawn, or taken by a process before this one
        os.rename(_path(folder, name, "json"), taken)
    try:
        raw = _read(taken)
        request = decode(Request, raw, "request")
        if request.id != name:
            raise ValueError(f"it is request {request.id}")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError) as err:
        why = f"{FOLDER}/{name[:80]!a} is no request ({_one_line(err)})"
        _set_aside(folder, taken, why)
        if _ID.fullmatch(name):
            _write_answer(folder, name, Answer(schema=SCHEMA, event=None, refused=why))
        raise SetAsideError(f"{why}; it was moved to {FOLDER}/{ASIDE}/") from None
    return request


def answer(folder: Path, id: str, *, event: int | None = None, refused: str | None = None) -> None:
    """Say what came of a request that was taken up: it waits no more."""
    _write_answer(folder, id, Answer(schema=SCHEMA, event=event, refused=refused))
    close(folder, id)


def close(folder: Path, id: str) -> None:
    """A request waits no more; where it is not there, it does not either."""
    for kind in ("json", "taken"):
        _path(folder, id, kind).unlink(missing_ok=True)
    fsync_dir(folder / FOLDER)


def answered(folder: Path, id: str) -> Answer | None:
    """The answer to a request, None as long as there is none. RunError if what is there is no answer."""
    path = _path(folder, id, "answer")
    try:
        return decode(Answer, _read(path), "answer")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as err:
        raise RunError(f"{path} is no answer ({_one_line(err)}); see `jaxllm journal {folder}`") from None


def forget(folder: Path, id: str) -> None:
    """Remove an answer that was heard."""
    _path(folder, id, "answer").unlink(missing_ok=True)


def carried_out(events: list[dict[str, Any]], id: str) -> dict[str, Any] | None:
    """The event that carries a request out, if there is one. Looks at the newest first."""
    return next((e for e in reversed(events) if e.get("request") == id), None)


class Mailbox:
    """Whether anything waits, looked up at most once in `every` seconds: it is asked between any two steps."""

    def __init__(self, folder: Path, warn: Callable[[str], None], every: float | None = None) -> None:
        """Makes the folder, and clears answers away that nobody fetched. warn: it cannot be looked into any more."""
        self._folder, self._warn, self._every = folder, warn, EVERY_SECONDS if every is None else every
        self._due, self._found, self._warned = 0.0, False, False
        self.left: set[str] = set()  # names that cannot be dealt with, by whoever deals with them
        make_folder(folder / FOLDER)
        _sweep(folder)

    def waiting(self) -> bool:
        """What was found waiting stays so until `emptied`."""
        if not self._found and (now := time.monotonic()) >= self._due:
            self._due = now + self._every
            try:
                self._found = not self.left.issuperset(waiting(self._folder))
            except OSError as err:
                if not self._warned:
                    self._warn(f"{self._folder / FOLDER} cannot be read, so nothing can be asked of this run: {err}")
                self._warned = True
        return self._found

    def emptied(self) -> None:
        """What waited was dealt with."""
        self._found = False


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / FOLDER / f"{name}.{kind}"


def _read(path: Path) -> Any:
    """The JSON of a small regular file. OSError or ValueError for anything else; it never waits."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as f:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        data = f.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
    return json.loads(data)


def _set_aside(folder: Path, taken: Path, why: str) -> None:
    aside = folder / FOLDER / ASIDE
    make_folder(aside)
    target, number = aside / taken.stem, 1
    while os.path.lexists(target):
        number += 1
        target = aside / f"{taken.stem}-{number}"
    os.rename(taken, target)
    target.with_name(f"{target.name}.why").write_text(why + "\n")


def _write_answer(folder: Path, id: str, said: Answer) -> None:
    write_json_atomic(_path(folder, id, "answer"), encode(said))


def _sweep(folder: Path) -> None:
    oldest = time.time() - _KEPT.total_seconds()
    for path in (folder / FOLDER).iterdir():
        stale = path.suffix == ".answer" or (path.name.startswith(".") and path.suffix == ".tmp")
        with suppress(FileNotFoundError):  # its reader was faster
            if stale and path.lstat().st_mtime < oldest:
                path.unlink()


def _check_steps(steps: tuple[int, int]) -> None:
    if not 1 <= steps[0] <= steps[1] <= _LAST_STEP:
        raise ValueError(f"steps={list(steps)} are two steps A and B with 1 <= A <= B")


def _check_line(name: str, text: str, most: int) -> None:
    if len(text) > most or not text.isprintable():
        raise ValueError(f"{name} is one line of at most {most} characters")


def _one_line(err: BaseException) -> str:
    return " ".join(str(err).split())[:300]


def _user() -> str:
    try:
        return getuser()
    except (OSError, KeyError):  # a user without a name, as in containers
        return str(os.getuid())
