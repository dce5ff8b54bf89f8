"""From input files to documents: one reader per format, errors with their line.

A *piece* is a stretch of one input file that can be read on its own: a range of lines of a .jsonl, a whole compressed
.jsonl, a row group of a .parquet, a text file, a Python module. Readers yield what they find in file order, either a
document or the reason why there is none; whether a bad one is an error is the caller's decision.

Inputs are untrusted: text is decoded strictly, nothing in it is executed or used as a path.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from jaxllm.core.config import suggest
from jaxllm.core.errors import DataError
from jaxllm.data import python_text

Format = Literal["jsonl", "gzip", "zstd", "text", "member", "parquet", "python_prose", "python_code", "broken"]

# Longest match first. .json.gz and .json.zst hold JSON lines wherever they are published (C4, Dolma).
FORMATS: dict[str, Format] = {
    ".jsonl.gz": "gzip",
    ".json.gz": "gzip",
    ".jsonl.zst": "zstd",
    ".json.zst": "zstd",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
}

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of one input file.

    `start` and `stop` are bytes in a .jsonl (the piece owns the lines that begin there); in a .parquet, `start` is the
    number of the row group. `first_line` is the number, from 0, of the first line or row that the piece owns. `size` is
    the work, in bytes. A 'member' is a text file met in a folder, where an empty one is nothing special. A 'broken'
    file could not be opened when the inputs were listed; `note` says why.
    """

    path: str
    origin: str
    format: Format
    size: int
    start: int = 0
    stop: int = 0
    first_line: int = 0
    note: str = ""


class Found(NamedTuple):
    """A document: the line (row) of the input it comes from, counted from 1, its text, and its id if it brings one."""

    line: int
    text: str
    id: str | None


class Bad(NamedTuple):
    """Something that should have been a document. Line 0 is the file as a whole."""

    line: int
    why: str


def format_of(path: str, suffixes: tuple[str, ...] = ()) -> Format | None:
    """The format that a file name announces; `suffixes` name further text files; None if it announces none."""
    lower = path.lower()
    for suffix, kind in FORMATS.items():
        if lower.endswith(suffix):
            return kind
    return "text" if suffixes and lower.endswith(tuple(s.lower() for s in suffixes)) else None


def read_piece(piece: Piece, text_field: str = "text", id_field: str | None = None) -> Iterator[Found | Bad]:
    """The documents of one piece in order. DataError if the file cannot be opened at all."""
    try:
        match piece.format:
            case "broken":
                yield Bad(0, piece.note)
            case "jsonl":
                with open(piece.path, "rb") as file:
                    yield from _json_lines(_range(file, piece), piece, text_field, id_field)
            case "gzip":
                with gzip.open(piece.path, "rb") as file:
                    yield from _json_lines(file, piece, text_field, id_field)
            case "zstd":
                with open(piece.path, "rb") as file:
                    yield from _json_lines(split_lines(_unzstd(file)), piece, text_field, id_field)
            case "parquet":
                yield from _row_group(piece, text_field, id_field)
            case "text" | "member":
                yield _text(piece)
            case "python_prose" | "python_code":
                yield from _python(piece)
    except FileNotFoundError:
        raise DataError(f"{piece.origin}: the file is gone; prepare again with the files that are there") from None
    except PermissionError:
        raise DataError(f"{piece.origin}: may not be read; mend its permissions") from None


