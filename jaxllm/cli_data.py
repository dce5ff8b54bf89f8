"""`jaxllm data`: token stores, what a step saw, who saw a document. Each parses, calls one function, prints."""

from pathlib import Path
from typing import Annotated

import typer

from jaxllm.cli_options import AsJson, Lineage, Run, print_json
from jaxllm.core.errors import JaxllmError

data_app = typer.Typer(help="Token stores: text to store, what a step saw, who saw a document.", no_args_is_help=True)


@data_app.command()
def prepare(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="configs/data/x.py:function")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="the store to make")] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", metavar="NAME=PATH", help="files of a source, may be repeated")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="a tokenizer.json, or bpe:SIZE to train one")] = None,
    end_of_text: Annotated[str, typer.Option(help="the token that closes a document")] = "<|endoftext|>",
    text_field: Annotated[str, typer.Option(help="field of .jsonl and .parquet that holds the text")] = "text",
    id_field: Annotated[str | None, typer.Option(help="field that names a document")] = None,
    heldout: Annotated[int, typer.Option(metavar="PER_MILLE", help="documents held out, per mille")] = 0,
    keep_duplicates: Annotated[bool, typer.Option("--keep-duplicates", help="keep documents with equal text")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="processes; default the cores there are")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave out bad documents, counted and listed")] = False,
    as_json: AsJson = False,
) -> None:
    """Text to a token store, from a recipe or from --source and --tokenizer. Restarts where it was killed."""
    from jaxllm.data_commands import prepare_store, recipe_of_arguments
    from jaxllm.progress import phase_progress

    if out is None:
        raise JaxllmError("data prepare needs --out, the folder of the store to make")
    made = recipe_of_arguments(
        recipe,
        name=out.name,
        sources=source or (),
        tokenizer=tokenizer,
        end_of_text=end_of_text,
        text_field=text_field,
        id_field=id_field,
        heldout_per_mille=heldout,
        deduplicate=not keep_duplicates,
    )
    with phase_progress() as progress:
        report = prepare_store(made, out, workers=workers, skip_bad=skip_bad, progress=progress)
    if as_json:
        print_json(report)
    else:
        for line in report.pop("lines"):
            print(line)


@data_app.command()
def info(
    store: Annotated[str, typer.Argument(metavar="STORE", help="a store, or a run folder")],
    verify: Annotated[bool, typer.Option("--verify", help="read every file and compare its sha256")] = False,
    as_json: AsJson = False,
) -> None:
    """What a store holds."""
    from jaxllm.data_commands import store_info

    report = store_info(Path(store), verify=verify)
    if as_json:
        print_json(report)
    else:
        for line in report["lines"]:
            print(line)


@data_app.command()
def step(
    run: Run,
    number: Annotated[int, typer.Argument(metavar="N", help="a step, from 1")],
    decode: Annotated[bool, typer.Option("--decode", help="print the text of every span")] = False,
    lineage: Lineage = None,
    as_json: AsJson = False,
) -> None:
    """The documents that step N saw."""
    from jaxllm.data_commands import print_step, step_documents

    rows = step_documents(Path(run), number, decode=decode, lineage=lineage)
    print_json(rows) if as_json else print_step(rows)


@data_app.command()
def find(
    run: Run,
    doc: Annotated[str, typer.Option("--doc", metavar="ID", help="a document id, as `data step` prints it")],
    source: Annotated[str | None, typer.Option(help="the source, where the id exists in several")] = None,
    lineage: Lineage = None,
    as_json: AsJson = False,
) -> None:
    """The steps and rows that saw a document."""
    from jaxllm.data_commands import find_document, print_sightings

    found = find_document(Path(run), doc, source=source, lineage=lineage)
    print_json(found) if as_json else print_sightings(found)
