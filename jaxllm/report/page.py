"""`jaxllm report`: a run as one HTML file that needs nothing else. No jax."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxllm.report import parts
from jaxllm.report.facts import Facts, gather
from jaxllm.report.html import document, write_page

# Title -> what fills it, in the order of the page.
SECTIONS: Mapping[str, Callable[[Facts], str]] = {
    "Curves": parts.curves,
    "Time": parts.time_spent,
    "Mixture": parts.mixture,
    "Checkpoints": parts.checkpoints,
    "Lineages": parts.lineages,
    "Events": parts.time_line,
    "Close-ups": parts.close_ups,
}


def report_run(folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Write the report of a run, finished or running, to `out` (default: report.html in its folder); says where.

    RunError, LedgerError: there is no run, or its record does not hold; then nothing is written.
    """
    target = folder / "report.html" if out is None else out
    facts = gather(folder)
    write_page(target, page(facts))
    return {
        "run": facts.run.name,
        "file": str(target),
        "step": facts.step,
        "events": len(facts.events),
        "close_ups": len(facts.close_ups),
        "goodput": facts.goodput.share,
    }


def page(facts: Facts) -> str:
    """The HTML."""
    sections = {title: fill(facts) for title, fill in SECTIONS.items()}
    return document(f"{facts.run.name}: jaxllm report", parts.header(facts), sections)
