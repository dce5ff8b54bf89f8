"""Croissant metadata of a release's data (MLCommons Croissant 1.0, https://docs.mlcommons.org/croissant). No jax.

What a program needs to find and read it: every file of data/ with its sha256, the ledger of documents and, where the
release holds them, the tokens of every interval as records.
"""

from typing import Any

from jaxllm.release.facts import Facts
from jaxllm.release.layout import CHUNKS, DATA, LEDGERS, NOT_STATED, FileEntry

Json = dict[str, Any]

# As section "JSON-LD context" of the specification has it; readers compare it term by term.
_CONTEXT: Json = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".parquet": "application/x-parquet",
    ".zst": "application/zstd",
}
# Column of a ledger -> its type.
_DOCUMENT = {"id": "sc:Text", "start": "sc:Integer", "length": "sc:Integer"}
# Member of a line of a chunk -> (its type, whether it is a list).
_SEQUENCE = {
    "token_ids": ("sc:Integer", True),
    "source": ("sc:Text", False),
    "step": ("sc:Integer", False),
    "position": ("sc:Integer", False),
    "epoch": ("sc:Integer", False),
    "window": ("sc:Integer", False),
}


def croissant(f: Facts) -> Json:
    """The content of croissant.json."""
    files = [e for e in f.files if e.path.startswith(f"{DATA}/")]
    ledgers = [e for e in files if e.path.startswith(f"{LEDGERS}/")]
    chunks = [e for e in files if e.path.startswith(f"{CHUNKS}/")]
    sets, records = [], []
    if ledgers:
        sets.append(_set("ledgers", f"{LEDGERS}/**", "application/x-parquet", "which documents there are, and where"))
        fields = {name: ({"column": name}, kind, False) for name, kind in _DOCUMENT.items()}
        records.append(_records("documents", "ledgers", fields))
    if chunks:
        about = "lines of JSON, compressed with zstd: one sequence each, in the order in which they were consumed"
        sets.append(_set("chunks", f"{CHUNKS}/**", "application/jsonlines", about))
        lines = {name: ({"jsonPath": f"$.{name}"}, *kind) for name, kind in _SEQUENCE.items()}
        records.append(_records("sequences", "chunks", lines))
    licences = [f.data_licence] if f.data_licence != NOT_STATED else sorted({s.licence for s in f.sources})
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": f"{f.entry.name}-data",
        "description": (
            f"What {f.entry.name} was trained on: {f.entry.tokens:,} tokens of "
            f"{', '.join(s.name for s in f.sources)}, with the order in which they were consumed."
        ),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": f"{f.entry.steps}.0.0",
        "datePublished": f.ended[:10],
        "license": licences,
        "distribution": [*sets, *(_file(e) for e in files)],
        "recordSet": records,
    }


def _file(entry: FileEntry) -> Json:
    suffix = entry.path[entry.path.rindex(".") :]
    return {
        "@type": "cr:FileObject",
        "@id": entry.path,
        "name": entry.path,
        "contentUrl": entry.path,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": _TYPES[suffix],
        "sha256": entry.sha256,
    }


def _set(name: str, pattern: str, kind: str, about: str) -> Json:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "description": about,
        "encodingFormat": kind,
        "includes": pattern,
    }


def _records(name: str, files: str, fields: dict[str, tuple[Json, str, bool]]) -> Json:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{field}",
                "name": field,
                "dataType": kind,
                **({"repeated": True} if several else {}),
                "source": {"fileSet": {"@id": files}, "extract": extract},
            }
            for field, (extract, kind, several) in fields.items()
        ],
    }
