"""The present of a run as a fold over its journal, and the journal as lines for people."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

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
    which the last one went on. checkpoints: by commit, without those passed over as bad or overtaken by a re-save.
    claim: the class of agreement that the run may claim for itself (DESIGN.md section 4). A changed fingerprint lowers
    it to rounding; a divergence that none explains, to different.
    """

    lineage: int = 0
    starts: int = 0
    fence: int = 0
    identity: str | None = None
    fingerprint: str | None = None
    resumed_from: int = 0
    stage: str | None = None
    checkpoints: tuple[Committed, ...] = ()
    bad_steps: tuple[int, ...] = ()
    refused: int = 0
    divergences: int = 0
    numerics_changes: int = 0
    claim: Literal["bitwise", "rounding", "different"] = "bitwise"
    finished: Committed | None = None
    stopped: str | None = None
    last_event: str | None = None
    last_time: str | None = None

    @property
    def last_checkpoint(self) -> Committed | None:
        """The newest one that stands, in the live lineage."""
        mine = [c for c in self.checkpoints if c.lineage == self.lineage]
        return max(mine, key=lambda c: c.step, default=None)


def present(events: Iterable[Event]) -> Present:
    """Fold events, in order. Events of a later jaxllm change nothing but `last_event`."""
    now = Present()
    for event in events:
        now = replace(_after(now, event), last_event=event["event"], last_time=event["time"])
    return now


def _after(now: Present, event: Event) -> Present:
    match event:
        case {"event": "start" | "resume", "lineage": lineage}:
            return replace(
                now,
                lineage=lineage,
                starts=now.starts + 1,
                fence=event["fence"],
                identity=event["identity"],
                fingerprint=event["fingerprint"],
                resumed_from=event.get("step", 0),
                stopped=None,
            )
        case {"event": "import", "lineage": lineage}:
            return replace(now, lineage=lineage, identity=event["identity"])
        case {"event": "numerics", "fingerprint": fingerprint}:
            claim = "rounding" if now.claim == "bitwise" else now.claim
            return replace(now, fingerprint=fingerprint, numerics_changes=now.numerics_changes + 1, claim=claim)
        case {"event": "stage", "stage": stage}:
            return replace(now, stage=stage)
        case {"event": "checkpoint", "lineage": lineage, "step": step, "digest": digest, "tokens": tokens}:
            kept = tuple(c for c in now.checkpoints if (c.lineage, c.step) != (lineage, step))
            saved = Committed(lineage=lineage, step=step, digest=digest, tokens=tokens)
            return replace(now, checkpoints=(*kept, saved), bad_steps=tuple(s for s in now.bad_steps if s != step))
        case {"event": "fallback", "lineage": lineage, "step": step}:
            kept = tuple(c for c in now.checkpoints if (c.lineage, c.step) != (lineage, step))
            return replace(now, checkpoints=kept, bad_steps=(*now.bad_steps, step))
        case {"event": "refused"}:
            return replace(now, refused=now.refused + 1)
        case {"event": "divergence", "fields": changed}:
            other_data = bool({"batch", "cursor", "stage", "sequences", "tokens"} & set(changed))
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
    "refused": lambda e: f"step {e['step']:,} was not finite; its update was not applied",
    "hang": lambda e: f"step {e['step']:,} did not end; the watchdog of process {e['process']} did: {e['why']}",
    "stop": lambda e: f"left after step {e['step']:,}: {e['why']}",
    "guard_stop": lambda e: f"the guard stopped the run after step {e['step']:,}: {e['why']}",
    "finish": lambda e: f"step {e['step']:,} was the last; state {_short(e['digest'])}",
}


def story(events: Iterable[Event]) -> list[str]:
    """One line per event: time (UTC), event, what happened. Events of a later jaxllm show their fields as they are."""
    events = list(events)
    width = max((len(e["event"]) for e in events), default=0)
    return [f"{_time(e)}  {e['event']:<{width}}  {_sentence(e)}".rstrip() for e in events]


def _sentence(event: Event) -> str:
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


def _list(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items)) or "nothing"
