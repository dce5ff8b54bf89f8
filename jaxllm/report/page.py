"""`jaxllm report`: a run as one HTML file that needs nothing else. No jax."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from jaxllm.core.errors import RunError
from jaxllm.core.files import write_atomic
from jaxllm.report import parts
from jaxllm.report.facts import Facts, gather
from jaxllm.report.style import STYLE

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
    if not target.parent.is_dir() or target.is_dir():
        raise RunError(f"--out {target}: name a file in a folder that exists")
    write_atomic(target, page(facts))
    return {
        "run": facts.run.name,
        "file": str(target),
        "step": facts.step,
        "events": len(facts.events),
        "close_ups": len(facts.close_ups),
        "goodput": facts.goodput.share,
    }


def page(facts: Facts) -> str:
    """The HTML. Its policy lets a browser load nothing, run nothing, and use this one style."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    names = {title: title.lower() for title in SECTIONS}
    links = "".join(f'<a href="#{name}">{title}</a>' for title, name in names.items())
    body = "".join(f'<h2 id="{names[t]}">{t}</h2>{fill(facts)}' for t, fill in SECTIONS.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(facts.run.name)}: jaxllm report</title><style>{STYLE}</style></head>\n"
        f"<body><header>{parts.header(facts)}<nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )
