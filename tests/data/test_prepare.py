"""Preparing a store: the same bytes however it is done, and clear words about what is wrong."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from jaxllm.core.config import encode
from jaxllm.core.errors import ConfigError, DataError
from jaxllm.data import scan
from jaxllm.data.config import DataRecipe, PythonCode, PythonProse, SourceRecipe, TokenizerFile, TrainBpe
from jaxllm.data.prepare import cached_store, prepare
from jaxllm.data.selection import is_heldout
from jaxllm.data.store import Store
from tests.data.texts import differing, recipe, sentences, source, write_jsonl

# Builds the store of the recipe in argv[1] at argv[2] with argv[3] workers, slowly enough to be hit anywhere.
PROGRAM = """
import json, sys, time
from pathlib import Path
from jaxllm.core.config import decode
from jaxllm.data.config import DataRecipe
from jaxllm.data.prepare import prepare

def tell(phase, done, total):
    print(phase, done, total, flush=True)
    time.sleep(0.01)

if __name__ == "__main__":
    recipe = decode(DataRecipe, json.loads(Path(sys.argv[1]).read_text()))
    prepare(recipe, sys.argv[2], int(sys.argv[3]), progress=tell, shard_tokens=2000, unit_bytes=4000)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources that share texts, a file cut into many units, several small files."""
    root = tmp_path_factory.mktemp("corpus")
    write_jsonl(root / "big.jsonl", sentences(1, 300) + sentences(1, 30))
    for i in range(6):
        write_jsonl(root / "small" / f"{i}.jsonl", sentences(10 + i, 25) + sentences(1, 10))
    (root / "program.py").write_text(PROGRAM)
    (root / "recipe.json").write_text(json.dumps(encode(two_sources(root))))
    prepare(two_sources(root), root / "reference", workers=1, shard_tokens=2000, unit_bytes=4000)
    return root


def two_sources(root: Path, deduplicate: bool = True) -> DataRecipe:
    return recipe(
        source("big", root / "big.jsonl", heldout_per_mille=100),
        source("small", root / "small" / "*.jsonl", heldout_per_mille=50),
        deduplicate=deduplicate,
    )


def run(corpus: Path, out: Path, workers: int) -> "subprocess.Popen[str]":
    command = [sys.executable, str(corpus / "program.py"), str(corpus / "recipe.json"), str(out), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def texts_of(store: Store, split: str = "train") -> dict[str, list[str]]:
    """The texts of each source, in order, from their tokens."""
    tokenizer = Tokenizer.from_file(str(store.tokenizer_path))
    found = {}
    for name, reader in (store.sources if split == "train" else store.heldout).items():
        spans = zip([0, *reader.ends], reader.ends, strict=False)
        found[name] = [tokenizer.decode(reader.read(int(a), int(b) - 1).tolist()) for a, b in spans]
    return found


# ---- the same bytes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_and_units_leave_no_trace(corpus: Path, tmp_path: Path) -> None:
    prepare(two_sources(corpus), tmp_path / "workers", workers=3, shard_tokens=2000, unit_bytes=4000)
    assert not differing(corpus / "reference", tmp_path / "workers")
    prepare(two_sources(corpus), tmp_path / "units", workers=1, shard_tokens=2000, unit_bytes=1_000_000)
    assert not differing(corpus / "reference", tmp_path / "units")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(corpus: Path, tmp_path: Path, workers: int) -> None:
    rng = random.Random(workers)
    out = tmp_path / "store"
    kills = 0
    began: dict[tuple[int, str], int] = {}
    for _ in range(60):
        process = run(corpus, out, workers)
        assert process.stdout is not None
        # Killed after so many reports: at the very beginning, within any phase, while a task is at work.
        for _, line in zip(range(rng.randrange(1, 45)), process.stdout, strict=False):
            phase, done, _total = line.rsplit(maxsplit=2)
            began.setdefault((kills, phase), int(done))
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        if process.wait() == 0:
            break
        kills += 1
        assert not out.exists() or not differing(corpus / "reference", out)
    assert kills >= 3 and not differing(corpus / "reference", out)
    # What was done stays done: the first report of `read` never falls back, and most of it was inherited.
    reads = [began[k, "read"] for k in range(kills) if (k, "read") in began]
    assert reads == sorted(reads) and reads[-1] > 0
    assert not (tmp_path / "store.building").exists() or process.returncode != 0
    prepare(two_sources(corpus), out, workers=1, shard_tokens=2000, unit_bytes=4000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_a_result_that_was_tampered_with_would_be_seen(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "store"
    interrupt(two_sources(corpus), out, "train tokenizer", monkeypatch)
    victim = sorted((tmp_path / "store.building" / "work" / "scan").glob("*.parquet"))[3]
    table = pq.read_table(victim)
    with pq.ParquetWriter(victim, table.schema) as writer:
        writer.write_table(table.slice(1))
        writer.add_key_value_metadata({"jaxllm": '{"empty": 0, "bad": 0, "listed": []}'})
    prepare(two_sources(corpus), out, workers=1, shard_tokens=2000, unit_bytes=4000)
    assert "manifest.json" in differing(corpus / "reference", out)


class Stop(Exception):
    pass


def interrupt(made: DataRecipe, out: Path, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare until `phase` begins."""

    def tell(at: str, done: int, total: int) -> None:
        if at == phase:
            raise Stop

    with pytest.raises(Stop):
        prepare(made, out, workers=1, progress=tell, shard_tokens=2000, unit_bytes=4000)


def test_done_units_are_not_read_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "store"
    interrupt(two_sources(corpus), out, "tokenize", monkeypatch)

    def refuse(*anything: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(scan, "read_piece", refuse)
    prepare(two_sources(corpus), out, workers=1, shard_tokens=2000, unit_bytes=4000)
    assert not differing(corpus / "reference", out)


def test_trained_on_no_heldout_text(corpus: Path, tmp_path: Path) -> None:
    secret = "zyzzyva quixotry " * 30
    texts = sentences(3, 200)
    texts += [t for t in (f"{secret}{i}" for i in range(400)) if is_heldout(_sha(t), 100)]
    write_jsonl(tmp_path / "x.jsonl", texts)
    store = Store.open(
        prepare(recipe(source("x", tmp_path / "x.jsonl", heldout_per_mille=100)), tmp_path / "s", 1).path
    )
    assert store.heldout["x"].documents > 20
    vocabulary = Tokenizer.from_file(str(store.tokenizer_path)).get_vocab()
    assert not [t for t in vocabulary if "zyz" in t or "quix" in t]
    all_in = prepare(recipe(source("x", tmp_path / "x.jsonl")), tmp_path / "all", 1)
    assert [
        t for t in Tokenizer.from_file(str(all_in.path / "tokenizer.json")).get_vocab() if "zyz" in t or "quix" in t
    ]


# ---- what is in it ---------------------------------------------------------------------------------------------------


def _sha(text: str) -> bytes:
    import hashlib

    return hashlib.sha256(text.encode()).digest()


def test_first_of_equal_texts_in_the_order_of_the_recipe(corpus: Path, tmp_path: Path) -> None:
    big = sentences(1, 300)
    small = [t for i in range(6) for t in sentences(10 + i, 25)]
    store = Store.open(corpus / "reference")
    assert texts_of(store)["big"] == [t for t in big if not is_heldout(_sha(t), 100)]
    assert texts_of(store, "heldout")["big"] == [t for t in big if is_heldout(_sha(t), 100)]
    assert texts_of(store)["small"] == [t for t in small if not is_heldout(_sha(t), 50)]
    assert [(s.name, s.duplicates) for s in store.manifest.sources] == [("big", 30), ("small", 60)]

    prepare(two_sources(corpus, deduplicate=False), tmp_path / "all", workers=1)
    found = Store.open(tmp_path / "all")
    assert sum(map(len, (*texts_of(found)["big"], *texts_of(found, "heldout")["big"]))) == sum(
        map(len, big + sentences(1, 30))
    )


def test_every_document_is_found_where_it_came_from(corpus: Path) -> None:
    store = Store.open(corpus / "reference")
    for reader in (*store.sources.values(), *store.heldout.values()):
        for index in range(reader.documents):
            document = reader.document(index)
            line = Path(document.origin).read_text().splitlines()[document.line - 1]
            assert _sha(json.loads(line)["text"]).hex() == document.sha256
            assert document.id == f"{document.origin}:{document.line}"
    inputs = [json.loads(x) for x in (store.path / "inputs.jsonl").read_text().splitlines()]
    assert [Path(i["origin"]).name for i in inputs] == ["big.jsonl", *(f"{i}.jsonl" for i in range(6))]


def test_ids_are_made_unique(tmp_path: Path) -> None:
    texts = sentences(1, 8)
    ids = ["a", "b", "a", "a#2", "a", "b", "c", "a"]
    write_jsonl(tmp_path / "x.jsonl", [*texts[:7], texts[0]], id=ids)
    made = recipe(source("x", tmp_path / "x.jsonl", id_field="id"))
    expected = ["a", "b", "a#3", "a#2", "a#4", "b#2", "c"]
    for unit_bytes in (60, 10_000):
        out = tmp_path / str(unit_bytes)
        reader = Store.open(prepare(made, out, 1, unit_bytes=unit_bytes).path).sources["x"]
        assert [reader.document(i).id for i in range(reader.documents)] == expected
        assert [reader.find(name) for name in expected] == list(range(7))


def test_shards_are_bounded_and_hold_whole_documents(corpus: Path) -> None:
    store = Store.open(corpus / "reference")
    for entry in store.manifest.sources:
        lengths = np.diff(store.sources[entry.name].ends, prepend=0)
        for shard, following in zip(entry.train.shards, entry.train.shards[1:], strict=False):
            assert shard.tokens <= 2000 or shard.documents == 1
            assert shard.tokens + lengths.max() > 2000 and following.documents > 0
        assert sum(s.tokens for s in entry.train.shards) == entry.train.tokens == lengths.sum()
        assert entry.train.bytes == entry.train.token_bytes


def test_a_document_longer_than_a_shard(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", ["short one", "a very long document " * 300, "short two"])
    report = prepare(recipe(source("x", tmp_path / "x.jsonl")), tmp_path / "s", workers=1, shard_tokens=50)
    store = Store.open(report.path)
    assert [s.documents for s in store.manifest.sources[0].train.shards] == [1, 1, 1]
    assert texts_of(store)["x"][1] == "a very long document " * 300


def test_a_given_tokenizer_is_copied_as_it_is(corpus: Path, tmp_path: Path) -> None:
    given = tmp_path / "t.json"
    raw = json.loads((corpus / "reference" / "tokenizer.json").read_text())
    given.write_text(json.dumps(raw))
    made = recipe(
        source("small", corpus / "small"), tokenizer=TokenizerFile(path=str(given), end_of_text="<|endoftext|>")
    )
    store = Store.open(prepare(made, tmp_path / "s", workers=1).path)
    assert store.tokenizer_path.read_bytes() == given.read_bytes()
    assert store.tokenizer_identity == Store.open(corpus / "reference").tokenizer_identity


def test_manifest_has_no_clock_and_no_machine(corpus: Path) -> None:
    text = (corpus / "reference" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert not [k for k in manifest if k in ("time", "host", "created", "workers", "seconds")]
    assert str(Path(sys.prefix)) not in text and str(os.getpid()) not in [str(v) for v in manifest.values()]


def test_python_sources_are_named_relative_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib"
    (library / "pack" / "tests").mkdir(parents=True)
    prose = "This is a docstring of rather more than sixteen words, so that it counts as prose and not as a mere label."
    for name in ("alone.py", "pack/__init__.py", "pack/tests/test_it.py"):
        (library / name).write_text(f'def f():\n    """{prose} {name}"""\n    return {name!r}\n' * 2)
    (library / "broken.py").write_text("def f(:\n")
    (library / "empty.py").write_text("")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    made = recipe(
        SourceRecipe(name="prose", documents=PythonProse()), SourceRecipe(name="code", documents=PythonCode())
    )
    store = Store.open(prepare(made, tmp_path / "s", workers=1).path)
    prose_ids, code_ids = ([r.document(i).id for i in range(r.documents)] for r in store.sources.values())
    assert prose_ids == ["alone:f", "pack:f"] and code_ids == ["alone", "pack"]  # the second f is a duplicate
    assert texts_of(store)["code"][0] == "def f():\n    return 'alone.py'\n" * 2
    assert [(s.duplicates, s.empty, s.bad) for s in store.manifest.sources] == [(2, 0, 1), (0, 1, 1)]
    assert store.manifest.sources[0].bad_listed[0].origin == "broken.py"
    assert str(tmp_path) not in (store.path / "manifest.json").read_text() + (store.path / "inputs.jsonl").read_text()


def test_empty_texts_are_counted_not_kept(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", ["", "text", " \n", "more text"])
    report = prepare(recipe(source("x", tmp_path / "x.jsonl")), tmp_path / "s", workers=1)
    assert (report.documents, report.empty, report.bad) == (2, 2, 0)


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_bad_input_is_an_error_with_its_line_or_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", sentences(1, 40))
    lines = (tmp_path / "x.jsonl").read_bytes().splitlines(keepends=True)
    lines[20], lines[30] = b'{"text": \n', b"\xff\n"
    (tmp_path / "x.jsonl").write_bytes(b"".join(lines))
    made = recipe(source("x", tmp_path / "x.jsonl"))
    with pytest.raises(DataError, match=r"x\.jsonl:21: not JSON.*--skip-bad"):
        prepare(made, tmp_path / "strict", workers=1, unit_bytes=500)
    with pytest.raises(DataError, match=r"x\.jsonl:(21|31): "):
        prepare(made, tmp_path / "strict2", workers=2, unit_bytes=500)
    assert not (tmp_path / "strict").exists()
    report = prepare(made, tmp_path / "s", workers=1, skip_bad=True, unit_bytes=500)
    entry = Store.open(report.path).manifest.sources[0]
    assert (report.documents, report.bad) == (38, 2)
    assert [(b.line, b.why.split(":")[0]) for b in entry.bad_listed] == [
        (21, "not JSON"),
        (31, "not UTF-8 at byte 0 of the line"),
    ]


def test_the_list_of_bad_input_is_capped_its_count_is_not(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "good"}\n' + "bad\n" * 2500)
    report = prepare(recipe(source("x", tmp_path / "x.jsonl")), tmp_path / "s", 1, skip_bad=True, unit_bytes=3000)
    entry = Store.open(report.path).manifest.sources[0]
    assert entry.bad == 2500 and [b.line for b in entry.bad_listed] == list(range(2, 1002))


@pytest.mark.parametrize(
    ("lines", "per_mille", "skip_bad"),
    [([""], 0, False), (["bad"], 0, True), (['{"text": "only one"}', '{"text": ""}'], 999, False)],
)
def test_a_source_without_documents(tmp_path: Path, lines: list[str], per_mille: int, skip_bad: bool) -> None:
    (tmp_path / "x.jsonl").write_text("".join(x + "\n" for x in lines))
    write_jsonl(tmp_path / "y.jsonl", sentences(1, 9))
    made = recipe(source("y", tmp_path / "y.jsonl"), source("x", tmp_path / "x.jsonl", heldout_per_mille=per_mille))
    with pytest.raises(DataError, match="'x': no documents to train on"):
        prepare(made, tmp_path / "s", workers=1, skip_bad=skip_bad)


def test_unusable_tokenizers_are_refused_before_any_work(corpus: Path, tmp_path: Path) -> None:
    tokenizer = TokenizerFile(path=str(corpus / "reference" / "tokenizer.json"), end_of_text="</s>")
    for bad, why in ((tokenizer, "</s>"), (TrainBpe(vocab_size=100), "vocab_size=100")):
        with pytest.raises(DataError, match=why):
            prepare(recipe(source("x", corpus / "small"), tokenizer=bad), tmp_path / "s", workers=1)
    assert not list(tmp_path.iterdir())


def test_an_existing_store_is_kept_if_it_is_this_one(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    inputs = tmp_path / "x.jsonl"
    shutil.copy(corpus / "big.jsonl", inputs)
    made = recipe(source("x", inputs))
    first = prepare(made, out, workers=1)
    again = prepare(made, out, workers=1)
    assert not first.reused and again.reused and again.manifest_sha256 == first.manifest_sha256
    assert (again.documents, again.tokens, again.bytes) == (first.documents, first.tokens, first.bytes)
    with pytest.raises(DataError, match=r"holds another store \(shard_tokens"):
        prepare(made, out, workers=1, shard_tokens=100)
    with pytest.raises(DataError, match=r"another store \(recipe.deduplicate"):
        prepare(recipe(source("x", inputs), deduplicate=False), out, workers=1)
    inputs.write_bytes(inputs.read_bytes().replace(b"1.0", b"1.9", 1))
    with pytest.raises(DataError, match=r"input .*x\.jsonl has changed"):
        prepare(made, out, workers=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="is not a token store"):
        prepare(made, tmp_path / "other", workers=1)


def test_an_interrupted_build_of_something_else_is_refused_or_discarded(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "store"
    interrupt(two_sources(corpus), out, "tokenize", monkeypatch)
    other = two_sources(corpus, deduplicate=False)
    with pytest.raises(DataError, match=r"interrupted preparation of something else \(recipe\.deduplicate"):
        prepare(other, out, workers=1, shard_tokens=2000, unit_bytes=4000)
    prepare(other, out, workers=1, shard_tokens=2000, unit_bytes=4000, on_stale="discard")
    prepare(other, tmp_path / "fresh", workers=1, shard_tokens=2000, unit_bytes=4000)
    assert not differing(out, tmp_path / "fresh")


def test_two_preparations_do_not_collide(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    process = run(corpus, out, 1)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("read"):
            break
    with pytest.raises(DataError, match=rf"another preparation is at work here \(pid {process.pid} on "):
        prepare(two_sources(corpus), out, workers=1, shard_tokens=2000, unit_bytes=4000)
    waited: list[str] = []
    report = prepare(
        two_sources(corpus),
        out,
        workers=1,
        progress=lambda phase, done, total: waited.append(phase),
        shard_tokens=2000,
        unit_bytes=4000,
        wait=True,
    )
    process.stdout.read()
    assert process.wait() == 0 and report.reused and waited == ["waiting for another preparation"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


@pytest.mark.slow
def test_workers_leave_with_a_killed_parent(corpus: Path, tmp_path: Path) -> None:
    process = run(corpus, tmp_path / "store", 2)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("tokenize"):
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("no /proc here")
    workers = [int(p) for p in children.read_text().split()]
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()
    deadline = time.monotonic() + 20
    while any(_runs(p) for p in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [p for p in workers if _runs(p)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- around it -------------------------------------------------------------------------------------------------------


def test_cache_is_addressed_by_recipe_and_inputs(tmp_path: Path) -> None:
    inputs = write_jsonl(tmp_path / "in" / "x.jsonl", sentences(1, 50))
    made = recipe(source("x", inputs))
    phases: list[str] = []
    first = cached_store(made, tmp_path / "cache", workers=1, progress=lambda p, d, t: phases.append(p))
    assert (
        first.parent == tmp_path / "cache" and first.name.startswith("small-") and len(first.name) == len("small-") + 12
    )
    assert set(phases) == {"read", "select", "train tokenizer", "tokenize", "write"}
    Store.open(first).verify()
    phases.clear()
    assert cached_store(made, tmp_path / "cache", workers=1, progress=lambda p, d, t: phases.append(p)) == first
    assert not phases
    second = cached_store(recipe(source("y", inputs)), tmp_path / "cache", workers=1)
    write_jsonl(inputs, sentences(2, 50))
    third = cached_store(made, tmp_path / "cache", workers=1)
    assert len({first, second, third}) == 3 and first.exists()


def test_progress_counts_up_to_the_whole(corpus: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    prepare(
        two_sources(corpus),
        tmp_path / "s",
        workers=2,
        progress=lambda phase, done, total: seen.setdefault(phase, []).append((done, total)),
        unit_bytes=4000,
    )
    assert list(seen) == ["survey", "read", "select", "train tokenizer", "tokenize", "write"]
    for reports in seen.values():
        assert reports[0][0] == 0 and reports[-1][0] == reports[-1][1] > 0 and reports == sorted(reports)


def test_silly_numbers_are_refused(tmp_path: Path) -> None:
    made = recipe(source("x", tmp_path))
    for wrong in ({"shard_tokens": 0}, {"unit_bytes": 0}, {"workers": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            prepare(made, tmp_path / "s", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a recipe is named"):
        DataRecipe(name="../x", sources=made.sources, tokenizer=made.tokenizer)
