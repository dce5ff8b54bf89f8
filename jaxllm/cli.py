"""The commands. Each parses, calls one function, prints; jax starts only in those that compute."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxllm.cli_control import control_app
from jaxllm.cli_data import data_app
from jaxllm.cli_options import AsJson, Config, Lineage, Overrides, Run, print_json, say, steps_of
from jaxllm.cli_release import release_app
from jaxllm.core.environment import settle_threads
from jaxllm.core.errors import EXIT_CHECK_FAILED, JaxllmError, last_words
from jaxllm.core.memory import keep_memory
from jaxllm.core.xla_flags import settle_flags

app = typer.Typer(
    name="jaxllm",
    help="Pretrain language models exactly, accountably, fast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(control_app)
app.add_typer(release_app)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    stop_at: Annotated[
        int | None, typer.Option("--stop-at", metavar="STEP", min=1, help="save and leave after STEP")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="shapes, memory and disk; trains nothing")] = False,
    profile: Annotated[str | None, typer.Option(metavar="A:B", help="trace steps A to B for TensorBoard")] = None,
    as_json: AsJson = False,
) -> None:
    """Start or resume a run; the same command does both."""
    from jaxllm.hints import next_commands
    from jaxllm.workspace import already_finished, open_config, refuse_imported

    interval = _interval(profile)
    run, folder = open_config(config, overrides or ())
    refuse_imported(run, folder)
    say(settle_flags(run.compute.xla_flags))
    if dry_run:
        from jaxllm.rehearsal import rehearse

        report = rehearse(run, folder)
        if as_json:
            print_json(report)
        else:
            print("\n".join(report["lines"]))
        return
    if (said := already_finished(run, folder)) is not None:
        if as_json:
            print_json({"run": run.name, "folder": str(folder), "outcome": "finished", "step": run.steps})
        else:
            print(said, *next_commands(folder), sep="\n")
        return
    say(keep_memory())
    from jaxllm.app import train as start

    raise typer.Exit(start(run, folder, stop_at=stop_at, profile=interval, as_json=as_json))


@app.command()
def show(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """The resolved config, every parameter with its axes and bytes, tokens, FLOPs."""
    from jaxllm.workspace import open_config

    run, _ = open_config(config, overrides or ())
    from jaxllm.show import describe_run, print_run

    report = describe_run(run)
    print_json(report) if as_json else print_run(report)


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    chip: Annotated[str, typer.Option("--chip", metavar="NAME", help="v5e, v5p, v6e, h100, ...")] = "",
    topology: Annotated[str | None, typer.Option(metavar="AxBxC", help="chips of a TPU slice")] = None,
    slices: Annotated[int, typer.Option(metavar="N", help="TPU slices")] = 1,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="GPUs, 8 in a node")] = None,
    search: Annotated[bool, typer.Option("--search", help="try other meshes, remat policies, micro-batches")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="compile faster, for a little more memory")] = False,
    hlo: Annotated[Path | None, typer.Option(metavar="FILE", help="keep the compiled program's text")] = None,
    as_json: AsJson = False,
) -> None:
    """Compile the training step for a pod or a cluster that is not there: memory, collectives, speed, days."""
    from jaxllm.plan.target import target_of
    from jaxllm.workspace import open_config

    target = target_of(chip, topology, slices, gpus)
    run, _ = open_config(config, overrides or ())
    from jaxllm.plan.make import make_plan
    from jaxllm.plan.report import print_plan
    from jaxllm.progress import phase_progress

    with phase_progress() as progress:
        report = make_plan(run, target, search=search, quick=quick, progress=progress, hlo=hlo)
    print_json(report) if as_json else print_plan(report)


@app.command()
def sample(
    run: Run,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="text to continue")],
    step: Annotated[int | None, typer.Option(metavar="N", help="a checkpoint; default the newest")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="tokens to add")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="among the K likeliest")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="among the likeliest with mass P")] = None,
    seed: Annotated[int, typer.Option(help="same seed, same text")] = 0,
    as_json: AsJson = False,
) -> None:
    """Continue a text from any checkpoint of a run."""
    from jaxllm.models.generate import Sampling
    from jaxllm.sampling import sample as continue_text

    how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    out = continue_text(Path(run), prompt, step=step, tokens=tokens, sampling=how)
    if as_json:
        print_json(out)
    else:
        print(prompt + out["text"])


@app.command("export-hf")
def export_hf(
    run: Run,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="the folder to make")],
    step: Annotated[int | None, typer.Option(metavar="N", help="a checkpoint; default the newest")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    rounding: Annotated[bool, typer.Option("--round", help="parameters may be rounded to --dtype")] = False,
    ema: Annotated[bool, typer.Option("--ema", help="the averaged parameters")] = False,
    family: Annotated[str | None, typer.Option(metavar="NAME", help="say it in this family; default the first")] = None,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="largest file: 5GB, 500MB")] = "5GB",
    as_json: AsJson = False,
) -> None:
    """A checkpoint as a folder for Hugging Face tools: safetensors, config, tokenizer."""
    from jaxllm.exporting import dtype_name, export_run, size_of
    from jaxllm.progress import phase_progress

    how, nbytes = dtype_name(dtype), size_of(shard_size)
    with phase_progress() as progress:
        said = export_run(
            Path(run),
            out,
            step=step,
            dtype=how,
            ema=ema,
            family=family,
            rounding=rounding,
            shard_bytes=nbytes,
            report=progress,
        )
    if as_json:
        print_json(said)
    else:
        print(f"{out}: {said['run']} step {said['step']} as {said['family']}, {said['dtype']}, in", *said["sha256"])


@app.command("import-hf")
def import_hf(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="config.json, safetensors, tokenizer.json")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="the run folder to make")],
    tokenizer: Annotated[Path | None, typer.Option(metavar="FILE", help="a tokenizer.json, if DIR has none")] = None,
    as_json: AsJson = False,
) -> None:
    """Published parameters as a run to sample, evaluate, export and train on from."""
    from jaxllm.importing import import_folder
    from jaxllm.progress import phase_progress

    with phase_progress() as progress:
        said = import_folder(folder, out, tokenizer=tokenizer, report=progress)
    if as_json:
        print_json(said)
    else:
        print(f"{out}: {said['architecture']}, {said['parameters']:,} parameters, state {said['parameters_digest']}")


@app.command()
def journal(run: Run, as_json: AsJson = False) -> None:
    """What happened to a run. Checks the hash chain on the way."""
    from jaxllm.fetching import at_hand
    from jaxllm.ledger.fold import story
    from jaxllm.ledger.journal import read_journal

    with at_hand(run) as folder:
        events = read_journal(folder / "journal.jsonl")
    if as_json:
        print_json(events)
    else:
        print("\n".join(story(events)))


@app.command()
def fork(
    run: Run,
    at: Annotated[int, typer.Option("--at", metavar="N", min=1, help="a checkpoint")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN2", help="the run folder to make")],
    overrides: Overrides = None,
    without_doc: Annotated[
        list[str] | None, typer.Option("--without-doc", metavar="ID", help="a document to leave out, may be repeated")
    ] = None,
    without_source: Annotated[
        list[str] | None, typer.Option("--without-source", metavar="S", help="a source to leave out, may be repeated")
    ] = None,
    lineage: Lineage = None,
    as_json: AsJson = False,
) -> None:
    """A run that goes on from checkpoint N of this one, with recorded amendments."""
    from jaxllm.forking import fork as make_fork

    said = make_fork(
        Path(run),
        at,
        out,
        overrides=overrides or (),
        documents=without_doc or (),
        sources=without_source or (),
        lineage=lineage,
    )
    if as_json:
        print_json(said)
    else:
        print(f"{out} goes on from step {at} (state {said['digest'][:12]}) with", *(said["changes"] or ["no change"]))
        print(f"  jaxllm train {out}")


@app.command()
def compare(
    run: Run,
    other: Annotated[str, typer.Argument(metavar="RUN2", help="another run folder")],
    expect: Annotated[str | None, typer.Option("--expect", metavar="CLASS", help="bitwise or rounding")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="an HTML page of it, with plots")] = None,
    as_json: AsJson = False,
) -> None:
    """Where two runs part: config, environment, data, numbers, scores. With --expect, exit code 1 unless that class
    holds."""
    from jaxllm.compare.lines import lines
    from jaxllm.compare.page import write_comparison
    from jaxllm.compare.values import agrees, compare_runs
    from jaxllm.compare.values import as_json as encoded
    from jaxllm.fetching import at_hand
    from jaxllm.progress import phase_progress
    from jaxllm.release.agreement import class_of

    asked = None if expect is None else class_of(expect)
    with phase_progress() as progress, at_hand(run, progress) as first, at_hand(other, progress) as second:
        found = compare_runs(first, second)
        if out is not None:
            write_comparison(found, out)
    if as_json:
        print_json(encoded(found))
    else:
        print("\n".join(lines(found)))
    if asked is not None and not agrees(found, asked):
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def replay(
    run: Run,
    start: Annotated[int, typer.Option("--from", metavar="A", min=0, help="a checkpoint; 0 is the beginning")],
    stop: Annotated[int, typer.Option("--to", metavar="B", min=1, help="the last step to execute again")],
    on: Annotated[str | None, typer.Option("--on", metavar="dp=2,tp=2", help="another mesh")] = None,
    expect: Annotated[str | None, typer.Option("--expect", metavar="CLASS", help="bitwise or rounding")] = None,
    bisect: Annotated[bool, typer.Option("--bisect", help="piece by piece, to say what was changed")] = False,
    lineage: Lineage = None,
    as_json: AsJson = False,
) -> None:
    """Execute an interval again and hold every step against its record. Exit code 1 unless the asked-for class holds:
    bitwise where the environment is the recorded one, else rounding."""
    from jaxllm.workspace import open_run

    say(settle_flags(open_run(run).compute.xla_flags))
    from jaxllm.release import outcome

    how: Any = {"mesh": on, "expect": expect, "lineage": lineage}
    if bisect:
        pieces, code = outcome.bisect_run(Path(run), start, stop, **how)
        said, encoded = outcome.bisected_lines(pieces), outcome.bisected_json(pieces)
    else:
        found, code = outcome.replay_run(Path(run), start, stop, **how)
        said, encoded = outcome.lines(found), outcome.as_json(found)
    if as_json:
        print_json(encoded)
    else:
        print("\n".join(said))
    raise typer.Exit(code)


@app.command()
def verify(
    run: Run,
    steps: Annotated[int, typer.Option("--steps", metavar="K", min=0, help="batches to compute anew")] = 20,
    replay: Annotated[int, typer.Option("--replay", metavar="K", min=0, help="intervals to execute again")] = 0,
    seed: Annotated[int, typer.Option(help="which steps and intervals those are")] = 0,
    as_json: AsJson = False,
) -> None:
    """Hold a run or a release against its own record: chains, steps, losses, checkpoints, data. Exit code 1 if
    something does not hold. Needs no accelerator, and works while the run is running."""
    import dataclasses

    from jaxllm.progress import phase_progress
    from jaxllm.release.layout import RECORD
    from jaxllm.release.sealed import RELEASE
    from jaxllm.release.verify import verify_release, verify_run
    from jaxllm.workspace import open_run

    released = (Path(run) / RELEASE).is_file()
    if replay:
        say(settle_flags(open_run(Path(run) / RECORD if released else run).compute.xla_flags))
    found = []
    with phase_progress() as progress:
        check = verify_release if released else verify_run
        for finding in check(Path(run), samples=steps, seed=seed, replays=replay, report=progress):
            found.append(finding)
            if not as_json:
                print(finding.line, flush=True)
    if as_json:
        print_json([dataclasses.asdict(f) for f in found])
    if any(f.holds is False for f in found):
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def report(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="default: report.html in the run")] = None,
    as_json: AsJson = False,
) -> None:
    """A run, finished or running, here or elsewhere, as one HTML page that needs nothing else."""
    from jaxllm.fetching import at_hand
    from jaxllm.progress import phase_progress
    from jaxllm.report.page import report_run

    if "://" in run and out is None:
        raise JaxllmError(f"{run} lies elsewhere: name the page to write, --out FILE")
    with phase_progress() as progress, at_hand(run, progress) as folder:
        said = report_run(folder, out)
    if as_json:
        print_json(said)
    else:
        print(f"{said['file']}: {said['run']} up to step {said['step']:,}, close-ups: {said['close_ups']}")


def _interval(text: str | None) -> tuple[int, int] | None:
    return None if text is None else steps_of("--profile", text)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script. A person's mistake is one line on stderr and exit code 2."""
    say(settle_threads())
    try:
        app(args=arguments)
    except (JaxllmError, OSError) as err:
        if (said := last_words(err)) is None:
            raise
        line, code = said
        print(f"jaxllm: {line}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
