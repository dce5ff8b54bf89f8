"""Step records: the exact numbers of every update, in numbered segments of hash-chained lines."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxllm.core.errors import LedgerError
from jaxllm.core.files import make_folder
from jaxllm.core.floats import finite_or_none, float32_bits, float32_of
from jaxllm.ledger.chain import Fields, origin
from jaxllm.ledger.segments import (
    DIGITS,
    Highest,
    SegmentWriter,
    label,
    newest_first,
    raise_highest,
    read_segment,
    segment_paths,
)

SCHEMA = 1
SEGMENT = 1024  # records in a segment, 0.4 MB: read whole at every start, and a million steps are a thousand files


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One update. The bits are what counts; the floats beside them are for people, null where JSON has no such number.

    step: finished updates, this one included. cursor: stream position of its first sequence. tokens: labels that
    counted. batch: digest of what the devices consumed; losses: digest of the per-sequence losses. refused: the update
    was not applied, being not finite or too large; its data is consumed, parameters and optimizer state stayed.
    """

    schema: int = SCHEMA
    lineage: int
    step: int
    cursor: int
    stage: str
    sequences: int
    tokens: int
    loss: float | None
    loss_bits: str
    grad_norm: float | None
    grad_norm_bits: str
    lr: float | None
    lr_bits: str
    batch: str
    losses: str
    refused: bool

    @classmethod
    def of_values(
        cls,
        *,
        lineage: int,
        step: int,
        cursor: int,
        stage: str,
        sequences: int,
        tokens: int,
        loss: Any,
        grad_norm: Any,
        lr: Any,
        batch: str,
        losses: str,
        refused: bool,
    ) -> "StepRecord":
        """A record from loss (nats per token), grad_norm and lr. ValueError if one of them is not a float32."""
        return cls(
            lineage=int(lineage),
            step=int(step),
            cursor=int(cursor),
            stage=stage,
            sequences=int(sequences),
            tokens=int(tokens),
            loss=finite_or_none(loss),
            loss_bits=float32_bits(loss),
            grad_norm=finite_or_none(grad_norm),
            grad_norm_bits=float32_bits(grad_norm),
            lr=finite_or_none(lr),
            lr_bits=float32_bits(lr),
            batch=batch,
            losses=losses,
            refused=bool(refused),
        )


_FIELDS = tuple(f.name for f in dataclasses.fields(StepRecord))
_FLOATS = ("loss", "grad_norm", "lr")
_TYPES: dict[str, type] = dict.fromkeys(("schema", "lineage", "step", "cursor", "sequences", "tokens"), int)
_TYPES |= dict.fromkeys(("stage", "batch", "losses", "loss_bits", "grad_norm_bits", "lr_bits"), str) | {"refused": bool}
# What an update is held to. The floats repeat their bits, and the lineage says where it was recorded, not what it was.
EXACT = tuple(f for f in _FIELDS if f not in (*_FLOATS, "schema", "lineage"))

# Of these, what says which data was consumed.
DATA = ("cursor", "stage", "sequences", "tokens", "batch")

_KEY = re.compile(rb'"lineage":(\d+),.*?"step":(\d+)')


def compare(a: StepRecord, b: StepRecord) -> list[str]:
    """Names of the exact fields in which two records differ; empty is bitwise equal."""
    return [f for f in EXACT if getattr(a, f) != getattr(b, f)]


