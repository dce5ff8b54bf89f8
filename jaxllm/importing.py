"""`jaxllm import-hf`: published parameters as a run that can be sampled, evaluated, exported and trained on from."""

import math
from pathlib import Path
from typing import Any

import jax

from jaxllm import __version__
from jaxllm.app import enough_memory
from jaxllm.assembly import Assembly, assemble
from jaxllm.checkpoint import disk
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.checkpoint.fingerprint import collect
from jaxllm.checkpoint.manifest import Manifest, Rng, state_digest
from jaxllm.checkpoint.names import array_records
from jaxllm.checkpoint.revision import source_revision
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.convert.export import ORIGIN
from jaxllm.convert.folders import appearing_folder
from jaxllm.convert.published import Published, open_published, read_object
from jaxllm.convert.shards import INDEX, Report, files_of
from jaxllm.convert.vocabulary import KEPT, TEMPLATE, TOKENIZER, Vocabulary, kept_files
from jaxllm.core.config import essential, fingerprint
from jaxllm.core.errors import DataError
from jaxllm.core.files import make_folder, sha256_file, write_json_atomic
from jaxllm.data.config import Data, NoStore
from jaxllm.data.tokenizer import identity, special_tokens
from jaxllm.ledger.journal import Journal
from jaxllm.models.count import parameters, shapes
from jaxllm.optim.config import AdamW, Piece
from jaxllm.parallel.mesh import sizes
from jaxllm.run import RunConfig, identity_hash
from jaxllm.train.config import Imported, Io
from jaxllm.workspace import SPECIAL_TOKENS, save_config

Json = dict[str, Any]
Tree = Any


def import_folder(
    source: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    report: Report = lambda phase, done, total: None,
) -> Json:
    """Make a run folder `out` with the parameters in `source` as checkpoint 0, and say what it is.

    tokenizer: a tokenizer.json in place of the one in `source`. The checkpoint holds parameters only: an optimizer
    begins with the training that starts from it. ConfigError or DataError: what is there is not a model that we have,
    or not whole; CheckpointError: it does not fit on the disk. Then nothing was written.
    """
    published = open_published(source)
    vocabulary = Vocabulary(source / TOKENIZER if tokenizer is None else tokenizer)
    vocabulary.check_size(published.model.vocab_size)
    end = _end_of_text(published, vocabulary)
    if tokenizer is None:
        _check_tokenizer(published, vocabulary, end)
    disk.require_at(out, disk.save_bytes(4 * math.prod(shape) for shape in shapes(published.model).values()))
    with appearing_folder(out) as place:
        files = _hashes(published, vocabulary, report)
        _check_files(published, files)
        run = _config(published, files, out.absolute())
        with enough_memory(run):
            parts = assemble(run)
            params = _params(published, parts, report)
            manifest = _write(place, run, published, vocabulary, end, parts, params, files)
    return {
        "run": run.name,
        "folder": str(out),
        "architecture": published.architecture,
        "family": published.family.name,
        "parameters": parameters(run.model),
        "parameters_digest": manifest.state_digest,
        "length": published.length,
        "files": files,
    }


def _identity(vocabulary: Vocabulary, end: int) -> str:
    return identity(vocabulary.raw, special_tokens(vocabulary.raw), vocabulary.text(end))


def _check_tokenizer(published: Published, vocabulary: Vocabulary, end: int) -> None:
    """DataError if an export of ours lies here with another tokenizer than it was written with."""
    if not (published.folder / ORIGIN).is_file():
        return
    said = read_object(published.folder / ORIGIN).get("tokenizer")
    if said != (found := _identity(vocabulary, end)):
        raise DataError(
            f"{vocabulary.path} is {found[:12]}, and {ORIGIN} says that this model goes with {str(said)[:12]}: bring "
            f"that tokenizer back, or say with --tokenizer that this one is meant"
        )


def _check_files(published: Published, files: list[Json]) -> None:
    """DataError if an export of ours lies here with other parameters than it was written with."""
    if not (published.folder / ORIGIN).is_file():
        return
    said = read_object(published.folder / ORIGIN).get("sha256")
    found = {f["name"]: f["sha256"] for f in files if f["name"].endswith(".safetensors")}
    if not isinstance(said, dict) or said.keys() != found.keys():
        raise DataError(
            f"{published.folder / ORIGIN} is not about {', '.join(found)}; bring back its files, or remove it"
        )
    for name, digest in found.items():
        if said[name] != digest:
            raise DataError(
                f"{published.folder / name} is {digest[:12]}, and {ORIGIN} says {str(said[name])[:12]}: the file was "
                f"damaged, bring it back; or it was changed on purpose, then remove {ORIGIN}"
            )


