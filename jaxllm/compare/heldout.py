"""Held-out scores of two runs, by source, at the steps after which both were evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxllm.report.speeds import HeldOut


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Bits per byte of both after `step`; None where it was not finite."""

    step: int
    first: float | None
    second: float | None


@dataclass(frozen=True, kw_only=True)
class SourceScores:
    """A held-out source in two runs.

    common: steps after which both scored it over equally many labels; only_first, only_second: those that one has
    alone; other_labels: those with scores over different numbers of labels, which say nothing of each other.
    first_difference: the first common step with another score. largest: where bits per byte are furthest apart. last:
    the newest common step.
    """

    source: str
    common: int
    only_first: int
    only_second: int
    other_labels: int
    first_difference: int | None
    largest: Pair | None
    last: Pair | None


def compare_scores(a: Sequence[HeldOut], b: Sequence[HeldOut]) -> list[SourceScores]:
    """Every source that one of them scored, by name."""
    return [_source(name, a, b) for name in sorted({h.source for h in (*a, *b)})]


def _source(name: str, a: Sequence[HeldOut], b: Sequence[HeldOut]) -> SourceScores:
    mine, theirs = ({h.step: h for h in side if h.source == name} for side in (a, b))
    both = sorted(mine.keys() & theirs.keys())
    common = [s for s in both if mine[s].labels == theirs[s].labels]
    pairs = [Pair(step=s, first=mine[s].bits_per_byte, second=theirs[s].bits_per_byte) for s in common]
    parted = [s for s in common if _score(mine[s]) != _score(theirs[s])]
    apart = [(abs(p.second - p.first), p) for p in pairs if p.first is not None and p.second is not None]
    return SourceScores(
        source=name,
        common=len(common),
        only_first=len(mine) - len(both),
        only_second=len(theirs) - len(both),
        other_labels=len(both) - len(common),
        first_difference=parted[0] if parted else None,
        largest=max(apart, key=lambda found: found[0])[1] if parted and apart else None,
        last=pairs[-1] if pairs else None,
    )


def _score(h: HeldOut) -> tuple[float | None, float | None]:
    return h.nats_per_token, h.bits_per_byte
