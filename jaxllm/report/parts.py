"""The sections of the page. Everything that comes from a run is escaped here."""

from collections.abc import Sequence
from html import escape

from jaxllm.ledger.fold import sentence
from jaxllm.models.count import parameters
from jaxllm.report.chart import ODD, Line, Mark, chart, mark_key
from jaxllm.report.facts import AROUND, LISTED, CloseUp, Facts
from jaxllm.report.goodput import PARTS, UNRECORDED
from jaxllm.report.html import Cell, heading, many, none, table
from jaxllm.report.lanes import lanes, last_step
from jaxllm.report.scale import number
from jaxllm.report.thin import Point

_MARKED = ("rollback", "spike", "stage", "resume", "divergence", "fallback", "guard_stop", "skip", "defer", "fork")


def header(f: Facts) -> str:
    """Name, identity, model, state, progress."""
    now, tokens = f.now, f.steps.sequences * f.run.data.seq_len
    stages = f.run.data.stages
    items = {
        "state": _state(f),
        "progress": f"step {f.step:,} of {f.run.steps:,} ({f.step / max(f.run.steps, 1):.1%}), "
        f"{tokens:,} of {f.run.tokens:,} tokens recorded here",
        "stage": now.stage or "none begun",
        "stages": ", ".join(f"{s.name} ({s.steps:,} steps of {s.batch_size:,} sequences)" for s in stages) or "none",
        "model": f"{parameters(f.run.model):,} parameters, {f.run.model.layers} layers, width {f.run.model.width}",
        "identity": f.identity,
        "numerics": now.fingerprint or "not started",
        "claim": f"{now.claim}; {many(now.divergences, 'divergence')}, {many(now.numerics_changes, 'numerics change')}",
        "history": f"{many(now.starts, 'process', 'processes')}, {many(now.rollbacks, 'rollback')}, "
        f"{many(now.spikes, 'spike')}, {many(now.refused, 'refused update')}, lineage {now.lineage} is live",
        "last event": f"{now.last_event} at {now.last_time}" if now.last_event else "none",
    }
    if f.steps.ahead:
        steps = many(f.steps.ahead, "step is", "steps are")
        items["copy"] = f"{steps} of a lineage that this journal does not know of yet"
    if f.run.faults:
        items["faults"] = f"{len(f.run.faults)} are injected on purpose, as the config says"
    return heading(f.run.name, items)


def curves(f: Facts) -> str:
    """Loss, held-out, gradient norm, learning rate, speed."""
    listed = {e["seq"] for e in f.listed}
    marks = [
        Mark(
            step=e["step"],
            kind=e["event"],
            text=f"{e['event']}: {sentence(e)}",
            href=f"#event-{e['seq']}" if e["seq"] in listed else "#events",
        )
        for e in f.events
        if e["event"] in _MARKED and "step" in e
    ]
    logged, heldout = f.speeds.standing()
    left = f.speeds.left()
    sources = sorted({h.source for h in heldout})
    scores = [
        Line(name=s, colour=i, dots=True, points=[Point(h.step, h.bits_per_byte) for h in heldout if h.source == s])
        for i, s in enumerate(sources)
    ]
    scores += [
        Line(
            name=f"{s}, left",
            left=True,
            dots=True,
            alone=True,  # of several lineages
            points=sorted(Point(h.step, h.bits_per_byte) for h in left if h.source == s),
        )
        for s in sorted({h.source for h in left})
    ]
    speed = [Point(x.step, x.tokens_per_second) for x in logged if x.tokens_per_second is not None]
    mfu = [Point(x.step, x.mfu) for x in logged if x.mfu is not None]
    charts = [
        chart("Training loss, nats per token", recorded(f, "loss"), marks),
        chart("Held-out bits per byte", scores, marks),
        chart("Gradient norm", recorded(f, "grad_norm"), marks, scale="log"),
        chart("Learning rate", recorded(f, "lr"), marks, zero=True),
        chart("Tokens per second, as logged", [Line(name="", points=speed)], marks, zero=True),
        chart("Model FLOPs utilization, as logged", [Line(name="", points=mfu)], marks, zero=True),
    ]
    kinds = [("spike", "spike or rollback"), ("", "stage, resume and other events")]
    seen = [k for k, here in zip(kinds, (True, False), strict=True) if any((m.kind in ODD) is here for m in marks)]
    note = "Over steps. Point at a curve for its numbers; upright lines lead to their events."
    return f'<p class="dim">{note}</p>{mark_key(seen)}<div class="charts">{"".join(charts)}</div>'