class StepLog:
    """The step records of a run, open for its one writer (who holds the lease).

    A record that was appended survives the death of the process, one that was synced a power cut.
    """

    def __init__(self, folder: Path | str, records_per_segment: int = SEGMENT) -> None:
        """Open or create. Verifies the newest segment and its link to the one before; LedgerError names the step."""
        make_folder(folder)
        self._writer = SegmentWriter(Path(folder), records_per_segment)

    @property
    def head(self) -> str:
        """The hash of the last line (zeros before the first), for checkpoints to keep."""
        return self._writer.head

    def holds(self, head: str) -> bool:
        """Whether a line with this hash is there. Reads back from the newest segment until it is found."""
        return any(
            head == segment.head or any(fields["hash"] == head for fields in segment.records)
            for segment in newest_first(self._writer.paths)
        )

    def append(self, record: StepRecord) -> None:
        """Hand one record to the operating system."""
        fields = {name: getattr(record, name) for name in _FIELDS}
        _check(fields, f"step {record.step}")  # what cannot be read back is not written
        self._writer.append(fields)

    def sync(self) -> None:
        """Return when every record appended so far would survive a power cut."""
        self._writer.sync()

    def close(self) -> None:
        """Sync, then close."""
        self._writer.close()

    def recorded_after(self, lineage: int, step: int) -> list[StepRecord]:
        """The records of a lineage later than `step`, by step, the last record of each.

        Reads the newest segments only, as far back as such records can be.
        """
        found: dict[int, StepRecord] = {}
        for segment in newest_first(self._writer.paths):
            for fields in reversed(segment.records):
                if fields["lineage"] == lineage and fields["step"] > step and fields["step"] not in found:
                    found[fields["step"]] = _record(fields, segment.path)
            if segment.highest.get(lineage, -1) <= step:
                break
        return [found[s] for s in sorted(found)]

    def at(self, lineage: int, step: int) -> StepRecord | None:
        """The last record of one step, None if there is none."""
        for segment in newest_first(self._writer.paths):
            for fields in reversed(segment.records):
                if fields["lineage"] == lineage and fields["step"] == step:
                    return _record(fields, segment.path)
            if segment.highest.get(lineage, -1) < step:
                break
        return None

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_steps(folder: Path | str, lineage: int | None = None) -> Iterator[StepRecord]:
    """The records of a run (of one lineage), verified, in the order in which steps were first recorded.

    A step that was recorded again is given once, by its last record. Memory: one segment, and the steps that were
    recorded again. LedgerError names the step at which the records do not hold. A folder that is not there has none.
    """
    paths = segment_paths(Path(folder))
    latest, counts = _recorded_again(paths)
    given: set[tuple[int, int]] = set()
    prev = origin(DIGITS)
    for path in paths:
        segment = read_segment(path, prev)
        if segment is None:
            continue
        prev = segment.head
        for fields in segment.records[: counts[path]]:  # a live writer may have added some since they were counted
            key = (fields["lineage"], fields["step"])
            if key in given:
                continue
            if key in latest:
                given.add(key)
            if lineage is None or key[0] == lineage:
                yield _record(latest.get(key, fields), path)


def _recorded_again(paths: list[Path]) -> tuple[dict[tuple[int, int], Fields], dict[Path, int]]:
    """(last record of every step that may have several, number of records per segment), by a look at the bytes."""
    highest: Highest = {}
    again: dict[tuple[int, int], Path] = {}
    counts: dict[Path, int] = {}
    for path in paths:
        data = path.read_bytes()
        keys = [(int(a), int(b)) for a, b in _KEY.findall(data, 0, data.rfind(b"\n") + 1)]
        counts[path] = len(keys)
        again.update((key, path) for key in keys if not raise_highest(highest, *key))
    latest: dict[tuple[int, int], Fields] = {}
    for path in sorted(set(again.values())):
        segment = read_segment(path, None)
        for fields in segment.records[: counts[path]] if segment else ():
            key = (fields["lineage"], fields["step"])
            if again.get(key) == path:
                latest[key] = fields
    return latest, counts


def _record(line: Fields, path: Path) -> StepRecord:
    """A line as a record. LedgerError names the step and what is wrong."""
    fields = {name: value for name, value in line.items() if name not in ("prev", "hash")}
    _check(fields, f"{label(path)} step {line['step']}")
    return StepRecord(**fields)


def _check(fields: Fields, where: str) -> None:
    """LedgerError if these are not the fields of the schema, or the floats are not what their bits say."""
    if type(fields.get("schema")) is not int or not 1 <= fields["schema"] <= SCHEMA:
        raise LedgerError(f"{where}: schema {fields.get('schema')!r}, this jaxllm reads 1 to {SCHEMA}; update jaxllm")
    if fields.keys() != set(_FIELDS):
        odd = ", ".join(sorted(fields.keys() ^ set(_FIELDS)))
        raise LedgerError(f"{where}: fields missing or unknown in schema {fields['schema']}: {odd}; update jaxllm")
    for name, kind in _TYPES.items():
        if type(fields[name]) is not kind:
            raise LedgerError(f"{where}: {name}={fields[name]!r} is not of type {kind.__name__}")
    for name in _FLOATS:
        try:
            exact = finite_or_none(float32_of(fields[f"{name}_bits"]))
        except ValueError as err:
            raise LedgerError(f"{where}: {name}_bits: {err}") from None
        if fields[name] != exact:
            raise LedgerError(f"{where}: {name} is {fields[name]!r}, its bits say {exact!r}; one of them is wrong")
