"""Classes of agreement: how a step that was executed again holds against its record. No jax.

bitwise: every exact field is equal. rounding: the same data, a first loss within the rounding of another program, and
states no further off than that rounding grows; losses that follow are reported as they are. different: anything else.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxllm.core.errors import ConfigError
from jaxllm.core.floats import float32_of
from jaxllm.ledger.records import DATA, StepRecord, compare
from jaxllm.release.deviation import StateDeviation

Class = Literal["bitwise", "rounding", "different"]

# Relative difference of the first loss, by the type of matrix products, that another order of sums explains.
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-4}
# Relative deviation (of an array) for every step since the state was begun, by the type of matrix products,
# that rounding explains: of parameters, and of moments. An update moves a parameter by about the learning rate
# whatever its gradient's length, so drift grows with the number of steps and not faster. The golden run in slices of
# another size is off by at most 1.5e-7 and 6e-7 a step in float32, 3.5e-3 and 1.6e-2 in bfloat16; this is thirteen and
# two and a half times that. Chaotic training drifts faster in the end: `--bisect` begins anew with every checkpoint.
STATE_TOLERANCE = {"float32": {"parameters": 2e-6, "moments": 1e-5}, "bfloat16": {"parameters": 1e-2, "moments": 4e-2}}
_KIND = {"params": "parameters", "ema": "parameters", "opt": "moments"}
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
    states: how far those are off that have another digest, by step.
    """

    compute: str
    steps: int = 0
    first: tuple[int, list[str]] | None = None
    broken: tuple[int, str] | None = None
    largest: dict[str, Deviation] = field(default_factory=dict)
    states: list[StateDeviation] = field(default_factory=list)

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

    def hold_state(self, step: int, deviation: StateDeviation | None) -> None:
        """The state after a step; None where it has the recorded digest."""
        if deviation is None:
            return
        self.states.append(deviation)
        if self.first is None:
            self.first = (step, ["state digest"])
        for item in deviation.items:
            if self.broken is not None or item.furthest is None:
                continue
            allowed = deviation.after * STATE_TOLERANCE[self.compute][_KIND[item.item]]
            if (off := item.furthest.relative) > allowed:
                self.broken = (step, f"{item.furthest.name} is off by {off:.2g} relative, above {allowed:.2g}")

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
        bits = [getattr(r, f"{name}_bits") for r in (recorded, again)]
        if bits[0] == bits[1]:
            return
        a, b = map(float32_of, bits)
        if not (math.isfinite(a) and math.isfinite(b)) or a == b:
            return
        relative = abs(b - a) / abs(a) if a else float("inf")
        if name not in self.largest or relative > self.largest[name].relative:
            ulp = abs(_place(bits[1]) - _place(bits[0]))
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
