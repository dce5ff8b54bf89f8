"""The commands that change the course of a run, running or not. No jax.

Who finds nobody at the run does it alone. Where it is held, the request is filed (ledger/requests.py) and answered by
the trainer between two steps; should the trainer die meanwhile, the command settles the request itself.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllm.control import Event, settle
from jaxllm.core.errors import EXIT_SAVED_START_AGAIN, RunError
from jaxllm.data.edits import Kind
from jaxllm.ledger import requests
from jaxllm.ledger.journal import Journal, read_journal
from jaxllm.ledger.lease import HeldError, Lease
from jaxllm.ledger.requests import Request, Rollback, Skip
from jaxllm.train.signals import StopRequest
from jaxllm.workspace import open_run, refuse_imported

Say = Callable[[str], None]

_FIRST_GLANCE, _LONGEST_GLANCE = 0.1, 1.0  # seconds between looks for an answer
_BRIEF_SECONDS = 10.0  # how long another command may hold the run
_TAKEN_SECONDS = 10.0  # for the answer to a request that was taken up just before it was to be withdrawn
_AGAIN_SECONDS = 30.0  # until a person is told again that it waits
_INTERRUPTED = 130


def skip_steps(
    folder: Path,
    steps: tuple[int, int],
    *,
    defer: bool,
    why: str = "asked for",
    timeout: float | None = None,
    say: Say = lambda text: None,
) -> Event:
    """Take the data of steps that are still to come out of the stream, or move it to the end of its stage.

    timeout: seconds to wait for a run that is running, None for ever. say: hears what is waited for.
    RunError: some of the steps are done, or they are not steps of the run, or nobody answered.
    """
    return ask(folder, Skip(steps=steps, defer=defer, why=why), timeout=timeout, say=say)


def roll_back(
    folder: Path,
    to: int,
    *,
    kind: Kind | None,
    steps: tuple[int, int] | None = None,
    why: str = "asked for",
    timeout: float | None = None,
    say: Say = lambda text: None,
) -> Event:
    """Go back to checkpoint `to` (0: the first parameters) as a new lineage.

    kind: what becomes of the data seen since, or of that of `steps` among it; None takes it again. timeout, say: as in
    `skip_steps`.
    RunError: there is no such checkpoint in the live lineage, nothing lies behind it, or nobody answered.
    """
    return ask(folder, Rollback(to=to, data=kind, steps=steps, why=why), timeout=timeout, say=say)


def ask(folder: Path, asked: Skip | Rollback, *, timeout: float | None, say: Say) -> Event:
    """The event that carries out what is asked, once it is in the journal.

    RunError: it was refused; or a signal or the timeout came first, and it was withdrawn.
    """
    refuse_imported(open_run(folder), folder)
    if not (folder / "journal.jsonl").is_file():
        raise RunError(f"{folder} has not been started: it has no journal; start it with jaxllm train {folder}")
    waiting: _Waiting | None = None
    try:
        with StopRequest() as stop:
            while True:
                try:
                    with Lease.acquire(folder, brief=True, patience=_BRIEF_SECONDS if waiting is None else 0.0):
                        return _alone(folder, asked, None if waiting is None else waiting.request)
                except HeldError as err:
                    holder = err.holder
                if waiting is None:
                    waiting = _Waiting(folder, asked, timeout, say)
                    say(f"{holder} holds {folder} and is asked to do it between two steps; Ctrl-C withdraws that")
                if (event := waiting.glance(holder, stop.name)) is not None:
                    return event
    except BaseException:
        if waiting is not None:
            requests.withdraw(folder, waiting.request.id)  # nobody would hear of it
        raise


class _Waiting:
    """A request on its way."""

    def __init__(self, folder: Path, asked: Skip | Rollback, timeout: float | None, say: Say) -> None:
        self._folder, self._say, self._timeout = folder, say, timeout
        self._began = self._told = time.monotonic()
        self._glance, self._late = _FIRST_GLANCE, None if timeout is None else self._began + timeout
        self._taken_until: float | None = None
        self.request = requests.file(folder, asked)

    def glance(self, holder: str, signal: str | None) -> Event | None:
        """Look for the answer, or sleep for a moment. RunError: refused, or withdrawn."""
        if (event := _heard(self._folder, self.request)) is not None:
            return event
        now = time.monotonic()
        if self._taken_until is not None:
            if now > self._taken_until:
                raise RunError(
                    f"{holder} has taken the request up and does not say what came of it; see jaxllm journal "
                    f"{self._folder} before you ask again"
                )
        elif signal is not None or (self._late is not None and now >= self._late):
            if requests.withdraw(self._folder, self.request.id):
                raise self._unanswered(holder, signal)
            self._taken_until = now + _TAKEN_SECONDS
        if now - self._told >= _AGAIN_SECONDS:
            self._told = now
            self._say(f"still waiting for {holder}, for {now - self._began:.0f} s now")
        left = self._glance if self._late is None else min(self._glance, max(self._late - now, 0.01))
        time.sleep(left)
        self._glance = min(1.3 * self._glance, _LONGEST_GLANCE)
        return None

    def _unanswered(self, holder: str, signal: str | None) -> RunError:
        why = f"has not answered within {self._timeout:g} s" if signal is None else f"had not answered at {signal}"
        err = RunError(f"{holder} {why}; the request was withdrawn and nothing was changed")
        err.exit_code = EXIT_SAVED_START_AGAIN if signal is None else _INTERRUPTED
        return err


def _alone(folder: Path, asked: Skip | Rollback, request: Request | None) -> Event:
    """Do it as the holder of the lease, unless whoever held it before has done it."""
    if request is not None and (event := _heard(folder, request)) is not None:
        return event
    with Journal(folder / "journal.jsonl") as journal:
        if request is None:
            return settle(asked, open_run(folder), folder, journal)
        event = requests.carried_out(journal.events, request.id)
        try:
            return event or settle(asked, open_run(folder), folder, journal, request=request)
        finally:
            requests.close(folder, request.id)


def _heard(folder: Path, request: Request) -> Event | None:
    """The event that answers a request. RunError if it was refused."""
    said = requests.answered(folder, request.id)
    if said is None:
        return None
    requests.forget(folder, request.id)
    if said.refused is not None:
        raise RunError(said.refused)
    events: list[dict[str, Any]] = read_journal(folder / "journal.jsonl")
    event = requests.carried_out(events, request.id)
    if event is None:
        raise RunError(f"{folder}: the journal has no event of request {request.id}, though it was answered with one")
    return event
