"""Readers: what each format gives, and what each defect is called."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.core.errors import DataError
from jaxllm.data.documents import Bad, Found, Piece, format_of, read_piece, split_lines
from jaxllm.data.inputs import Unit, cuts, list_inputs, read_survey, survey, units_of
from tests.data.texts import recipe, source


def pieces(*patterns: Path, unit_bytes: int = 1 << 20, **reading: Any) -> list[Piece]:
    """The pieces of some files, in order."""
    listed = list_inputs(recipe(source("s", *patterns, **reading)))
    firsts = []
    for entry in listed:
        at = Path(entry.path + ".survey")
        survey(entry.path, cuts(entry, unit_bytes), at)
        firsts.append(read_survey(at, entry)[1])
        at.unlink()
    units: list[Unit] = units_of(listed, firsts, unit_bytes)
    return [p for u in units for p in u.pieces]


def read(*patterns: Path, unit_bytes: int = 1 << 20, id_field: str | None = None, **reading: Any) -> list[Found | Bad]:
    found = pieces(*patterns, unit_bytes=unit_bytes, **reading)
    return [item for piece in found for item in read_piece(piece, id_field=id_field)]


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": t, "n": i}) + "\n" for i, t in enumerate(texts)).encode()


def zstd(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


TEXTS = ("one", "two\nlines", "", "drei ß 数 🙂", "\u2028 is no line end")


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("x.jsonl", lambda raw: raw),
        ("x.jsonl.gz", gzip.compress),
        ("x.json.gz", lambda raw: gzip.compress(raw[:40]) + gzip.compress(raw[40:])),
        ("x.jsonl.zst", zstd),
        ("x.json.zst", lambda raw: zstd(raw[:10]) + zstd(b"") + zstd(raw[10:])),
        ("no_newline.jsonl", lambda raw: raw[:-1]),
        ("blank_lines.jsonl", lambda raw: raw + b"\n \n"),
        ("dos.jsonl", lambda raw: raw.replace(b"\n", b"\r\n")),
        ("bom.jsonl", lambda raw: b"\xef\xbb\xbf" + raw),
    ],
)
def test_json_lines(tmp_path: Path, name: str, pack: Any) -> None:
    (tmp_path / name).write_bytes(pack(lines(*TEXTS)))
    assert read(tmp_path / name) == [Found(i + 1, t, None) for i, t in enumerate(TEXTS)]
    assert [d.id for d in read(tmp_path / name, id_field="n")] == ["0", "1", "2", "3", "4"]  # type: ignore[union-attr]


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=30), unit_bytes=st.integers(1, 200))
def test_cutting_a_file_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], unit_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.jsonl"
    path.write_bytes(b"\n" + lines(*texts))
    assert read(path, unit_bytes=unit_bytes) == [Found(i + 2, t, None) for i, t in enumerate(texts)]


def test_a_wrong_line_number_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines(*"abcdefgh"))
    found = pieces(tmp_path / "x.jsonl", unit_bytes=30)
    assert len(found) > 3
    shifted = [Piece(**(vars(p) | {"first_line": 0})) for p in found]
    assert [d for p in found for d in read_piece(p)] != [d for p in shifted for d in read_piece(p)]


@given(chunks=st.lists(st.text("ab\r\n", max_size=5).map(str.encode), max_size=20))
def test_split_lines(chunks: list[bytes]) -> None:
    assert list(split_lines(chunks)) == io.BytesIO(b"".join(chunks)).readlines()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "a"', "not JSON"),
        (b"nonsense", "not JSON"),
        (b'["text"]', "a JSON list, not an object"),
        (b'{"txet": "a"}', "has no field 'text'; did you mean 'txet'?"),
        (b'{"text": 3}', "field 'text' holds a int, not text"),
        (b'{"text": null}', "field 'text' holds null, not text"),
        (b'{"text": "caf\xe9"}', "not UTF-8 at byte 13 of the line"),
        (b'{"text": "\\ud800 half"}', "half a surrogate pair"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_bad_lines(tmp_path: Path, line: bytes, why: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines("fine") + line + b"\n" + lines("fine too"))
    first, bad, last = read(tmp_path / "x.jsonl")
    assert (first, last) == (Found(1, "fine", None), Found(3, "fine too", None))
    assert isinstance(bad, Bad) and bad.line == 2 and why in bad.why and "\n" not in bad.why and len(bad.why) < 300


@pytest.mark.parametrize("value", ["null", "true", "[1]", '""', '"\\udc00"', "1.5"])
def test_bad_ids(tmp_path: Path, value: str) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"text": "a", "id": {value}}}\n{{"text": "b"}}\n')
    for item in read(tmp_path / "x.jsonl", id_field="id"):
        assert isinstance(item, Bad) and "'id'" in item.why


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("zst", zstd)])
def test_a_truncated_archive_is_bad_from_there_on(tmp_path: Path, suffix: str, pack: Any) -> None:
    path = tmp_path / f"x.jsonl.{suffix}"
    raw = pack(lines(*(f"text number {i}" for i in range(5000))))
    for broken in (raw[:-3], raw[: len(raw) // 2], raw[:3], b"not an archive"):
        path.write_bytes(broken)
        items = read(path)
        assert isinstance(items[-1], Bad) and "broken" in items[-1].why and items[-1].line == len(items)
        assert all(isinstance(i, Found) for i in items[:-1])


def test_parquet(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(2500)]
    path = tmp_path / "x.parquet"
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        column = pa.array(texts).cast(kind) if kind != pa.string_view() else pa.array(texts, kind)
        pq.write_table(pa.table({"text": column, "key": list(range(2500))}), path, row_group_size=1100)
        assert read(path) == [Found(i + 1, t, None) for i, t in enumerate(texts)]
    assert len(pieces(path)) == 3
    assert [d.id for d in read(path, id_field="key")] == [str(i) for i in range(2500)]  # type: ignore[union-attr]


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"txt": ["a"]}), path)
    assert read(path) == [Bad(0, "has no column 'text'; did you mean 'txt'?")]
    pq.write_table(pa.table({"text": ["a", None, "b"]}), path)
    assert read(path) == [Found(1, "a", None), Bad(2, "field 'text' holds null, not text"), Found(3, "b", None)]
    pq.write_table(pa.table({"text": [1]}), path)
    assert read(path) == [Bad(1, "field 'text' holds a int, not text")]
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"text": invalid}), path)
    assert read(path) == [Bad(1, "not UTF-8 at byte 0 of the text")]
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert read(path) == [Bad(0, "the file is empty")]
    pq.write_table(pa.table({"text": ["x" * 1000] * 1000}), path, compression="none", use_dictionary=False)
    raw = path.read_bytes()
    path.write_bytes(raw[:-100])
    (item,) = read(path)
    assert isinstance(item, Bad) and item.line == 0 and "not a readable .parquet" in item.why
    path.write_bytes(b"\0" * 500 + raw[500:])
    item = read(path)[-1]
    assert isinstance(item, Bad) and "broken" in item.why


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffall of it\r\nis one\n".encode())
    (tmp_path / "b.txt").write_bytes(b"line\nline\nna\xefve")
    (tmp_path / "c.txt").write_bytes(b"")
    assert read(tmp_path / "*.txt") == [
        Found(1, "all of it\r\nis one\n", None),
        Bad(3, "not UTF-8 at byte 12 of the file"),
        Bad(0, "the file is empty"),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt"])
def test_an_empty_file_is_bad(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(b"") if suffix.endswith("gz") else b"")
    assert read(tmp_path / f"x{suffix}") == [Bad(0, "the file is empty")]


def test_folder_of_source_files(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    for name in ("b.py", "a/z.py", "a/empty.py", "notes.md", ".git/config", "a/__pycache__/z.pyc", "data.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name if name != "a/empty.py" else "")
    (folder / "data.jsonl").write_bytes(lines("from a table"))
    (tmp_path / "secret.py").write_text("not of this folder")
    (folder / "link.py").symlink_to(tmp_path / "secret.py")
    (folder / "outside").symlink_to(tmp_path)
    found = [(Path(p.origin).relative_to(folder).as_posix(), p.format) for p in pieces(folder)]
    assert found == [
        ("b.py", "member"),
        ("data.jsonl", "jsonl"),
        ("notes.md", "member"),
        ("a/empty.py", "member"),
        ("a/z.py", "member"),
    ]
    assert [i.text for i in read(folder)] == ["b.py", "from a table", "notes.md", "", "a/z.py"]  # type: ignore[union-attr]
    only = [Path(p.origin).name for p in pieces(folder, suffixes=(".py",))]
    assert only == ["b.py", "empty.py", "z.py"]


def test_patterns_are_sorted_and_each_file_is_read_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "[odd].jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines(name))
    patterns = tmp_path / "b.jsonl", tmp_path / "**" / "*.jsonl", tmp_path / "[odd].jsonl"
    assert [i.text for i in read(*patterns)] == ["b.jsonl", "[odd].jsonl", "a.jsonl", "sub/c.jsonl"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("pattern", "suffixes", "complaint"),
    [
        ("none*.jsonl", (), "no such file"),
        ("nothing.txt", (), "no such file"),
        ("x.md", (), "list its suffix in suffixes"),
        ("*", (), "list its suffix in suffixes"),
        ("*", (".rst",), "nothing to read"),
        ("empty", (), "nothing to read"),
    ],
)
def test_what_matches_nothing(tmp_path: Path, pattern: str, suffixes: tuple[str, ...], complaint: str) -> None:
    (tmp_path / "x.md").write_text("text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=complaint):
        list_inputs(recipe(source("s", tmp_path / pattern, suffixes=suffixes)))


def test_formats_go_by_name() -> None:
    assert format_of("a/B.JSONL.GZ") == "gzip" and format_of("x.json") is None and format_of("x.md", (".md",)) == "text"