def _config(published: Published, files: list[Json], out: Path) -> RunConfig:
    return RunConfig(
        name=out.name,
        seed=0,
        start=Imported(
            architecture=published.architecture, origin=fingerprint({f["name"]: f["sha256"] for f in files})
        ),
        model=published.model,
        data=Data(store=NoStore(), seq_len=published.length, stages=()),
        optimizer=AdamW(schedule=(Piece(steps=1, start=0.0, end=0.0),)),
        io=Io(root=str(out.parent)),
    )


def _params(published: Published, parts: Assembly, report: Report) -> Tree:
    """The parameters on the devices, put there array by array as they are read."""
    shardings = parts.declared.named(jax.tree.map(lambda x: x.sharding, parts.abstract_state.params))
    found = {path: jax.device_put(x, shardings[path]) for path, x in published.arrays(report)}
    return parts.declared.tree(lambda leaf: found[leaf.path])


def _write(
    place: Path,
    run: RunConfig,
    published: Published,
    vocabulary: Vocabulary,
    end: int,
    parts: Assembly,
    params: Tree,
    files: list[Json],
) -> Manifest:
    """All files of the run: config, tokenizer, journal, checkpoint."""
    who = _identity(vocabulary, end)
    save_config(run, place)
    (place / TOKENIZER).write_bytes(vocabulary.path.read_bytes())
    (place / KEPT).mkdir()
    for name in kept_files(published.folder):
        make_folder((place / KEPT / name).parent)
        (place / KEPT / name).write_bytes((published.folder / name).read_bytes())
    if (place / KEPT / TEMPLATE).is_file():
        (place / TEMPLATE).write_bytes((place / KEPT / TEMPLATE).read_bytes())
    elif (template := published.template) is not None:
        (place / TEMPLATE).write_text(template, encoding="utf-8", newline="")
    write_json_atomic(
        place / SPECIAL_TOKENS,
        {"end_of_text_id": end, "tokenizer": who, "add_special_tokens": True, **published.special.json},
    )
    items = {"params": params}
    arrays = array_records(items, parts.digest(items))
    with Journal(place / "journal.jsonl") as journal:
        journal.append(
            "import",
            lineage=0,
            identity=identity_hash(run),
            architecture=published.architecture,
            files=files,
            source={"jaxllm": __version__},
        )
        manifest = Manifest(
            step=0,
            lineage=0,
            tokens=0,
            identity=identity_hash(run),
            data_manifest="",
            tokenizer=who,
            arrays=arrays,
            state_digest=state_digest(arrays),
            journal_head=journal.head,
            steps_head=None,
            fingerprint=collect(sizes(parts.mesh), essential(run.compute)),
            source=source_revision(),
            jaxllm=__version__,
            rng=Rng(seed=run.seed),
        )
        with CheckpointStore(place / "checkpoints", Checkpoints()) as store:
            store.save(0, params=params, opt={}, cursor={"step": 0, "position": 0, "feed": None}, meta=manifest)
        journal.append("checkpoint", lineage=0, step=0, digest=manifest.state_digest, tokens=0)
    return manifest


def _end_of_text(published: Published, vocabulary: Vocabulary) -> int:
    """The id of the token that ends a text. DataError if nothing names one, or it is no token."""
    if not published.special.eos:
        raise DataError(f"{published.folder}: eos_token_id is missing from config.json; add the id that ends a text")
    for token in (*published.special.eos, published.special.bos):
        if token is not None:
            vocabulary.text(token)
    return published.special.eos[0]


def _hashes(published: Published, vocabulary: Vocabulary, report: Report) -> list[Json]:
    """Name, bytes and sha256 of every file that the run is made from."""
    folder = published.folder
    paths = [*files_of(published.entries), vocabulary.path]
    paths += [folder / name for name in kept_files(folder)]
    if (folder / INDEX).is_file():
        paths.append(folder / INDEX)
    found = []
    for number, path in enumerate(paths):
        report("hashing files", number, len(paths))
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        found.append({"name": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    report("hashing files", len(paths), len(paths))
    return sorted(found, key=lambda f: str(f["name"]))
