"""The phases of a preparation. Each leaves results in the work folder and needs only those of the phases before it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllm.core.errors import DataError
from jaxllm.core.files import read_json, write_atomic
from jaxllm.data import inputs, manifest, scan, shards
from jaxllm.data.config import DataRecipe, TextFiles, TokenizerFile, TrainBpe
from jaxllm.data.inputs import Input, Unit
from jaxllm.data.selection import TRAIN, Choice, Leftovers, select
from jaxllm.data.shards import SplitPlan
from jaxllm.data.tokenizer import Encoder, train
from jaxllm.data.work import Progress, Task, Workers, appearing

Splits = dict[tuple[int, str], SplitPlan]  # by source and split


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """One preparation at work: what it reads, where its results go (`work`, then `store`), and who does it."""

    recipe: DataRecipe
    listed: Sequence[Input]
    work: Path
    store: Path
    unit_bytes: int
    shard_tokens: int
    skip_bad: bool
    workers: int
    progress: Progress


def build(job: Preparation) -> manifest.Manifest:
    """All phases: the files of the store and its manifest, in the folder `store`."""
    with Workers(job.workers, job.progress) as pool:
        digests, units = _survey(job, pool)
        scans = _read(job, pool, units)
        job.progress("select", 0, 1)
        choices, left = select(job.recipe, [(u.source, s) for u, s in zip(units, scans, strict=True)])
        _check_not_empty(job, units, choices, left)
        job.progress("select", 1, 1)
        encoder = _tokenizer(job, scans, choices)
        encoded = _tokenize(job, pool, units, scans, choices)
        splits: Splits = {}
        for number, source in enumerate(job.recipe.sources):
            mine = [e for u, e in zip(units, encoded, strict=True) if u.source == number]
            for split in ("train", "heldout"):
                splits[number, split] = shards.plan_split(
                    source.name, split, mine, job.shard_tokens, encoder.dtype.itemsize
                )
        written = _write(job, pool, splits)
    return _finish(job, encoder, digests, splits, written, left)


def _survey(job: Preparation, pool: Workers) -> tuple[list[str], list[Unit]]:
    """sha256 of every input, and the units."""
    cuts = [inputs.cuts(i, job.unit_bytes) for i in job.listed]
    results = [job.work / "survey" / f"{n:08}.json" for n in range(len(job.listed))]
    wanted = [n for n, i in enumerate(job.listed) if i.sha256 is None or len(cuts[n]) > 1]
    tasks = [
        Task(results[n], inputs.survey, (job.listed[n].path, cuts[n], results[n]), job.listed[n].size) for n in wanted
    ]
    if tasks:
        pool.run("survey", tasks)
    digests, first_lines = [str(i.sha256) for i in job.listed], [[0] for _ in job.listed]
    for n in wanted:
        digests[n], first_lines[n] = inputs.read_survey(results[n], job.listed[n])
    return digests, inputs.units_of(job.listed, first_lines, job.unit_bytes)


def _read(job: Preparation, pool: Workers, units: Sequence[Unit]) -> list[Path]:
    """A scan per unit."""
    results = [job.work / "scan" / f"{n:08}.parquet" for n in range(len(units))]
    tasks = []
    for unit, result in zip(units, results, strict=True):
        documents = job.recipe.sources[unit.source].documents
        fields = (documents.text_field, documents.id_field) if isinstance(documents, TextFiles) else ("text", None)
        tasks.append(Task(result, scan.scan_unit, (unit, scan.Reading(*fields, job.skip_bad), result), unit.size))
    pool.run("read", tasks)
    return results


def _tokenizer(job: Preparation, scans: Sequence[Path], choices: Sequence[Choice]) -> Encoder:
    """The tokenizer, in its place in the store."""
    path = job.store / "tokenizer.json"
    match job.recipe.tokenizer:
        case TokenizerFile(path=given):
            write_atomic(path, Path(given).read_bytes())
        case TrainBpe() as config:
            # A process of its own, since only the first use of the library decides how many threads it has.
            with Workers(1, job.progress, tokenizer_threads=job.workers) as alone:
                alone.run("train tokenizer", [Task(path, train_on, (config, list(scans), list(choices), path), 1)])
    return Encoder(path, job.recipe.tokenizer.end_of_text)


def train_on(config: TrainBpe, scans: Sequence[Path], choices: Sequence[Choice], out: Path) -> None:
    """Train a tokenizer on the documents that train, in their order."""

    def texts() -> Iterator[str]:
        for path, choice in zip(scans, choices, strict=True):
            row = 0
            for batch in scan.batches(path, "text"):
                column = batch.column("text")
                for i in np.flatnonzero(choice.flags[row : row + len(batch)] == TRAIN):
                    yield column[int(i)].as_py()
                row += len(batch)

    write_atomic(out, train(texts(), config))


def _tokenize(
    job: Preparation, pool: Workers, units: Sequence[Unit], scans: Sequence[Path], choices: Sequence[Choice]
) -> list[Path]:
    """An encoded unit per scan."""
    results = [job.work / "encoded" / f"{n:08}.parquet" for n in range(len(units))]
    fixed = (job.store / "tokenizer.json", job.recipe.tokenizer.end_of_text)
    tasks = [
        Task(result, shards.encode_unit, (scanned, choice, *fixed, result), unit.size)
        for unit, scanned, choice, result in zip(units, scans, choices, results, strict=True)
    ]
    pool.run("tokenize", tasks)
    return results


def _write(job: Preparation, pool: Workers, splits: Splits) -> dict[str, Path]:
    """The shards, and by name where the entry of each for the manifest is."""
    plans = [shard for split in splits.values() for shard in split.shards]
    results = {plan.name: job.work / "shards" / f"{plan.name}.json" for plan in plans}
    tasks = [
        Task(results[plan.name], shards.write_shard, (plan, job.store, results[plan.name]), plan.tokens)
        for plan in plans
    ]
    pool.run("write", tasks)
    return results


def _finish(
    job: Preparation,
    encoder: Encoder,
    digests: Sequence[str],
    splits: Splits,
    written: dict[str, Path],
    left: Sequence[Leftovers],
) -> manifest.Manifest:
    """The small files of the store, and the manifest over all of them."""
    files: list[manifest.FileEntry] = []
    entries: dict[tuple[int, str], manifest.SplitEntry] = {}
    for (number, split), plan in splits.items():
        results = [read_json(written[shard.name]) for shard in plan.shards]
        files += [manifest.FileEntry(**f) for result in results for f in result["files"]]
        ends = job.store / f"{job.recipe.sources[number].name}.{split}.ends.bin"
        with appearing(ends) as partial:
            plan.ends.astype("<u8").tofile(partial)
        files.append(manifest.entry_of(ends))
        entries[number, split] = manifest.SplitEntry(
            documents=len(plan.ends),
            tokens=plan.tokens,
            bytes=plan.bytes,
            token_bytes=plan.token_bytes,
            ends_file=ends.name,
            shards=tuple(manifest.ShardEntry(**result["shard"]) for result in results),
        )
    write_atomic(job.store / "token_bytes.bin", encoder.token_bytes.astype("<u2").tobytes())
    write_atomic(job.store / "inputs.jsonl", inputs.inputs_file(job.listed, digests, job.recipe))
    files += [manifest.entry_of(job.store / n) for n in ("tokenizer.json", "token_bytes.bin", "inputs.jsonl")]
    whole = manifest.Manifest(
        recipe=job.recipe,
        shard_tokens=job.shard_tokens,
        dtype="uint16" if encoder.dtype.itemsize == 2 else "uint32",
        tokenizer=manifest.TokenizerEntry(
            file="tokenizer.json",
            token_bytes_file="token_bytes.bin",
            identity=encoder.identity,
            vocab_size=encoder.vocab_size,
            end_of_text=job.recipe.tokenizer.end_of_text,
            end_of_text_id=encoder.end_of_text_id,
            special=tuple(manifest.SpecialToken(content=c, id=i) for c, i in encoder.special.items()),
        ),
        sources=tuple(
            manifest.SourceEntry(
                name=source.name,
                train=entries[n, "train"],
                heldout=entries[n, "heldout"],
                input_files=sum(i.source == n for i in job.listed),
                input_bytes=sum(i.size for i in job.listed if i.source == n),
                duplicates=left[n].duplicates,
                empty=left[n].empty,
                bad=left[n].bad,
                bad_listed=left[n].listed,
            )
            for n, source in enumerate(job.recipe.sources)
        ),
        inputs_file="inputs.jsonl",
        versions=manifest.versions(),
        files=tuple(sorted(files, key=lambda f: f.name)),
    )
    manifest.write_manifest(job.store, whole)
    return whole


def _check_not_empty(
    job: Preparation, units: Sequence[Unit], choices: Sequence[Choice], left: Sequence[Leftovers]
) -> None:
    for n, source in enumerate(job.recipe.sources):
        flags = [c.flags for u, c in zip(units, choices, strict=True) if u.source == n]
        if not any((f == TRAIN).any() for f in flags):
            raise DataError(
                f"source {source.name!r}: no documents to train on ({sum(map(len, flags))} read, of them "
                f"{left[n].duplicates} duplicates; {left[n].empty} empty, {left[n].bad} bad); give it more text"
            )
