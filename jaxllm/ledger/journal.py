"""The journal: what happened to a run, one hash-chained line per event, each on the disk before the run goes on."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxllm.core.config import suggest
from jaxllm.core.errors import LedgerError
from jaxllm.ledger.chain import AppendFile, Chain, forge, origin, read_chain

SCHEMA = 1
DIGITS = 64

Event = dict[str, Any]

# Every event there is, with the fields it must have; more may be added to an event. `step` counts finished updates.
EVENTS: Mapping[str, Mapping[str, type]] = {
    # the run begins; identity and fingerprint are hashes (identity sections, numerics), fence is the lease's number
    "start": {"lineage": int, "identity": str, "fingerprint": str, "fence": int},
    # the parameters came from published files; files: {name, bytes, sha256} of each. Checkpoint 0 follows
    "import": {"lineage": int, "identity": str, "architecture": str, "files": list},
    # another process goes on from the checkpoint at `step` (0: from the initial state)
    "resume": {"lineage": int, "step": int, "identity": str, "fingerprint": str, "fence": int},
    # from `step` on, numbers may differ in rounding; changes: lines `what: old -> new`
    "numerics": {"lineage": int, "step": int, "fingerprint": str, "changes": list},
    # the first batch of a stage was taken, for update `step`, from stream position `cursor`
    "stage": {"lineage": int, "step": int, "stage": str, "cursor": int},
    # a checkpoint was committed; digest is the state digest
    "checkpoint": {"lineage": int, "step": int, "digest": str, "tokens": int},
    # the checkpoint at `step` could not be used and the one before it was taken
    "fallback": {"lineage": int, "step": int, "why": str},
    # update `step` was executed again and differs from what had been recorded, in `fields`
    "divergence": {"lineage": int, "step": int, "fields": list},
    # update `step` was not applied, because it was not finite or the guard refuses it
    "refused": {"lineage": int, "step": int},
    # the guard saw a spike: signal is loss, grad_norm or non_finite, limit what it stayed below until then (None: it is
    # not finite), action what the guard does about it
    "spike": {"lineage": int, "step": int, "signal": str, "action": str},
    # the spike at step `spike` was benign: back below its limit at `step`
    "recovered": {"lineage": int, "step": int, "spike": int},
    # back to the state after `step`, as a new lineage; `last` is the last step that its parent executed. edits: what it
    # does to the stream (jaxllm.data.edits), from the data of step + 1 on. by: guard or person
    "rollback": {"lineage": int, "parent": int, "step": int, "last": int, "edits": list, "why": str, "by": str},
    # the stream is edited, without going back; `step` is the first that it changes
    "skip": {"lineage": int, "step": int, "edits": list, "why": str, "by": str},
    "defer": {"lineage": int, "step": int, "edits": list, "why": str, "by": str},
    # something was made to go wrong at `step`, because the config says so
    "fault": {"lineage": int, "step": int, "what": str},
    # the self-check found a difference at `step`: what was compared, fields: the arrays, with devices for replicas
    "selfcheck": {"lineage": int, "step": int, "what": str, "fields": list},
    # this run goes on from checkpoint `step` of another; origin: which, changes: the amendments as `path: old -> new`,
    # edits: those of its stream so far, fingerprint: with which numerics the checkpoint was made; and for the guard
    # seen, the last [step, loss, grad_norm, refused], and went_back, the steps at which it went back
    "fork": {
        "lineage": int,
        "step": int,
        "identity": str,
        "fingerprint": str,
        "origin": dict,
        "changes": list,
        "edits": list,
    },
    # an earlier process was ended by its watchdog: `step` did not end; process is its number
    "hang": {"lineage": int, "step": int, "process": int, "why": str},
    # saved at `step` and left, because of a signal or because it was asked to
    "stop": {"lineage": int, "step": int, "why": str},
    # the guard gave up after `step`
    "guard_stop": {"lineage": int, "step": int, "why": str},
    # all updates are done; digest is the final state digest
    "finish": {"lineage": int, "step": int, "digest": str},
}

_OWN = ("schema", "seq", "time", "event", "prev", "hash")


class Journal:
    """The journal of a run, open for its one writer (who holds the lease).

    Opening verifies the whole chain. An unterminated last line is cut off: its write was never acknowledged, so it is
    no history, and the chain stays one file that anyone can check line by line. `events` is everything so far, `head`
    the hash of the last event (zeros before the first), `cut` how many torn bytes were cut off at opening.
    """

    def __init__(self, path: Path | str) -> None:
        """Open, or create in an existing folder. LedgerError names the line that does not hold."""
        path = Path(path)
        chain = _read(path) if path.is_file() else None
        self.events: list[Event] = chain.objects if chain else []
        self.head: str = (chain.head if chain else None) or origin(DIGITS)
        self.cut: int = chain.torn if chain else 0
        self._file = AppendFile(path, size=chain.size if chain else None)

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event; returns it when it is on the disk. LedgerError: unknown event, field missing or wrong."""
        _check_fields(event, fields)
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {**fields, "schema": SCHEMA, "seq": len(self.events), "time": time, "event": event}
        line, digest = forge(record, self.head, DIGITS)
        self._file.append(line)
        self._file.sync()
        self.events.append(json.loads(line))
        self.head = digest
        return self.events[-1]

    def close(self) -> None:
        """Every event is already on the disk."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path | str) -> list[Event]:
    """All events of a journal, verified; an unterminated last line is ignored, so a live journal can be read.

    LedgerError names the line and what differs. Lines missing at the end cannot be seen from the file alone: hold the
    last hash against the one in a checkpoint (`holds`).
    """
    path = Path(path)
    if not path.is_file():
        raise LedgerError(f"{path}: there is no journal; name a run folder that has been started")
    return _read(path).objects


def holds(events: list[Event], head: str) -> bool:
    """Whether a journal still contains the event that was its last when `head` was noted down elsewhere."""
    return head == origin(DIGITS) or any(e["hash"] == head for e in events)


def _read(path: Path) -> Chain:
    chain = read_chain(path, origin(DIGITS), DIGITS, lambda e: f"event {e.get('seq')} ({e.get('event')})")
    for number, event in enumerate(chain.objects):
        where = f"{path.name} line {number + 1}"
        if event.get("seq") != number or not all(isinstance(event.get(k), str) for k in ("event", "time")):
            raise LedgerError(
                f"{path.name} line {number + 1}: it is not event {number} of a journal; restore it from a copy"
            )
        if not isinstance(event.get("schema"), int) or not 1 <= event["schema"] <= SCHEMA:
            found = event.get("schema")
            raise LedgerError(f"{where}: schema {found!r}, this jaxllm reads 1 to {SCHEMA}; update jaxllm")
    return chain


def _check_fields(event: str, fields: Mapping[str, Any]) -> None:
    if event not in EVENTS:
        raise LedgerError(f"there is no event {event!r}" + suggest(event, EVENTS))
    for name, kind in EVENTS[event].items():
        if name not in fields:
            raise LedgerError(f"event {event!r} needs {name!r}; it has {', '.join(fields) or 'nothing'}")
        value = fields[name]
        # bool is an int to Python; a list may come as a tuple
        if not isinstance(value, (list, tuple) if kind is list else kind) or isinstance(value, bool):
            raise LedgerError(f"event {event!r}: {name}={value!r} is not a {kind.__name__}")
    taken = [name for name in _OWN if name in fields]
    if taken:
        raise LedgerError(f"event {event!r}: {', '.join(taken)} is written by the journal itself; use another name")
