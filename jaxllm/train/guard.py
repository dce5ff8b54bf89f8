"""What to do about a step once its numbers are known. No jax: a policy is a function of records.

The step itself refuses a non-finite update on the device, so a judgement may come late without harm.

A verdict depends on the records of the last steps along the lineage and on the journal alone (`lookback` says how many
steps), so a process that was killed and started again comes to the verdicts that the first one would have come to.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, assert_never

from jaxllm.train.config import Action, Guard, Refuse, Rewind, Warn
from jaxllm.train.spikes import Baseline

Event = Mapping[str, Any]


class Numbers(Protocol):
    """What is judged of a step; a StepRecord has it."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def grad_norm(self) -> float | None: ...
    @property
    def refused(self) -> bool: ...


class Seen(NamedTuple):
    """These numbers alone, to be handed on."""

    step: int
    loss: float | None
    grad_norm: float | None
    refused: bool


@dataclass(frozen=True)
class Note:
    """Something for the journal: an event with its fields."""

    event: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Keep:
    """The step stands."""

    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Back:
    """Go back before step `first`, where it began to go wrong; `last` was judged last. data: as in config.Rewind."""

    first: int
    last: int
    data: str
    why: str
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Stop:
    """The run cannot go on by itself."""

    why: str
    notes: tuple[Note, ...] = ()


Decision = Keep | Back | Stop


def lookback(policy: Guard) -> int:
    """How many records before a step its verdict may depend on."""
    spikes = policy.spikes
    return max(policy.max_refused, 0 if spikes is None else spikes.window + policy.lag + spikes.recover_within + 3)


def went_back(events: Iterable[Event]) -> list[int]:
    """At which steps the guard went back, those of the run that this one was forked from included."""
    found: list[int] = []
    for event in events:
        match event:
            case {"event": "fork", "went_back": [*steps]}:
                found += steps
            case {"event": "rollback", "by": "guard", "last": last}:
                found.append(last)
            case _:
                pass
    return found


class Judge:
    """Judges one step after the other along a lineage."""

    def __init__(self, policy: Guard, seen: Iterable[Numbers] = (), went_back: Iterable[int] = ()) -> None:
        """seen: at least the `lookback` last steps before the one that is judged first, in order. went_back: at which
        steps the guard went back already."""
        self.policy = policy
        self._went_back = list(went_back)
        self._refused_in_a_row = 0
        self._baseline = None if policy.spikes is None else Baseline(policy.spikes, policy.lag)
        self._high = 0  # finite steps in a row that were too high, as far as it matters
        self._began = 0  # the first of them
        for numbers in seen:
            self._see(numbers)

    def judge(self, record: Numbers) -> Decision:
        """One judgement per step, in order."""
        policy, spikes = self.policy, self.policy.spikes
        was_high, began = self._high, self._began
        signal, value, limit = self._see(record)
        notes: list[Note] = []
        if signal is None and spikes is not None and 0 < was_high <= spikes.recover_within:
            notes.append(Note("recovered", {"step": record.step, "spike": began}))
        if signal == "non_finite":
            action: Action = policy.non_finite
            notes.append(_spike(record.step, signal, None, None, action))
            if isinstance(action, Rewind):
                return self._rewind(record.step, record.step, action, "loss or gradient was not finite", notes)
        elif signal is not None and spikes is not None:
            if self._high == 1:
                # Refuse limits the gradient norm alone: of a loss it is known only once the update was applied.
                applied = isinstance(spikes.action, Refuse) and not record.refused
                notes.append(_spike(record.step, signal, value, limit, Warn() if applied else spikes.action))
            if self._high == spikes.recover_within + 1 and isinstance(spikes.action, Rewind):
                why = f"{signal} was {value:.4g} at step {record.step}, above {limit:.4g}"
                if spikes.recover_within:
                    why += f", and had not recovered from the spike of step {self._began}"
                return self._rewind(self._began, record.step, spikes.action, why, notes)
        if self._refused_in_a_row >= policy.max_refused:
            why = (
                f"{self._refused_in_a_row} updates in a row were refused, the last at step {record.step}; lower the "
                f"learning rate or look at the data: jaxllm data step RUN {record.step}"
            )
            return Stop(why, tuple(notes))
        return Keep(tuple(notes))

    def norm_limit(self, step: int) -> float:
        """The gradient norm above which update `step` is refused on the device; infinite unless the policy says so."""
        spikes = self.policy.spikes
        if spikes is None or self._baseline is None or not isinstance(spikes.action, Refuse):
            return float("inf")
        return self._baseline.norm_limit(step)

    def back(self, first: int, last: int, data: str, why: str, remedy: str, notes: Iterable[Note] = ()) -> Back | Stop:
        """Going back before step `first`, unless it was done as often as the policy allows. remedy: what to do then."""
        policy = self.policy
        often = sum(step > last - policy.rollbacks_within for step in self._went_back)
        if often >= policy.max_rollbacks:
            return Stop(
                f"{why}; the guard went back {often} times within {policy.rollbacks_within} steps already; {remedy}",
                tuple(notes),
            )
        return Back(first, last, data, why, tuple(notes))

    def _see(self, record: Numbers) -> tuple[str | None, float | None, float | None]:
        """(signal, its value, the limit that it is above) of a step, which is counted from here on."""
        signal: tuple[str | None, float | None, float | None] = (None, None, None)
        if record.loss is None or record.grad_norm is None:
            signal = ("non_finite", None, None)
        elif self._baseline is not None:
            signal = self._baseline.signal(record.step, record.loss, record.grad_norm)
        self._refused_in_a_row = self._refused_in_a_row + 1 if record.refused else 0
        if signal[0] in (None, "non_finite"):  # which is acted on by itself
            self._high = 0
        elif self.policy.spikes is not None:
            self._began = self._began if self._high else record.step
            self._high = min(self._high + 1, self.policy.spikes.recover_within + 2)
        if self._baseline is not None:
            self._baseline.add(record.step, record.loss, record.grad_norm)
        return signal

    def _rewind(self, first: int, last: int, action: Rewind, why: str, notes: list[Note]) -> Back | Stop:
        remedy = f"look at jaxllm journal RUN and jaxllm data step RUN {first}, or raise guard.max_rollbacks"
        return self.back(first, last, action.data, why, remedy, notes)


def _spike(step: int, signal: str, value: float | None, limit: float | None, action: Action) -> Note:
    match action:
        case Warn():
            words = "warn"
        case Refuse():
            words = "refuse"
        case Rewind(data=data):
            words = f"rewind: {data}"
        case _:
            assert_never(action)
    return Note("spike", {"step": step, "signal": signal, "value": value, "limit": limit, "action": words})
