"""The bones of a page: one file that loads nothing and runs nothing, its sections, tables. All text is escaped here."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from jaxllm.core.errors import RunError
from jaxllm.core.files import write_atomic
from jaxllm.report.style import STYLE

# Columns whose cells are not broken, and those that may be broken anywhere.
_UNBROKEN, _ANYWHERE = ("time (UTC)", "what", "close-up"), ("state digest", "in words", "first -> second")
_LONG = 16  # rows, from which on a table has a window of its own
Cell = str | tuple[str, str]  # text, or text and the anchor that it leads to


def document(title: str, header: str, sections: Mapping[str, str]) -> str:
    """The HTML of a page. header, and what fills the sections by title: HTML. Its policy lets a browser load nothing,
    run nothing, and use this one style."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    names = {title: title.lower().replace(" ", "-") for title in sections}
    links = "".join(f'<a href="#{name}">{title}</a>' for title, name in names.items())
    body = "".join(f'<h2 id="{names[t]}">{t}</h2>{filled}' for t, filled in sections.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header>{header}<nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )


def check_target(target: Path) -> Path:
    """RunError unless a page can be written there."""
    if not target.parent.is_dir() or target.is_dir():
        raise RunError(f"--out {target}: name a file in a folder that exists")
    return target


def write_page(target: Path, text: str) -> None:
    """Whole or not at all."""
    write_atomic(check_target(target), text)


def heading(title: str, items: Mapping[str, str]) -> str:
    """The name of a page, and what there is to say of it at once."""
    said = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items())
    return f"<h1>{escape(title)}</h1><dl>{said}</dl>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], ids: Sequence[str] = ()) -> str:
    """A table; a column whose name ends in '#' holds numbers. ids: an anchor for every row."""
    heads = "".join(f"<th{_numeric(c)}>{escape(c.removesuffix('#'))}</th>" for c in columns)
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{_numeric(c)}>{_cell(v)}</td>" for c, v in zip(columns, row, strict=True))
        body.append(f'<tr id="{escape(ids[i])}">{cells}</tr>' if ids else f"<tr>{cells}</tr>")
    window = "scroll long" if len(body) > _LONG else "scroll"
    return f'<div class="{window}"><table><tr>{heads}</tr>{"".join(body)}</table></div>'


def many(number: int, one: str, more: str | None = None) -> str:
    """A number of things. more: what several are called, if that is not with an s."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def none(words: str) -> str:
    """A sentence where there is nothing to show."""
    return f'<p class="none">{escape(words)}</p>'


def _numeric(column: str) -> str:
    if column.endswith("#"):
        return ' class="n"'
    return ' class="t"' if column in _UNBROKEN else ' class="h"' if column in _ANYWHERE else ""


def _cell(cell: Cell) -> str:
    return escape(cell) if isinstance(cell, str) else f'<a href="#{escape(cell[1])}">{escape(cell[0])}</a>'
