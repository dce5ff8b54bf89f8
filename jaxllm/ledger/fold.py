"""The present of a run as a fold over its journal, and the journal as lines for people."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.records import DATA

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A checkpoint that the journal knows of. Retention may have removed it since."""

    lineage: int
    step: int
    digest: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Present:
    """What a run is now. Before the first event, nothing has happened to it.

    starts: processes that have written to it, the first included. fence: of the last one. resumed_from: the step at
    which the last one went on. stages: (first step, name) of those begun along the live lineage. checkpoints: by
    commit, without those passed over as bad or overtaken by a re-save.
    claim: the class of agreement that the run may claim for itself (DESIGN.md section 4). A changed fingerprint lowers
    it to rounding; a divergence that none explains, to different. refused, spikes, divergences: of all lineages. A run
    that was finished is not any more once it is rolled back.
    """

    lineages: Lineages = field(default_factory=Lineages)
    starts: int = 0
    fence: int = 0
    identity: str | None = None
    fingerprint: str | None = None
    resumed_from: int = 0
    stages: tuple[tuple[int, str], ...] = ()
    checkpoints: tuple[Committed, ...] = ()
    bad_steps: tuple[int, ...] = ()
    refused: int = 0
    spikes: int = 0
    rollbacks: int = 0
    divergences: int = 0
    numerics_changes: int = 0
    claim: Literal["bitwise", "rounding", "different"] = "bitwise"
    finished: Committed | None = None
    stopped: str | None = None
    last_event: str | None = None
    last_time: str | None = None

    @property
    def lineage(self) -> int:
        """The live one."""
        return self.lineages.live

    @property
    def stage(self) -> str | None:
        """The one that the run is in."""
        return self.stages[-1][1] if self.stages else None

    def checkpoints_of(self, lineage: int | None = None) -> list[Committed]:
        """Those along the path of a lineage (None: the live one), by step."""
        on_path = [c for c in self.checkpoints if c.lineage == self.lineages.owner(c.step, lineage)]
        return sorted(on_path, key=lambda c: c.step)

    @property
    def last_checkpoint(self) -> Committed | None:
        """The newest one that stands, along the live lineage."""
        return max(self.checkpoints_of(), key=lambda c: c.step, default=None)


def present(events: Iterable[Event]) -> Present:
    """Fold events, in order. Events of a later jaxllm change nothing but `last_event`."""
    now = Present()
    for event in events:
        lineages = now.lineages.after(event)
        now = replace(_after(now, event), lineages=lineages, last_event=event["event"], last_time=event["time"])
    return now


def _after(now: Present, event: Event) -> Present:
    match event:
        case {"event": "start" | "resume"}:
            return replace(
                now,
                starts=now.starts + 1,
                fence=event["fence"],
                identity=event["identity"],
                fingerprint=event["fingerprint"],
                resumed_from=event.get("step", 0),
                stopped=None,
            )
        case {"event": "import" | "fork", "identity": identity}:
            return replace(now, identity=identity)
        case {"event": "numerics", "fingerprint": fingerprint}:
            claim = "rounding" if now.claim == "bitwise" else now.claim
            return replace(now, fingerprint=fingerprint, numerics_changes=now.numerics_changes + 1, claim=claim)
        case {"event": "stage", "step": step, "stage": stage}:
            return replace(now, stages=(*now.stages, (step, stage)))
        case {"event": "checkpoint", "lineage": lineage, "step": step, "digest": digest, "tokens": tokens}:
            kept = tuple(c for c in now.checkpoints if (c.lineage, c.step) != (lineage, step))
            saved = Committed(lineage=lineage, step=step, digest=digest, tokens=tokens)
            return replace(now, checkpoints=(*kept, saved), bad_steps=tuple(s for s in now.bad_steps if s != step))
        case {"event": "fallback", "lineage": lineage, "step": step}:
            kept = tuple(c for c in now.checkpoints if (c.lineage, c.step) != (lineage, step))
            return replace(now, checkpoints=kept, bad_steps=(*now.bad_steps, step))
        case {"event": "refused"}:
            return replace(now, refused=now.refused + 1)
        case {"event": "spike"}:
            return replace(now, spikes=now.spikes + 1)
        case {"event": "rollback", "step": to}:
            begun = tuple((step, stage) for step, stage in now.stages if step <= to)
            return replace(now, rollbacks=now.rollbacks + 1, stages=begun, finished=None, stopped=None)
        case {"event": "divergence", "fields": changed}:
            other_data = bool({*DATA} & set(changed))
            claim = "different" if now.claim == "bitwise" or other_data else now.claim
            return replace(now, divergences=now.divergences + 1, claim=claim)
        case {"event": "stop" | "guard_stop", "why": why}:
            return replace(now, stopped=why)
        case {"event": "finish", "lineage": lineage, "step": step, "digest": digest}:
            tokens = next((c.tokens for c in now.checkpoints if (c.lineage, c.step) == (lineage, step)), 0)
            return replace(now, finished=Committed(lineage=lineage, step=step, digest=digest, tokens=tokens))
        case _:
            return now


