"""`jaxllm release` and `jaxllm publish`. Each parses, calls one function, prints."""

from pathlib import Path
from typing import Annotated

import typer

from jaxllm.cli_options import AsJson, Run, print_json

release_app = typer.Typer()


@release_app.command()
def release(
    run: Run,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="the folder to make")],
    checkpoints: Annotated[str, typer.Option(metavar="WHICH", help="all, every=1000, or steps=1000,2000")] = "all",
    extras: Annotated[str, typer.Option("--with", metavar="A,B", help="optimizer, data, tensorboard, abandoned")] = "",
    licence: Annotated[str | None, typer.Option(metavar="SPDX", help="of the weights, as Apache-2.0")] = None,
    licence_file: Annotated[Path | None, typer.Option(metavar="FILE", help="its text")] = None,
    data_licence: Annotated[str | None, typer.Option(metavar="SPDX", help="of the data; default: not stated")] = None,
    dtype: Annotated[str, typer.Option(help="of the exported weights: float32, bfloat16 or float16")] = "float32",
    rounding: Annotated[bool, typer.Option("--round", help="parameters may be rounded to --dtype")] = False,
    as_json: AsJson = False,
) -> None:
    """A run as a folder to publish: checkpoints, data, record, metrics, cards. Killed, the same command goes on."""
    from jaxllm.core.config import encode
    from jaxllm.progress import phase_progress
    from jaxllm.release.build import build_release, lines
    from jaxllm.release.licences import licence_of

    chosen = licence_of(licence, licence_file, data_licence)
    with phase_progress() as progress:
        made = build_release(
            Path(run),
            out,
            chosen,
            checkpoints=checkpoints,
            extras=[name for name in extras.split(",") if name],
            dtype=dtype,
            rounding=rounding,
            report=progress,
        )
    if as_json:
        print_json(encode(made))
    else:
        print("\n".join(lines(out, made)))


@release_app.command()
def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a release")],
    to: Annotated[str, typer.Option("--to", metavar="ORG/NAME", help="the repository")],
    private: Annotated[bool, typer.Option("--private", help="if it is to be made")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="another or a later release that is there")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the calls; nothing is sent, no network")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a release to a Hugging Face hub, a branch for every checkpoint. Killed, the same command goes on."""
    import dataclasses

    from jaxllm.progress import phase_progress
    from jaxllm.release import publish_plan
    from jaxllm.release.publish import lines, planned
    from jaxllm.release.publish import publish as send

    plan = planned(folder, to, private=private)
    if dry_run:
        calls = publish_plan.lines(plan)
        print_json({"repository": to, "private": private, "calls": calls}) if as_json else print("\n".join(calls))
        return
    with phase_progress() as progress:
        done = send(plan, folder, replace=replace, report=progress)
    if as_json:
        print_json({"repository": to, **dataclasses.asdict(done)})
    else:
        print("\n".join(lines(plan, done)))