def recorded(
    f: Facts, name: str, first: int | None = None, last: int | None = None, only: int | None = None
) -> list[Line]:
    """A number of the step records: the history that stands, and every lineage that was left from where it was left.

    only: of those that were left, this one.
    """
    wanted = (lineage for lineage in sorted(f.steps.left) if only in (None, lineage))
    left = ((lineage, f.steps.left[lineage].points(name, first, last)) for lineage in wanted)
    return [
        Line(name=f"lineage {f.now.lineage}", points=f.steps.live.points(name, first, last)),
        *(Line(name=f"lineage {lineage}, left", left=True, points=points) for lineage, points in left),
    ]


def time_spent(f: Facts) -> str:
    """Goodput as a bar and a table."""
    g = f.goodput
    if g.untold is not None or g.total <= 0:
        return none(f"Nothing can be said of it: {g.untold or 'no time has passed'}.")
    out, at = [], 0.0
    keys = list(PARTS)
    for key in keys:
        width = g.seconds[key] / g.total * 720
        colour = f"c{keys.index(key)}" if key != "absent" else "left"
        label = f"{PARTS[key][0]}: {g.seconds[key]:,.1f} s"
        out.append(
            f'<rect class="{colour}" x="{at:.1f}" y="0" width="{width:.1f}" height="26"><title>{label}</title></rect>'
        )
        at += width
    rows = [(PARTS[k][0], f"{g.seconds[k]:,.1f}", f"{g.seconds[k] / g.total:.1%}", PARTS[k][1]) for k in keys]
    names = "".join(
        f'<li class="{f"c{i}" if k != "absent" else "left"}">{PARTS[k][0]}</li>' for i, k in enumerate(keys)
    )
    bar = f'<svg viewBox="0 0 720 26" role="img" aria-label="time by part">{"".join(out)}</svg>'
    said = "".join(f"<li>{escape(line)}</li>" for line in UNRECORDED)
    return (
        f"<p>{g.share:.1%} of {g.total:,.0f} s went into steps that the run stands on, in "
        f"{many(g.processes, 'process', 'processes')}.</p>"
        f'{bar}<ul class="legend">{names}</ul>{table(("part", "seconds#", "share#", "taken from"), rows)}'
        f'<ul class="dim">{said}</ul>'
    )


def mixture(f: Facts) -> str:
    """Planned against achieved shares."""
    if f.storeless is not None:
        return none(f"The token store is not here: {f.storeless}.")
    rows = [
        (
            s.stage,
            s.source,
            f"{s.planned:.2%}",
            f"{s.sequences / s.counted:.2%}" if s.counted else "not begun",
            f"{s.sequences:,}",
            f"{s.counted:,}",
        )
        for s in f.mixture
    ]
    return table(("stage", "source", "planned#", "achieved#", "sequences#", "of, counted#"), rows)


def checkpoints(f: Facts) -> str:
    """Every checkpoint that the journal knows of."""
    if not f.now.checkpoints:
        return none("None was saved yet.")
    seqs = {(e["lineage"], e["step"]): e["seq"] for e in f.listed if e["event"] == "checkpoint"}
    rows: list[Sequence[Cell]] = []
    for c in f.now.checkpoints[-LISTED:]:
        seq = seqs.get((c.lineage, c.step))
        step: Cell = f"{c.step:,}" if seq is None else (f"{c.step:,}", f"event-{seq}")
        stands = f.now.lineages.owner(c.step) == c.lineage
        rows.append((step, str(c.lineage), f"{c.tokens:,}", "stands" if stands else "left", c.digest))
    newest = f" The newest {LISTED:,} of {len(f.now.checkpoints):,}." if len(f.now.checkpoints) > LISTED else ""
    note = f'<p class="dim">As committed; retention may have removed some from the disk since.{newest}</p>'
    return note + table(("step#", "lineage#", "tokens#", "history", "state digest"), rows)


