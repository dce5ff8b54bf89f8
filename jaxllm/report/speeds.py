"""What metrics.jsonl tells that the exact record does not: speeds, waiting, held-out scores, and when."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxllm.core.errors import LedgerError


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A step that was logged at `time` (seconds since 1970, UTC). Speeds are over the last steps before it."""

    time: float
    step: int
    seconds_per_step: float | None
    tokens_per_second: float | None
    mfu: float | None
    waiting_share: float


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A held-out score of one source after `step`, over `labels`; None where it was not finite."""

    step: int
    source: str
    labels: int
    nats_per_token: float | None
    bits_per_byte: float | None


@dataclass(kw_only=True)
class Section:
    """What was written from one beginning to the next: a process began, or the run went back."""

    began: float
    after: int
    went_back: bool
    logged: list[Logged] = field(default_factory=list)
    heldout: list[HeldOut] = field(default_factory=list)
    last: float = 0.0


@dataclass(kw_only=True)
class Speeds:
    """All of metrics.jsonl, in the order in which it was written."""

    sections: list[Section] = field(default_factory=list)

    def standing(self) -> tuple[list[Logged], list[HeldOut]]:
        """What was not told again: of the history that the run stands on, by step."""
        logged: dict[int, Logged] = {}
        heldout: dict[tuple[int, str], HeldOut] = {}
        for section in self.sections:
            logged = {s: x for s, x in logged.items() if s <= section.after}
            heldout = {k: x for k, x in heldout.items() if k[0] <= section.after}
            logged |= {x.step: x for x in section.logged}
            heldout |= {(x.step, x.source): x for x in section.heldout}
        return [logged[s] for s in sorted(logged)], [heldout[k] for k in sorted(heldout)]

    def left(self) -> list[HeldOut]:
        """Held-out scores of steps that the run went back from."""
        found: list[HeldOut] = []
        for number, section in enumerate(self.sections):
            backs = [s.after for s in self.sections[number + 1 :] if s.went_back]
            found += [x for x in section.heldout if backs and x.step > min(backs)]
        return found


def read_speeds(folder: Path) -> Speeds:
    """The sections of metrics.jsonl; none if it is not there. A last line without an end is being written.

    LedgerError names the line that is not what was written.
    """
    path, found = folder / "metrics.jsonl", Speeds()
    if not path.is_file():
        return found
    data = path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            _take(found, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            raise LedgerError(
                f"{path} line {number} is not what was written ({type(err).__name__}: {err}); move the file aside: a "
                f"report without it has no speeds and no held-out scores"
            ) from None
    return found


def _take(found: Speeds, line: dict[str, Any]) -> None:
    time = float(line["time"])
    if "starts_after" in line:
        found.sections.append(Section(began=time, after=int(line["starts_after"]), went_back="why" in line, last=time))
        return
    if not found.sections:
        found.sections.append(Section(began=time, after=0, went_back=False))
    section = found.sections[-1]
    section.last = time
    if "heldout" in line:
        section.heldout.append(
            HeldOut(
                step=int(line["step"]),
                source=str(line["heldout"]),
                labels=int(line["tokens"]),
                nats_per_token=_number(line["nats_per_token"]),
                bits_per_byte=_number(line["bits_per_byte"]),
            )
        )
        return
    section.logged.append(
        Logged(
            time=time,
            step=int(line["step"]),
            seconds_per_step=_number(line["seconds_per_step"]),
            tokens_per_second=_number(line["tokens_per_second"]),
            mfu=_number(line["mfu"]),
            waiting_share=float(line["waiting_share"]),
        )
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
