"""`jaxllm skip` and `jaxllm rollback`: the course of a run, running or not. Each parses, calls one function, prints."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxllm.cli_options import AsJson, Run, print_json, say, steps_of
from jaxllm.core.errors import JaxllmError

control_app = typer.Typer()

Why = Annotated[str, typer.Option(help="a remark for the journal")]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", min=0.0, help="wait so long for a run that is running; default: on")
]


@control_app.command()
def skip(
    run: Run,
    steps: Annotated[str, typer.Option("--steps", metavar="A:B", help="steps that are still to come")],
    defer: Annotated[bool, typer.Option("--defer", help="move their data to the end of the stage instead")] = False,
    why: Why = "asked for",
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Leave out the data that steps A to B were to see. A run that is running does so between two steps."""
    from jaxllm.asking import skip_steps

    span = steps_of("--steps", steps)
    _show(skip_steps(Path(run), span, defer=defer, why=why, timeout=timeout, say=say), as_json)


@control_app.command()
def rollback(
    run: Run,
    to: Annotated[int, typer.Option("--to", metavar="N", min=0, help="a checkpoint; 0 is the beginning")],
    skip: Annotated[bool, typer.Option("--skip", help="leave out the data seen since")] = False,
    defer: Annotated[bool, typer.Option("--defer", help="move it to the end of the stage")] = False,
    steps: Annotated[str | None, typer.Option("--steps", metavar="A:B", help="of these steps only")] = None,
    why: Why = "asked for",
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Go back to a checkpoint, as a new lineage; the old one is kept. A run that is running does so between two steps
    and goes on from there."""
    from jaxllm.asking import roll_back

    if skip and defer:
        raise JaxllmError("--skip and --defer: give one of them, or neither to take the same data again")
    if steps is not None and not (skip or defer):
        raise JaxllmError("--steps names the data to --skip or to --defer; give one of them")
    kind: Any = "skip" if skip else "defer" if defer else None
    span = None if steps is None else steps_of("--steps", steps)
    _show(roll_back(Path(run), to, kind=kind, steps=span, why=why, timeout=timeout, say=say), as_json)


def _show(event: dict[str, Any], as_json: bool) -> None:
    """An event that was just journaled."""
    from jaxllm.ledger.fold import story

    print_json(event) if as_json else print("\n".join(story([event])))