# What a person reads behind the name of an event.
_WORDS: Mapping[str, Callable[[Event], str]] = {
    "start": lambda e: f"identity {_short(e['identity'])}, numerics {_short(e['fingerprint'])}{_where(e)}{_from(e)}",
    "import": lambda e: f"{e['architecture']} from {len(e['files'])} files, identity {_short(e['identity'])}",
    "resume": lambda e: f"from step {e['step']:,}, numerics {_short(e['fingerprint'])}{_where(e)}",
    "numerics": lambda e: f"from step {e['step']:,} on numbers may differ in rounding: {_list(e['changes'])}",
    "stage": lambda e: f"{e['stage']} begins with step {e['step']:,}, at sequence {e['cursor']:,}",
    "checkpoint": lambda e: f"step {e['step']:,} saved, {e['tokens']:,} tokens, state {_short(e['digest'])}",
    "fallback": lambda e: f"the checkpoint of step {e['step']:,} was passed over: {e['why']}",
    "divergence": lambda e: f"step {e['step']:,} came out otherwise than recorded, in {_list(e['fields'])}",
    "refused": lambda e: f"the update of step {e['step']:,} was refused: it was not applied",
    "spike": lambda e: f"step {e['step']:,}: {_spike(e)}; {e['action']}",
    "recovered": lambda e: f"the spike of step {e['spike']:,} was benign: back below its limit at step {e['step']:,}",
    "rollback": lambda e: f"back from step {e['last']:,} to step {e['step']:,}{_edits(e)}, by {e['by']}: {e['why']}",
    "skip": lambda e: f"from step {e['step']:,} on{_edits(e)}, by {e['by']}: {e['why']}",
    "defer": lambda e: f"from step {e['step']:,} on{_edits(e)}, by {e['by']}: {e['why']}",
    "fault": lambda e: f"step {e['step']:,}: {e['what']}, injected on purpose",
    "selfcheck": lambda e: f"step {e['step']:,}: {e['what']}: {_list(e['fields'])}",
    "fork": lambda e: (
        f"from step {e['step']:,} of {e['origin']['run']} (state {_short(e['origin']['digest'])}); "
        f"amended: {_list(e['changes'])}"
    ),
    "hang": lambda e: f"step {e['step']:,} did not end; the watchdog of process {e['process']} did: {e['why']}",
    "stop": lambda e: f"left after step {e['step']:,}: {e['why']}",
    "guard_stop": lambda e: f"the guard stopped the run after step {e['step']:,}: {e['why']}",
    "finish": lambda e: f"step {e['step']:,} was the last; state {_short(e['digest'])}",
}


def story(events: Iterable[Event]) -> list[str]:
    """One line per event: time (UTC), event, what happened. Events of a later jaxllm show their fields as they are."""
    events = list(events)
    width = max((len(e["event"]) for e in events), default=0)
    return [f"{_time(e)}  {e['event']:<{width}}  {sentence(e)}".rstrip() for e in events]


def sentence(event: Event) -> str:
    """What happened, without time and name of the event."""
    words = _WORDS.get(event["event"])
    if words is None:
        own = ("schema", "seq", "time", "event", "prev", "hash")
        return ", ".join(f"{name}={event[name]}" for name in sorted(event) if name not in own)
    lineage = event.get("lineage", 0)
    return words(event) + (f" [lineage {lineage}]" if lineage else "")


def _time(event: Event) -> str:
    return str(event["time"])[:19].replace("T", " ")


def _short(digest: str) -> str:
    return digest[:12]


def _where(event: Event) -> str:
    process = f" process {event['pid']}" if "pid" in event else ""
    host = f" on {event['host']}" if "host" in event else ""
    return f",{process}{host}" if process or host else ""


def _from(event: Event) -> str:
    if "origin" not in event:
        return ""
    o = event["origin"]
    return f", from step {o['step']:,} of {o['run']} (state {_short(o['digest'])}, optimizer {o['optimizer']})"


def _spike(event: Event) -> str:
    """What was too high."""
    if event["signal"] == "non_finite":
        return "loss or gradient is not finite"
    what = {"loss": "the loss", "grad_norm": "the gradient norm"}.get(event["signal"], event["signal"])
    value, limit = event.get("value"), event.get("limit")
    if value is None or limit is None:
        return f"{what} is too high"
    return f"{what} is {value:.4g}, above {limit:.4g}"


def _edits(event: Event) -> str:
    """What happens to the stream."""
    words = {"skip": "left out", "defer": "moved to the end of the stage"}
    found = [
        f"sequences {e['first']:,} to {e['first'] + e['count'] - 1:,} {words.get(e['kind'], e['kind'])}"
        for e in event["edits"]
    ]
    return f", {'; '.join(found)}" if found else ", with the same data" if event["event"] == "rollback" else ""


def _list(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items)) or "nothing"
