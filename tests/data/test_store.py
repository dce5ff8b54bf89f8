"""Reading a store: the same tokens whatever the shards, damage is found and named."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jaxllm.core.errors import DataError
from jaxllm.core.files import sha256_file
from jaxllm.data.prepare import prepare
from jaxllm.data.store import SourceReader, Store, describe
from tests.data.texts import recipe, sentences, source, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One corpus as two stores: `one` has a shard per split, `many` has dozens, some smaller than a window."""
    root = tmp_path_factory.mktemp("store")
    write_jsonl(root / "a.jsonl", sentences(1, 150), name=[f"a/{i}" for i in range(150)])
    write_jsonl(root / "b.jsonl", sentences(2, 90), name=[f"b/{i}" for i in range(90)])
    made = recipe(
        source("a", root / "a.jsonl", heldout_per_mille=200, id_field="name"),
        source("b", root / "b.jsonl", id_field="name"),
    )
    prepare(made, root / "one", workers=1)
    prepare(made, root / "many", workers=1, shard_tokens=300)
    return root


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A store that may be damaged."""
    target = tmp_path / "copy"
    target.mkdir()
    for file in (folder / "one").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def readers(folder: Path) -> Iterator[tuple[SourceReader, SourceReader]]:
    one, many = Store.open(folder / "one"), Store.open(folder / "many")
    assert list(one.sources) == ["a", "b"] and list(one.heldout) == ["a"]
    for ours, theirs in ((one.sources, many.sources), (one.heldout, many.heldout)):
        for name in ours:
            yield ours[name], theirs[name]


def test_tokens_do_not_depend_on_shards(folder: Path) -> None:
    for one, many in readers(folder):
        assert one.tokens == many.tokens and one.documents == many.documents
        assert len(many._entry.shards) > 5 and len(one._entry.shards) == 1
        assert (one.read(0, one.tokens) == many.read(0, many.tokens)).all()
        assert (one.ends == many.ends).all() and one.ends[-1] == one.tokens
        assert one.ends.dtype == np.int64 and one.read(0, 3).dtype == np.uint16


@given(data=st.data())
def test_gather_and_read_are_slices_of_the_stream(folder: Path, data: st.DataObject) -> None:
    reader = Store.open(folder / data.draw(st.sampled_from(["one", "many"]))).sources["a"]
    stream = np.fromfile(folder / "one" / "a.train-00000.tokens.bin", "<u2")
    length = data.draw(st.integers(0, 700))
    starts = data.draw(st.lists(st.integers(0, reader.tokens - length), max_size=20))
    windows = reader.gather(np.array(starts, np.int64), length)
    assert windows.shape == (len(starts), length) and windows.dtype == reader.dtype
    for start, window in zip(starts, windows, strict=True):
        assert (window == stream[start : start + length]).all()
        assert (reader.read(start, start + length) == window).all()


def test_out_of_range_is_refused(folder: Path) -> None:
    for one, many in readers(folder):
        for reader in (one, many):
            for starts in ([reader.tokens - 9], [0, -1]):
                with pytest.raises(IndexError, match=reader.name):
                    reader.gather(np.array(starts), 10)
            with pytest.raises(IndexError):
                reader.read(0, reader.tokens + 1)
            with pytest.raises(IndexError):
                reader.document(reader.documents)


def test_documents_are_what_was_written(folder: Path) -> None:
    texts = {f"a/{i}": t for i, t in enumerate(sentences(1, 150))} | {
        f"b/{i}": t for i, t in enumerate(sentences(2, 90))
    }
    seen = set()
    for name in ("one", "many"):
        store = Store.open(folder / name)
        decode = Tokenizer.from_file(str(store.tokenizer_path)).decode
        for reader in (*store.sources.values(), *store.heldout.values()):
            at = 0
            for index in range(reader.documents):
                document = reader.document(index)
                tokens = reader.read(document.start, document.stop)
                assert (document.start, document.stop) == (at, int(reader.ends[index]))
                assert tokens[-1] == store.end_of_text_id and store.end_of_text_id not in tokens[:-1]
                text = decode(tokens[:-1].tolist())
                assert text == texts[document.id] and document.bytes == len(text.encode())
                assert document.bytes == store.token_bytes[tokens].sum()
                assert document.origin.endswith(f"{reader.name}.jsonl") and document.line == int(document.id[2:]) + 1
                assert reader.find(document.id) == index and document.source == reader.name
                seen.add(document.id)
                at = document.stop
            assert reader.find("a/none") is None
    assert seen == set(texts)


def test_travels_by_pickle_without_maps(folder: Path) -> None:
    store = Store.open(folder / "many")
    before = store.sources["a"].gather(np.arange(5), 50)
    store.sources["a"].document(3), store.sources["a"].find("a/1"), store.sources["a"].ends
    raw = pickle.dumps(store)
    assert len(raw) < 200_000
    again = pickle.loads(raw)
    assert (again.sources["a"].gather(np.arange(5), 50) == before).all()
    assert again.sources["a"].document(3) == store.sources["a"].document(3)
    assert again.heldout["a"].find("a/1") == store.heldout["a"].find("a/1")


def test_expected_manifest(folder: Path) -> None:
    found = sha256_file(folder / "one" / "manifest.json")
    assert Store.open(folder / "one", found).manifest_sha256 == found
    with pytest.raises(DataError, match=found[:12]):
        Store.open(folder / "one", "0" * 64)


def test_whole_store_verifies(folder: Path) -> None:
    Store.open(folder / "one").verify()
    Store.open(folder / "many").verify()


def test_every_damage_is_named(copy: Path) -> None:
    for file in sorted(copy.iterdir()):
        whole = file.read_bytes()
        if file.name == "manifest.json" or not whole:
            continue
        file.write_bytes(whole[:-1])
        with pytest.raises(DataError, match=file.name):
            Store.open(copy)
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(DataError, match=file.name):
            Store.open(copy).verify()
        file.unlink()
        with pytest.raises(DataError, match=file.name):
            Store.open(copy)
        file.write_bytes(whole)
    Store.open(copy).verify()


def test_files_cut_after_opening_are_an_error_not_a_crash(copy: Path) -> None:
    store = Store.open(copy)
    for name in ("a.train-00000.tokens.bin", "a.train.ends.bin", "a.train-00000.ids.bin"):
        (copy / name).write_bytes(b"")
    reader = store.sources["a"]
    with pytest.raises(DataError, match=r"tokens\.bin"):
        reader.read(0, 10)
    with pytest.raises(DataError, match=r"ends\.bin"):
        assert reader.ends is None
    with pytest.raises(DataError, match=r"ids\.bin"):
        reader.find("a/1")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m.pop("schema"), "schema None"),
        (lambda m: m.update(schema=99), "schema 99"),
        (lambda m: m.update(format="other"), "not the manifest"),
        (lambda m: m.update(dtype="uint8"), "manifest.dtype"),
        (lambda m: m["files"][0].update(name="../../etc/passwd"), "passwd"),
        (lambda m: m["files"].pop(), "files does not list"),
        (lambda m: m["sources"][0]["train"].update(tokens=1), "do not add up"),
    ],
)
def test_a_manifest_that_lies_is_refused(copy: Path, change: object, complaint: str) -> None:
    path = copy / "manifest.json"
    raw = json.loads(path.read_text())
    assert callable(change)
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=complaint):
        Store.open(copy)


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        Store.open(tmp_path)
    (tmp_path / "x.building").mkdir()
    with pytest.raises(DataError, match="interrupted"):
        Store.open(tmp_path / "x")


def test_describe(folder: Path) -> None:
    found = describe(Store.open(folder / "many"))
    json.dumps(found)
    rows = {(r["name"], r["split"]): r for r in found["sources"]}
    assert rows["a", "train"]["documents"] + rows["a", "heldout"]["documents"] == 150
    assert rows["b", "heldout"]["tokens"] == 0 and rows["b", "train"]["documents"] == 90
    assert found["documents"] == 240 and found["tokens"] == sum(r["tokens"] for r in found["sources"])