def lineages(f: Facts) -> str:
    """The branches of history."""
    rows = []
    for b in f.now.lineages.branches:
        last = last_step(f, b)
        parent = "none" if b.parent is None else f"lineage {b.parent}, after step {b.step:,}"
        edits = "; ".join(f"{e.kind} {e.first:,} to {e.first + e.count - 1:,}" for e in b.edits) or "none"
        rows.append((str(b.lineage), parent, f"{last:,}", edits, "live" if b.lineage == f.now.lineage else "left"))
    return lanes(f) + table(("lineage#", "parent", "last step#", "sequences edited", "state"), rows)


def time_line(f: Facts) -> str:
    """Every event, with links to the close-ups."""
    if not f.events:
        return none("Nothing has happened yet.")
    anchors = {seq: c.anchor for c in f.close_ups for seq in c.seqs}
    rows: list[Sequence[Cell]] = []
    for e in f.listed:
        look: Cell = ("close-up", anchors[e["seq"]]) if e["seq"] in anchors else ""
        rows.append((str(e["seq"]), str(e["time"])[:19].replace("T", " "), e["event"], sentence(e), look))
    columns, ids = ("event#", "time (UTC)", "what", "in words", "close-up"), [f"event-{e['seq']}" for e in f.listed]
    count = f"<p>{len(f.listed):,} of {len(f.events):,}; all: <code>jaxllm journal {escape(str(f.folder))}</code></p>"
    return (count if len(ids) < len(f.events) else "") + table(columns, rows, ids)


def close_ups(f: Facts) -> str:
    """Loss and gradient norm around what went wrong, and the sequences of that step."""
    if not f.close_ups:
        return none("No spike, no refused update, no rollback.")
    more = f"<p>{f.close_ups_left_out:,} earlier ones are left out.</p>" if f.close_ups_left_out else ""
    return more + "".join(_close_up(f, c) for c in f.close_ups)


def _close_up(f: Facts, c: CloseUp) -> str:
    first, last = c.step - AROUND, c.step + AROUND
    events = {e["seq"]: e for e in f.events}
    said = "".join(
        f'<li><a href="#event-{s}">{escape(events[s]["event"])}</a>: {escape(sentence(events[s]))}</li>' for s in c.seqs
    )
    marks = [Mark(step=c.step, kind="spike", text=f"step {c.step}", href=f"#event-{c.seqs[0]}")]
    charts = "".join(
        chart(title, recorded(f, name, first, last, only=c.lineage), marks, scale="log", whole=True)
        for title, name in (("Training loss", "loss"), ("Gradient norm", "grad_norm"))
    )
    rows = [
        (
            str(r.row),
            number(r.loss) if r.recorded else "not recorded",
            r.source,
            ", ".join(r.documents[:12]) + (f" and {len(r.documents) - 12} more" if len(r.documents) > 12 else ""),
        )
        for r in c.rows
    ]
    found = (
        table(("row#", "loss, nats per token#", "source", "documents"), rows)
        if rows
        else none(f"Its documents cannot be named: {f.storeless or 'there is no such step'}.")
    )
    command = f"jaxllm data step {f.folder} {c.step} --lineage {c.lineage} --decode"
    return (
        f'<section id="{c.anchor}"><h3>Step {c.step:,} of lineage {c.lineage}</h3><ul>{said}</ul>'
        f'<div class="charts">{charts}</div><p>The sequences of the step with the highest loss; all of them: '
        f"<code>{escape(command)}</code></p>{found}</section>"
    )


def _state(f: Facts) -> str:
    now = f.now
    if now.finished is not None:
        return f"finished at step {now.finished.step:,}, state {now.finished.digest}"
    if f.held:
        return "running"
    if now.stopped is not None:
        return f"stopped: {now.stopped}"
    if not f.events:
        return "not started"
    if f.held is None:
        return "not ended, as far as this machine can tell: its lease is held on another one"
    return "interrupted: its process is gone and wrote no end"
