"""The step records of two runs, held against each other. No jax."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxllm.core.floats import float32_of
from jaxllm.ledger.records import DATA, StepRecord, compare
from jaxllm.release.agreement import Agreement
from jaxllm.report.columns import Columns

# What can part -> the exact fields of a record that say so.
PARTS = {
    "data": DATA,
    "loss": ("loss_bits",),
    "gradient norm": ("grad_norm_bits",),
    "learning rate": ("lr_bits",),
}
NUMBERS = ("loss", "grad_norm", "lr")
Span = tuple[int, int]  # first and last step


@dataclass(kw_only=True)
class Held:
    """What the steps of two runs say of each other.

    only: how many are in one of them alone. first: the first common step at which something is other, by PARTS.
    other_data: the common steps with other data, as spans. records: the numbers of either. off: of the common steps, by
    how much the second's differ, relative to the first's; 0.0 only where the bits are equal.
    """

    agreement: Agreement
    common: int = 0
    only: list[int] = field(default_factory=lambda: [0, 0])
    first: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(PARTS))
    other_data: list[Span] = field(default_factory=list)
    records: tuple[Columns, Columns] = field(default_factory=lambda: (Columns(*NUMBERS), Columns(*NUMBERS)))
    off: Columns = field(default_factory=lambda: Columns(*NUMBERS))


def hold(a: Iterator[StepRecord], b: Iterator[StepRecord], compute: str) -> Held:
    """Both by step. Memory: a few numbers per step. compute: the type of matrix products."""
    held = Held(agreement=Agreement(compute))
    mine, theirs = next(a, None), next(b, None)
    while mine is not None or theirs is not None:
        step = min(r.step for r in (mine, theirs) if r is not None)
        one = mine if mine is not None and mine.step == step else None
        other = theirs if theirs is not None and theirs.step == step else None
        for record, columns in zip((one, other), held.records, strict=True):
            if record is not None:
                columns.add(step, (record.loss, record.grad_norm, record.lr))
        if one is not None and other is not None:
            _both(held, one, other)
        else:
            held.only[0 if other is None else 1] += 1
        mine = mine if one is None else next(a, None)
        theirs = theirs if other is None else next(b, None)
    return held


def append_step(spans: list[Span], step: int) -> None:
    """One step more, not before the last of `spans`."""
    if spans and step <= spans[-1][1] + 1:
        spans[-1] = (spans[-1][0], max(step, spans[-1][1]))
    else:
        spans.append((step, step))


def _both(held: Held, one: StepRecord, other: StepRecord) -> None:
    held.common += 1
    held.agreement.hold(one, other)
    fields = set(compare(one, other))
    for part, wanted in PARTS.items():
        if held.first[part] is None and fields.intersection(wanted):
            held.first[part] = one.step
    if fields.intersection(DATA):
        append_step(held.other_data, one.step)
    held.off.add(one.step, [_off(getattr(one, f"{n}_bits"), getattr(other, f"{n}_bits")) for n in NUMBERS])


def _off(one: str, other: str) -> float | None:
    if one == other:
        return 0.0
    a, b = float32_of(one), float32_of(other)
    return (b - a) / abs(a) if a else None
