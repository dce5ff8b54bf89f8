"""Observers: they get what happened and change nothing."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxllm.core.files import cut_unfinished_line
from jaxllm.core.floats import finite_or_none
from jaxllm.ledger.records import StepRecord
from jaxllm.ledger.scores import Score
from jaxllm.train.guard import Note

Norms = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Experts:
    """How busy the experts of each layer were in a step, 1 being as busy as their mean: the busiest and the idlest; and
    the mean auxiliary loss of a sequence."""

    busiest: tuple[float, ...]
    idlest: tuple[float, ...]
    penalty: float

    @classmethod
    def of(cls, loads_LE: np.ndarray, penalty_B: np.ndarray) -> "Experts":
        """From loads (int32) and penalties (float32) of a whole batch."""
        share_LE = loads_LE / loads_LE.mean(axis=1, keepdims=True)
        return cls(
            busiest=tuple(share_LE.max(axis=1).tolist()),
            idlest=tuple(share_LE.min(axis=1).tolist()),
            penalty=float(penalty_B.mean(dtype=np.float64)),
        )


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A step as it is shown. time: when it was finished, seconds since the epoch. Speeds are over the last steps of
    this process, None before there are two."""

    record: StepRecord
    time: float
    seconds_per_step: float | None
    tokens_per_second: float | None
    tokens_per_second_per_device: float | None
    mfu: float | None
    waiting_share: float
    norms: Norms = field(default_factory=dict)
    experts: Experts | None = None


class Observer(Protocol):
    """What can be told."""

    def stepped(self, seen: Observation) -> None: ...
    def evaluated(self, step: int, scores: Sequence[Score]) -> None: ...
    def saved(self, step: int) -> None: ...
    def noticed(self, note: Note) -> None: ...
    def went_back(self, step: int, why: str) -> None: ...
    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: a line per logging interval and per evaluation, for programs. Speeds and norms live only here and
    in TensorBoard; the exact record of every step is steps/.

    Each process begins with a line `{"starts_after": STEP}`, and going back leaves one too: what stands above it about
    later steps is told again.
    """

    def __init__(self, folder: Path, every: int, start: int) -> None:
        path = folder / "metrics.jsonl"
        cut_unfinished_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._every = every
        self._write(starts_after=start)

    def stepped(self, seen: Observation) -> None:
        if seen.record.step % self._every and not seen.norms:
            return
        self._write(
            time=round(seen.time, 3),
            step=seen.record.step,
            loss=seen.record.loss,
            grad_norm=seen.record.grad_norm,
            lr=seen.record.lr,
            tokens=seen.record.tokens,
            seconds_per_step=seen.seconds_per_step,
            tokens_per_second=seen.tokens_per_second,
            tokens_per_second_per_device=seen.tokens_per_second_per_device,
            mfu=seen.mfu,
            waiting_share=round(seen.waiting_share, 5),
            **({"norms": _plain(seen.norms)} if seen.norms else {}),
            **({} if seen.experts is None else {"experts": _rounded(seen.experts)}),
        )

    def evaluated(self, step: int, scores: Sequence[Score]) -> None:
        for s in scores:
            self._write(
                step=step,
                heldout=s.source,
                nats_per_token=finite_or_none(s.nats_per_token),
                bits_per_byte=finite_or_none(s.bits_per_byte),
                tokens=s.tokens,
            )

    def saved(self, step: int) -> None:
        os.fsync(self._file.fileno())

    def noticed(self, note: Note) -> None:
        pass

    def went_back(self, step: int, why: str) -> None:
        self._write(starts_after=step, why=why)

    def close(self) -> None:
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._file.write(json.dumps({"time": round(time.time(), 3)} | fields, allow_nan=False) + "\n")
        self._file.flush()


class TensorBoard:
    """Curves under tensorboard/: loss, gradient norm and learning rate of every step, speeds, held-out scores."""

    def __init__(self, folder: Path, every: int, start: int) -> None:
        self._folder, self._every = folder / "tensorboard", every
        self._open(start)

    def stepped(self, seen: Observation) -> None:
        step, add = seen.record.step, self._writer.add_scalar
        for name, value in (("loss", seen.record.loss), ("grad_norm", seen.record.grad_norm), ("lr", seen.record.lr)):
            if value is not None:
                add(f"curves/{name}", value, step)
        if step % self._every == 0:
            speeds = {
                "tokens_per_second": seen.tokens_per_second,
                "mfu": seen.mfu,
                "seconds_per_step": seen.seconds_per_step,
                "waiting_share": seen.waiting_share,
            }
            for name, value in speeds.items():
                if value is not None:
                    add(f"speed/{name}", value, step)
        for kind, by_path in seen.norms.items():
            for path, values in by_path.items():
                for layer, value in enumerate(np.atleast_1d(values)):
                    # The last part of a tag is what TensorBoard always shows; groups are in alphabetical order.
                    where = path if np.ndim(values) == 0 else f"{path.removeprefix('blocks.')}.{layer}"
                    add(f"norm_{kind}/{where}", float(value), step)
        if seen.experts is not None:
            add("experts/penalty", seen.experts.penalty, step)
            for name, by_layer in (("busiest", seen.experts.busiest), ("idlest", seen.experts.idlest)):
                for layer, value in enumerate(by_layer):
                    add(f"experts/{name}.{layer}", value, step)

    def evaluated(self, step: int, scores: Sequence[Score]) -> None:
        for s in scores:
            self._writer.add_scalar(f"heldout/{s.source}/bits_per_byte", s.bits_per_byte, step)
            self._writer.add_scalar(f"heldout/{s.source}/nats_per_token", s.nats_per_token, step)

    def saved(self, step: int) -> None:
        self._writer.flush()

    def noticed(self, note: Note) -> None:
        pass

    def went_back(self, step: int, why: str) -> None:
        self._writer.close()
        self._open(step)

    def close(self) -> None:
        self._writer.close()

    def _open(self, step: int) -> None:
        from tensorboardX import SummaryWriter  # a second of imports that only this writer needs

        # What was written about later steps is hidden: they are executed and written again.
        self._writer = SummaryWriter(str(self._folder), flush_secs=10, purge_step=step + 1)


def _rounded(experts: Experts) -> dict[str, Any]:
    return {
        "busiest": [round(x, 4) for x in experts.busiest],
        "idlest": [round(x, 4) for x in experts.idlest],
        "penalty": finite_or_none(experts.penalty),
    }


def _plain(norms: Norms) -> dict[str, dict[str, Any]]:
    return {
        kind: {p: finite_or_none(v) if np.ndim(v) == 0 else [finite_or_none(x) for x in v] for p, v in by_path.items()}
        for kind, by_path in norms.items()
    }
