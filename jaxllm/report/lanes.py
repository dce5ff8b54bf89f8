"""The lineages of a run as lanes: where each left the one that it came from, and what the run stands on."""

from html import escape

from jaxllm.ledger.lineage import Branch
from jaxllm.report.facts import Facts
from jaxllm.report.scale import steps_between

_WIDTH, _LANE, _LEFT, _RIGHT, _BOTTOM = 720, 22, 100, 12, 34
_MOST = 30  # the newest ones


def lanes(f: Facts) -> str:
    """An SVG; nothing for a run of one lineage."""
    branches = f.now.lineages.branches
    if len(branches) < 2:
        return ""
    shown = branches[-_MOST:]
    height = _LANE * len(shown) + _BOTTOM
    first, last = branches[0].step, max(last_step(f, b) for b in branches)

    def x(step: float) -> float:
        return _LEFT + (step - first) / max(last - first, 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(lineage: int) -> float:
        return _LANE * (lineage - shown[0].lineage) + _LANE / 2

    out = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="lineages over steps">']
    for tick in [t for t in steps_between(first, last) if t == int(t)]:
        anchor = "end" if x(tick) > _WIDTH - 52 else "middle"
        out.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - _BOTTOM}"/>')
        out.append(f'<text class="tick" text-anchor="{anchor}" x="{x(tick):.1f}" y="{height - 8}">{int(tick):,}</text>')
    for b in shown:
        if b.parent is not None and b.parent >= shown[0].lineage:
            out.append(f'<path class="branch" d="M{x(b.step):.1f} {y(b.parent):.1f}V{y(b.lineage):.1f}"/>')
        for begin, end, stands in _pieces(f, b):
            words = f"lineage {b.lineage}, steps {begin + 1:,} to {end:,}: " + ("stands" if stands else "left")
            d = f"M{x(begin):.1f} {y(b.lineage):.1f}H{x(end):.1f}"
            kind = "c0" if stands else "left"
            out.append(f'<path class="lane {kind}" d="{d}"><title>{escape(words)}</title></path>')
        where = f'x="{_LEFT - 8}" y="{y(b.lineage) + 5:.1f}"'
        out.append(f'<text class="tick" text-anchor="end" {where}>{b.lineage:,}</text>')
    out.append("</svg>")
    more = f"; the newest {_MOST} of {len(branches):,}" if len(branches) > _MOST else ""
    legend = '<ul class="legend"><li class="c0">what the run stands on</li><li class="left">left</li></ul>'
    return (
        f'<div class="charts"><figure><figcaption>Lineages over steps{more}</figcaption>{"".join(out)}{legend}'
        "</figure></div>"
    )


def _pieces(f: Facts, b: Branch) -> list[tuple[int, int, bool]]:
    """(step before the first, last step, whether the run stands on them) of a lineage."""
    end = last_step(f, b)
    stretch = next((s for s in f.now.lineages.path() if s.lineage == b.lineage), None)
    if stretch is None:
        return [(b.step, end, False)]
    until = end if stretch.last is None else min(stretch.last, end)
    return [(b.step, until, True), *([(until, end, False)] if end > until else [])]


def last_step(f: Facts, b: Branch) -> int:
    """The last step of a lineage; the one before its first if it has none."""
    stands = (s.last for s in f.now.lineages.path() if s.lineage == b.lineage)
    known = [f.step if b.lineage == f.now.lineage else None, f.steps.last_of(b.lineage), *stands]
    return max((step for step in known if step is not None), default=b.step)
