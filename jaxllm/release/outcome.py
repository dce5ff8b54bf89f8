"""`jaxllm replay`, with and without `--bisect`, from its arguments to what it prints and returns."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxllm.core.config import override
from jaxllm.core.errors import EXIT_CHECK_FAILED, EXIT_DONE
from jaxllm.core.floats import finite_or_none
from jaxllm.progress import people, phase_progress
from jaxllm.release.agreement import Class, class_of
from jaxllm.release.bisected import Bisected, bisect_interval
from jaxllm.release.deviation import StateDeviation
from jaxllm.release.replay import Replayed, replay_interval
from jaxllm.release.verdict import Piece
from jaxllm.run import RunConfig
from jaxllm.workspace import open_run

Json = dict[str, Any]
_WHAT = {"loss": "loss", "grad_norm": "gradient norm"}
_ITEM = {"params": "parameters", "opt": "optimizer state", "ema": "averaged parameters"}


@contextlib.contextmanager
def _asked(folder: Path, mesh: str | None, expect: str | None) -> Iterator[tuple[RunConfig, dict[str, Any]]]:
    """(the run, as it is to be executed; what a replay takes beside the interval), while progress is shown."""
    asked = None if expect is None else class_of(expect)
    run = open_run(folder)
    if mesh is not None:
        run = override(run, [f"mesh.{part.strip()}" for part in mesh.split(",")])
    console = people(stderr=True)
    with phase_progress(console) as progress:
        yield (
            run,
            {
                "asked": asked,
                "said": lambda line: console.print(line, highlight=False, markup=False),
                "report": progress,
            },
        )


def replay_run(
    folder: Path, start: int, stop: int, *, mesh: str | None, expect: str | None, lineage: int | None
) -> tuple[Replayed, int]:
    """What came of it, and the exit code. mesh: `dp=2,tp=2`, None takes the run's own."""
    with _asked(folder, mesh, expect) as (run, how):
        found = replay_interval(run, folder, start, stop, lineage=lineage, **how)
    return found, EXIT_DONE if found.holds else EXIT_CHECK_FAILED


def bisect_run(
    folder: Path, start: int, stop: int, *, mesh: str | None, expect: str | None, lineage: int | None
) -> tuple[Bisected, int]:
    """As `replay_run`, piece by piece."""
    with _asked(folder, mesh, expect) as (run, how):
        found = bisect_interval(run, folder, start, stop, lineage=lineage, **how)
    return found, EXIT_DONE if found.holds else EXIT_CHECK_FAILED


def bisected_json(found: Bisected) -> Json:
    """For programs."""
    return {**dataclasses.asdict(found), "holds": found.holds, "steps": sum(p.steps for p in found.pieces)}


def bisected_lines(found: Bisected) -> list[str]:
    """For people; the verdict comes last, with what it does not rule out."""
    said = [f"steps {piece.first + 1} to {piece.last}: {_piece(piece, found.asked)}" for piece in found.pieces]
    if (behind := found.pieces[-1].last) < found.last:
        said.append(f"steps {behind + 1} to {found.last}: not executed; they say nothing more about what was found")
    said.append(f"{found.verdict.kind}: {found.verdict.said}")
    if not found.holds and found.asked == "rounding":
        said.append(
            "  numbers that drift faster than STATE_TOLERANCE allows look the same: the environment is another one"
        )
    return said


def _piece(piece: Piece, asked: Class) -> str:
    if piece.begins == "damaged":
        return "not executed: their checkpoint is damaged"
    told = [f"checkpoint {piece.first}: {piece.why}"] if piece.why else []
    if piece.records is not None:
        step, fields = piece.records
        told.append(f"recorded otherwise from step {step} on, in {', '.join(fields)}")
    if piece.ends is False:
        told.append(f"another state after step {piece.last}")
    return "; ".join(told) or asked


def as_json(found: Replayed) -> Json:
    """For programs."""
    agreement = found.agreement
    return {
        "first": found.first,
        "last": found.last,
        "class": agreement.found,
        "asked": found.asked,
        "holds": found.holds,
        "steps": agreement.steps,
        "states": found.states,
        "first_difference": _pair("fields", agreement.first),
        "broken": _pair("what", agreement.broken),
        "largest": {name: dataclasses.asdict(d) for name, d in agreement.largest.items()},
        "state_deviations": [_state_json(d) for d in agreement.states],
        "changes": list(found.changes),
        "reason": found.reason,
    }


def lines(found: Replayed) -> list[str]:
    """For people; the first one says which class holds."""
    agreement = found.agreement
    verdict = agreement.found if found.holds else f"{agreement.found}, and {found.asked} was asked for"
    said = [
        f"steps {found.first} to {found.last}: {verdict} ({agreement.steps} steps and {found.states} state digests "
        f"compared)"
    ]
    if agreement.first is not None:
        step, fields = agreement.first
        said.append(f"  first difference at step {step}, in {', '.join(fields)}")
    for name, d in agreement.largest.items():
        said.append(
            f"  largest deviation of the {_WHAT[name]}: {d.relative:.2g} relative, {d.ulp:,} ulp, at step {d.step} "
            f"({d.recorded:.9g} recorded, {d.again:.9g} now)"
        )
    # The first one is closest to what happened, the last one has drifted furthest.
    for deviation in agreement.states[:1] + agreement.states[1:][-1:]:
        said += _state_lines(deviation)
    if agreement.broken is not None:
        said.append(f"  more than rounding at step {agreement.broken[0]}: {agreement.broken[1]}")
    if found.reason is not None:
        said.append(f"  {found.reason}")
    return said


def _state_lines(found: StateDeviation) -> list[str]:
    if found.unread is not None:
        return [f"  another state after step {found.step}; how far it is off cannot be told: {found.unread}"]
    said = []
    for item in found.items:
        count = f"{item.differing} of {item.arrays} arrays of the {_ITEM[item.item]}"
        line = f"  state after step {found.step}: {count} differ"
        if (off := item.furthest) is not None:
            line += f", the furthest off is {off.name}: {off.relative:.2g} relative, {off.ulp:,} ulp"
        said.append(line)
    return said


def _state_json(found: StateDeviation) -> Json:
    """As it is, but for infinities, which JSON does not have: null."""
    encoded: Json = dataclasses.asdict(found)
    for item in encoded["items"]:
        if item["furthest"] is not None:
            item["furthest"] |= {name: finite_or_none(item["furthest"][name]) for name in ("relative", "largest")}
    return encoded


def _pair(name: str, at: tuple[int, Any] | None) -> Json | None:
    return None if at is None else {"step": at[0], name: at[1]}
