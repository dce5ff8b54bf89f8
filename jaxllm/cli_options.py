"""What the commands share: arguments that many take, and how they print."""

import json
import sys
from typing import Annotated, Any

import typer

from jaxllm.core.errors import JaxllmError

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="configs/x.py:function, a run.json, or a run folder")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="a run folder")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[field=value ...]", help="changes to the config")]
Lineage = Annotated[int | None, typer.Option("--lineage", metavar="L", help="one that the run has left")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for programs")]


def say(what: str | None) -> None:
    """A remark on stderr, if there is one: stdout is for results."""
    if what is not None:
        print(f"jaxllm: {what}", file=sys.stderr)


def print_json(value: Any) -> None:
    """A result for programs."""
    print(json.dumps(value, indent=2, allow_nan=False))


def steps_of(option: str, text: str) -> tuple[int, int]:
    """`A:B` of an option."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise JaxllmError(f"{option} {text}: write A:B, two steps with 1 <= A <= B")
    return int(first), int(last)
