"""The numbers of a run as tables: every step, held-out scores, speeds, events. Made from its record alone. No jax.

A number in a table is the recorded one, written so that it reads back to the same bits; an empty cell is one that JSON
has no word for (not finite), or that was not measured.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxllm.core.errors import LedgerError
from jaxllm.data.steps import StepTable
from jaxllm.ledger.fold import sentence
from jaxllm.ledger.journal import Event
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.records import read_steps
from jaxllm.release.layout import ScoreEntry
from jaxllm.release.snapshot import METRICS

Row = dict[str, Any]

# Column -> type in the Parquet file. tokens_so_far: input positions consumed, this step included; labels: those that
# counted in this step's loss; live: whether the step is on the path of the live lineage.
STEPS: Mapping[str, str] = {
    "lineage": "int64",
    "step": "int64",
    "live": "bool",
    "stage": "string",
    "cursor": "int64",
    "sequences": "int64",
    "labels": "int64",
    "tokens_so_far": "int64",
    "loss": "float32",
    "grad_norm": "float32",
    "lr": "float32",
    "refused": "bool",
    "loss_bits": "string",
    "grad_norm_bits": "string",
    "lr_bits": "string",
    "batch": "string",
    "losses": "string",
}
HELDOUT = ("lineage", "step", "live", "tokens_so_far", "source", "nats_per_token", "bits_per_byte", "labels")
SPEEDS = (
    "time",
    "lineage",
    "step",
    "live",
    "seconds_per_step",
    "tokens_per_second",
    "tokens_per_second_per_device",
    "mfu",
    "waiting_share",
)
EVENTS = ("seq", "time", "event", "lineage", "step", "what", "fields")
_GROUP = 1 << 16  # rows of a Parquet row group


def step_rows(record: Path, lineages: Lineages, table: StepTable, seq_len: int) -> Iterator[Row]:
    """A row of STEPS per step of every lineage, in the order in which they were first recorded."""
    for r in read_steps(record / "steps"):
        yield {
            "lineage": r.lineage,
            "step": r.step,
            "live": lineages.owner(r.step) == r.lineage,
            "stage": r.stage,
            "cursor": r.cursor,
            "sequences": r.sequences,
            "labels": r.tokens,
            "tokens_so_far": table.consumed(r.step) * seq_len,
            "loss": r.loss,
            "grad_norm": r.grad_norm,
            "lr": r.lr,
            "refused": r.refused,
            "loss_bits": r.loss_bits,
            "grad_norm_bits": r.grad_norm_bits,
            "lr_bits": r.lr_bits,
            "batch": r.batch,
            "losses": r.losses,
        }


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """The rows of STEPS; memory: one row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"int64": pa.int64(), "bool": pa.bool_(), "string": pa.string(), "float32": pa.float32()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in STEPS.items()])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        held: list[Row] = []
        for row in rows:
            held.append(row)
            if len(held) == _GROUP:
                writer.write_table(pa.Table.from_pylist(held, schema))
                held = []
        writer.write_table(pa.Table.from_pylist(held, schema))


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    """A header and the rows; lines end in \\n, so that the bytes are the same everywhere."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def event_rows(events: Iterable[Event]) -> Iterator[Row]:
    """A row of EVENTS per event; fields: all that it has, as JSON."""
    chain = ("schema", "prev", "hash")
    for event in events:
        yield {
            "seq": event["seq"],
            "time": event["time"],
            "event": event["event"],
            "lineage": event.get("lineage"),
            "step": event.get("step"),
            "what": sentence(event),
            "fields": json.dumps({k: v for k, v in event.items() if k not in chain}, sort_keys=True),
        }


class Measured:
    """What metrics.jsonl has, each row in its lineage; what a later process told again counts as it told it last."""

    def __init__(
        self, record: Path, events: Sequence[Event], lineages: Lineages, table: StepTable, seq_len: int
    ) -> None:
        """LedgerError names a line that is no measurement."""
        self._lineages, self._table, self._seq_len = lineages, table, seq_len
        self._turns = [_seconds(e["time"]) for e in events if e["event"] == "rollback"]
        self._steps: dict[tuple[int, int], Row] = {}
        self._scores: dict[tuple[int, int, str], Row] = {}
        if (record / METRICS).is_file():
            for number, line in enumerate((record / METRICS).read_text(encoding="utf-8").splitlines(), start=1):
                self._take(line, f"{METRICS} line {number}")

    def heldout(self) -> Iterator[Row]:
        """The rows of HELDOUT, by lineage, step and source."""
        for (lineage, step, source), row in sorted(self._scores.items()):
            yield {
                **self._where(lineage, step),
                "tokens_so_far": self._table.consumed(step) * self._seq_len,
                "source": source,
                "nats_per_token": row["nats_per_token"],
                "bits_per_byte": row["bits_per_byte"],
                "labels": row["tokens"],
            }

    def speeds(self) -> Iterator[Row]:
        """The rows of SPEEDS, by lineage and step; time in seconds since 1970, as it was recorded."""
        for (lineage, step), row in sorted(self._steps.items()):
            yield {name: row.get(name) for name in SPEEDS} | self._where(lineage, step)

    def scores(self, step: int, lineage: int | None) -> tuple[ScoreEntry, ...]:
        """Along the path of a lineage, what was measured last at or before a step, of every source."""
        latest: dict[str, ScoreEntry] = {}
        for (owner, at, source), row in sorted(self._scores.items(), key=lambda item: item[0][1]):
            if at <= step and self._lineages.owner(at, lineage) == owner:
                latest[source] = ScoreEntry(
                    step=at,
                    source=source,
                    nats_per_token=row["nats_per_token"],
                    bits_per_byte=row["bits_per_byte"],
                    tokens=row["tokens"],
                )
        return tuple(latest[source] for source in sorted(latest))

    def _where(self, lineage: int, step: int) -> Row:
        return {"lineage": lineage, "step": step, "live": self._lineages.owner(step) == lineage}

    def _take(self, line: str, where: str) -> None:
        try:
            row = json.loads(line)
            # It has no lineages of its own; each rollback was journaled before anything was measured behind it.
            lineage = sum(turn <= row["time"] for turn in self._turns)
            if "starts_after" in row:
                return
            step = int(row["step"])
            if "heldout" in row:
                _ = row["nats_per_token"], row["bits_per_byte"], row["tokens"]
                self._scores[lineage, step, row["heldout"]] = row
            else:
                self._steps[lineage, step] = row
        except (ValueError, KeyError, TypeError) as err:
            raise LedgerError(f"{where}: {err!r}; it is no measurement, restore the file from a copy") from None


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _cell(value: Any) -> Any:
    return ("false", "true")[value] if isinstance(value, bool) else repr(value) if isinstance(value, float) else value
