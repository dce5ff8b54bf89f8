"""What the `jaxllm data` commands do. No jax: they answer on any machine that holds the run folder and the store."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxllm.core.errors import ConfigError, DataError
from jaxllm.core.load import call_config
from jaxllm.data.config import DataRecipe, SourceRecipe, TextFiles, TokenizerFile, TrainBpe
from jaxllm.data.prepare import describe, prepare
from jaxllm.data.store import Store
from jaxllm.ledger.find import steps_of_document
from jaxllm.ledger.history import lineages_of
from jaxllm.ledger.trace import documents_of_step
from jaxllm.progress import Report
from jaxllm.workspace import open_run, open_store

Json = dict[str, Any]


def recipe_of_arguments(
    recipe: str | None,
    *,
    name: str,
    sources: Iterable[str],
    tokenizer: str | None,
    end_of_text: str,
    text_field: str,
    id_field: str | None,
    heldout_per_mille: int,
    deduplicate: bool,
) -> DataRecipe:
    """The recipe that `path.py:function` returns, or the one that --source and --tokenizer describe."""
    if recipe is not None:
        if sources or tokenizer:
            raise ConfigError("name a recipe, or --source and --tokenizer, not both")
        made = call_config(recipe)
        if not isinstance(made, DataRecipe):
            raise ConfigError(f"{recipe} returns a {type(made).__name__}, not a DataRecipe")
        return made
    if not sources or tokenizer is None:
        raise ConfigError(
            "data prepare needs a recipe (configs/data/x.py:function), or --source NAME=PATH and --tokenizer"
        )
    paths: dict[str, list[str]] = {}
    for text in sources:
        source, equals, path = text.partition("=")
        if not (source and equals and path):
            raise ConfigError(
                f"--source {text!r}: write NAME=PATH, where PATH may be a pattern such as 'texts/*.jsonl.gz'"
            )
        paths.setdefault(source, []).append(path)
    return DataRecipe(
        name=name,
        sources=tuple(
            SourceRecipe(
                name=source,
                documents=TextFiles(paths=tuple(files), text_field=text_field, id_field=id_field),
                heldout_per_mille=heldout_per_mille,
            )
            for source, files in paths.items()
        ),
        tokenizer=_tokenizer(tokenizer, end_of_text),
        deduplicate=deduplicate,
    )


def _tokenizer(text: str, end_of_text: str) -> TokenizerFile | TrainBpe:
    kind, colon, size = text.partition(":")
    if kind == "bpe" and colon:
        if not size.isdigit():
            raise ConfigError(f"--tokenizer {text}: write bpe:SIZE, for instance bpe:32000")
        return TrainBpe(vocab_size=int(size), end_of_text=end_of_text)
    return TokenizerFile(path=text, end_of_text=end_of_text)


def prepare_store(recipe: DataRecipe, out: Path, *, workers: int | None, skip_bad: bool, progress: Report) -> Json:
    """Make a store and say what it holds; `lines` are for people."""
    began = time.perf_counter()
    report = prepare(recipe, out, workers=workers, skip_bad=skip_bad, progress=progress)
    seconds = time.perf_counter() - began
    found = store_info(out, verify=False)
    found["seconds"] = round(seconds, 2)
    found["tokens_per_second"] = round(report.tokens / seconds)
    found["lines"].append(f"{report.documents:,} documents, {report.tokens:,} tokens in {seconds:.1f} s")
    return found


def store_info(path: Path, *, verify: bool) -> Json:
    """What a store (or the store of a run) holds; with `verify` every byte is hashed."""
    store = open_store(open_run(path), path)[1] if (path / "run.json").is_file() else Store.open(path)
    if verify:
        store.verify()
    found = describe(store)
    lines = [f"store {store.path}   manifest {store.manifest_sha256}" + ("   all hashes hold" if verify else "")]
    for row in found["sources"]:
        lines.append(
            f"{row['name']:<16} {row['split']:<8} {row['documents']:>10,} documents {row['tokens']:>14,} tokens "
            f"{row['bytes']:>14,} bytes"
        )
    return found | {"lines": lines}


def step_documents(folder: Path, step: int, *, decode: bool, lineage: int | None = None) -> Json:
    """The rows of a step of a lineage (None: the live one), each with the documents that its window spans."""
    run, store = open_store(open_run(folder), folder)
    lineages = lineages_of(folder)
    rows = documents_of_step(store, run.data, run.seed, step, lineages.edits(lineage))
    found: Json = {"run": run.name, "lineage": lineages.owner(step, lineage), "step": step}
    found |= {"rows": [dataclasses.asdict(r) for r in rows]}
    if decode:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(store.tokenizer_path))
        for row in found["rows"]:
            reader = store.sources[row["source"]]
            for span in row["spans"]:
                ids = reader.read(span["start"], span["stop"])
                span["text"] = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    return found


def print_step(found: Json) -> None:
    """A line per document span, in the order of the batch."""
    for row in found["rows"]:
        print(f"row {row['row']:>4}  {row['source']}  epoch {row['epoch']}  window {row['window']}")
        for span in row["spans"]:
            print(f"    [{span['row_start']:>5}, {span['row_stop']:>5})  {span['id']}{_gone(span)}")
            if "text" in span:
                print("        " + span["text"].replace("\n", "\n        "))


def find_document(folder: Path, document: str, *, source: str | None, lineage: int | None = None) -> Json:
    """Every step and row of a lineage (None: the live one) that saw a document, or why none did."""
    run, store = open_store(open_run(folder), folder)
    if source is not None and source not in store.sources:
        raise DataError(f"{folder} has no source {source!r}; it has {', '.join(store.sources)}")
    edits = lineages_of(folder).edits(lineage)
    found = steps_of_document(store, run.data, run.seed, document, source=source, edits=edits)
    return {"run": run.name, "document": document} | dataclasses.asdict(found)


def print_sightings(found: Json) -> None:
    """A line per sighting."""
    for s in found["sightings"]:
        print(
            f"step {s['step']:>6}  row {s['row']:>4}  [{s['row_start']:>5}, {s['row_stop']:>5})  {s['source']}  "
            f"epoch {s['epoch']}  window {s['window']}{_gone(s)}"
        )
    if found["never"]:
        print(f"never: {found['never']}")


def _gone(place: Json) -> str:
    return "  removed: nothing is learnt from it here" if place["removed"] else ""