def row_groups(path: str) -> list[tuple[int, int]]:
    """(rows, bytes) of every row group of a .parquet. DataError if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"{path}: not a readable .parquet ({_one_line(err)})") from None
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return [(g.num_rows, g.total_byte_size) for g in groups]


# ---- lines -----------------------------------------------------------------------------------------------------------


def _range(file: io.BufferedReader, piece: Piece) -> Iterator[bytes]:
    """The lines that begin in [start, stop)."""
    at = piece.start
    if at:
        file.seek(at - 1)
        at += len(file.readline()) - 1  # what is left of a line that belongs to the piece before
    while at < piece.stop:
        line = file.readline()
        if not line:
            return
        at += len(line)
        yield line


def _unzstd(file: io.BufferedReader) -> Iterator[bytes]:
    """The decompressed stream of all frames. EOFError where it is cut off: zstandard's own reader would not tell."""
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    fed = False
    while chunk := file.read(_CHUNK):
        while chunk:
            fed = True
            yield frame.decompress(chunk)
            if not frame.eof:
                break
            chunk, frame, fed = frame.unused_data, zstandard.ZstdDecompressor().decompressobj(), False
    if fed:
        raise EOFError("compressed file ended before the end-of-stream marker was reached")


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, with their line ends, of a stream that comes in chunks."""
    held: list[bytes] = []
    for chunk in chunks:
        head, newline, rest = chunk.partition(b"\n")
        if not newline:
            held.append(chunk)
            continue
        yield b"".join((*held, head, newline))
        lines = rest.split(b"\n")
        for line in lines[:-1]:
            yield line + b"\n"
        held = [lines[-1]] if lines[-1] else []
    if last := b"".join(held):
        yield last


def _json_lines(lines: Iterable[bytes], piece: Piece, text_field: str, id_field: str | None) -> Iterator[Found | Bad]:
    import zstandard

    number, stream = piece.first_line, iter(lines)
    while True:
        number += 1
        try:
            line = next(stream, None)
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as err:
            yield Bad(number, f"the compressed file is broken from here on ({_one_line(err)})")
            return
        if line is None:
            if number == 1:
                yield Bad(0, "the file is empty")
            return
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line.isspace():
            yield _json_document(line, number, text_field, id_field)


def _json_document(line: bytes, number: int, text_field: str, id_field: str | None) -> Found | Bad:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as err:
        return Bad(number, f"not UTF-8 at byte {err.start} of the line")
    except json.JSONDecodeError as err:
        return Bad(number, f"not JSON: {err.msg} at column {err.colno}")
    except (RecursionError, ValueError) as err:  # nested or long numbers beyond what Python reads
        return Bad(number, f"not JSON that can be read: {_one_line(err)}")
    if not isinstance(record, dict):
        return Bad(number, f"a JSON {type(record).__name__}, not an object with a field {text_field!r}")
    if text_field not in record:
        return Bad(number, f"has no field {text_field!r}" + suggest(text_field, [k[:40] for k in list(record)[:20]]))
    if id_field is not None and id_field not in record:
        return Bad(number, f"has no field {id_field!r}" + suggest(id_field, [k[:40] for k in list(record)[:20]]))
    return _document(number, record[text_field], None if id_field is None else record[id_field], text_field, id_field)


def _document(number: int, text: object, name: object, text_field: str, id_field: str | None) -> Found | Bad:
    """A document from two values of a record, if they are what they should be."""
    if not isinstance(text, str):
        return Bad(number, f"field {text_field!r} holds {_kind(text)}, not text")
    if id_field is not None and (isinstance(name, bool) or not isinstance(name, (str, int)) or name == ""):
        return Bad(number, f"field {id_field!r} holds {_kind(name)}, not a name or a number")
    identifier = None if id_field is None else str(name)
    for field, value in ((text_field, text), (id_field, identifier)):
        if value is not None and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            return Bad(number, f"field {field!r} holds half a surrogate pair, which is no text")
    return Found(number, text, identifier)


# ---- other formats ---------------------------------------------------------------------------------------------------


def _row_group(piece: Piece, text_field: str, id_field: str | None) -> Iterator[Found | Bad]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [text_field] if id_field is None else [text_field, id_field]
    number = piece.first_line
    try:
        with pq.ParquetFile(piece.path) as file:
            known = file.schema_arrow.names
            for column in columns:
                if column not in known:
                    yield Bad(0, f"has no column {column!r}" + suggest(column, known))
                    return
            for batch in file.iter_batches(1024, row_groups=[piece.start], columns=columns, use_threads=False):
                texts = batch.column(text_field)
                names = None if id_field is None else batch.column(id_field)
                for i in range(len(texts)):
                    number += 1
                    try:
                        text = texts[i].as_py()
                        name = None if names is None else names[i].as_py()
                    except UnicodeDecodeError as err:
                        yield Bad(number, f"not UTF-8 at byte {err.start} of the text")
                        continue
                    yield _document(number, text, name, text_field, id_field)
    except (pa.ArrowException, OSError) as err:
        if isinstance(err, (FileNotFoundError, PermissionError)):
            raise
        yield Bad(number + 1, f"the row group is broken from here on ({_one_line(err)})")


def _text(piece: Piece) -> Found | Bad:
    raw = Path(piece.path).read_bytes().removeprefix(_BOM)
    if not raw and piece.format == "text":
        return Bad(0, "the file is empty")
    try:
        return Found(1, raw.decode("utf-8"), None)
    except UnicodeDecodeError as err:
        return Bad(raw.count(b"\n", 0, err.start) + 1, f"not UTF-8 at byte {err.start} of the file")


def _python(piece: Piece) -> Iterator[Found | Bad]:
    module = python_text.module_name(piece.origin)
    try:
        source = python_text.decode(Path(piece.path).read_bytes())
        if piece.format == "python_code":
            yield Found(1, python_text.code(source), module)
            return
        for passage in python_text.prose(source, module):
            yield Found(*passage)
    except SyntaxError as err:
        yield Bad(err.lineno or 0, f"not Python: {err.msg}")
    except (RecursionError, ValueError) as err:  # ValueError: a null byte; RecursionError: nested beyond the parser
        yield Bad(0, f"not Python: {_one_line(err)}")


def _kind(value: object) -> str:
    return {type(None): "null", bool: "a boolean", str: "an empty text", bytes: "bytes"}.get(
        type(value), f"a {type(value).__name__}"
    )


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())[:200]
