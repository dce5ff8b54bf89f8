"""Classes of agreement: how a step that was executed again holds against its record. No jax.

bitwise: every exact field is equal. rounding: the same data, and a first loss within the rounding of another program;
what follows is reported as it is. different: anything else.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxllm.core.errors import ConfigError
from jaxllm.core.floats import float32_of
from jaxllm.ledger.records import DATA, StepRecord, compare

Class = Literal["bitwise", "rounding", "different"]

# Relative difference of the first loss, by the type of matrix products, that another order of sums explains.
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-4}
# What is arithmetic on integers and host floats, so that no rounding excuses a difference.
_EXACT = (*DATA, "lr_bits", "refused")


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """The largest deviation of one number over an interval, and at which step."""

    step: int
    recorded: float
    again: float
    relative: float
    ulp: int


@dataclass
class Agreement:
    """Steps held against their records, one after the other.

    first: (step, fields) of the first that is not bitwise equal. broken: why it is worse than rounding, with its step.
    """

    compute: str
    steps: int = 0
    first: tuple[int, list[str]] | None = None
    broken: tuple[int, str] | None = None
    largest: dict[str, Deviation] = field(default_factory=dict)

    def hold(self, recorded: StepRecord, again: StepRecord) -> None:
        """One step more."""
        self.steps += 1
        fields = compare(recorded, again)
        if fields and self.first is None:
            self.first = (recorded.step, fields)
        for name in ("loss", "grad_norm"):
            self._deviate(name, recorded, again)
        if self.broken is not None:
            return
        if exact := [f for f in fields if f in _EXACT]:
            name = exact[0]
            self.broken = (recorded.step, f"{name} is {getattr(again, name)}, recorded is {getattr(recorded, name)}")
        elif self.steps == 1 and "loss_bits" in fields:
            off = self.largest["loss"].relative if "loss" in self.largest else math.inf
            if off > (allowed := TOLERANCE[self.compute]):
                self.broken = (recorded.step, f"the first loss is off by {off:.2g} relative, above {allowed:g}")

    def hold_state(self, step: int, recorded: str, again: str) -> None:
        """The state digest after a step."""
        if recorded != again and self.first is None:
            self.first = (step, ["state digest"])

    @property
    def found(self) -> Class:
        """The class that holds for all that was seen."""
        if self.broken is not None:
            return "different"
        return "bitwise" if self.first is None else "rounding"

    @property
    def of_data(self) -> bool:
        """Whether it was other data that was consumed."""
        return self.first is not None and any(f in DATA for f in self.first[1])

    def _deviate(self, name: str, recorded: StepRecord, again: StepRecord) -> None:
        a, b = (float32_of(getattr(r, f"{name}_bits")) for r in (recorded, again))
        if not (math.isfinite(a) and math.isfinite(b)) or a == b:
            return
        relative = abs(b - a) / abs(a) if a else float("inf")
        if name not in self.largest or relative > self.largest[name].relative:
            ulp = abs(_place(getattr(again, f"{name}_bits")) - _place(getattr(recorded, f"{name}_bits")))
            self.largest[name] = Deviation(step=recorded.step, recorded=a, again=b, relative=relative, ulp=ulp)


def class_of(text: str) -> Class:
    """The class that a person asks for. ConfigError for another word."""
    match text:
        case "bitwise" | "rounding":
            return text
        case _:
            raise ConfigError(f"--expect {text}: it is bitwise or rounding")


def satisfies(found: Class, asked: Class) -> bool:
    """Whether the class that was found is at least the one asked for."""
    order = ("different", "rounding", "bitwise")
    return order.index(found) >= order.index(asked)


def _place(bits: str) -> int:
    """Floats in their order as integers: neighbours differ by one."""
    raw = int(bits, 16)
    return raw if raw < 1 << 31 else (1 << 31) - raw
