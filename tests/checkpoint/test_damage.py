"""Every way in which the files of a checkpoint can be wrong: found, named, and the step before used."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxllm.checkpoint import layout
from jaxllm.checkpoint.layout import DamagedCheckpointError, step_folder
from jaxllm.checkpoint.manifest import sha256_json
from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.core.errors import CheckpointError
from tests.checkpoint.states import (
    KEEP_ALL,
    abstract,
    believing,
    data_files,
    digest,
    equal,
    flip_bit,
    make_items,
    save,
)
from tests.simulated import ROOT, simulated_env


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("good")
    with CheckpointStore(folder, KEEP_ALL) as store:
        save(store, 10)
        save(store, 20)
    return folder


@pytest.fixture
def folder(two_steps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def edit_meta(change: Callable[[dict], None], resealed: bool = False) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        path = step / "meta" / "metadata"
        meta = json.loads(path.read_text())
        change(meta["manifest"])
        if resealed:
            meta["sha256"] = sha256_json({k: v for k, v in meta.items() if k != "sha256"})
        path.write_text(json.dumps(meta))

    return damage


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def both(first: Callable[[Path], object], second: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        first(step)
        second(step)

    return damage


def borrow(step: Path, name: str) -> None:
    """Put what step 10 has under this name in its place."""
    source, target = step_folder(step.parent, 10) / name, step / name
    if target.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def largest(step: Path, item: str) -> Path:
    return data_files(step.parent, int(step.name), item)[0]


def flip_bits(path: Path) -> None:
    """One in every sixteenth of a file: a single one can hit a part that nothing refers to."""
    size = path.stat().st_size
    for part in range(16):
        flip_bit(path, size * (2 * part + 1) // 32)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "bits flipped in params": (lambda s: flip_bits(largest(s, "params")), r"params"),
    "bits flipped in opt": (lambda s: flip_bits(largest(s, "opt")), r"opt"),
    "params truncated": (lambda s: truncate(largest(s, "params"), 0.5), r"params\.[a-z.]+: cannot be read"),
    "opt data emptied": (lambda s: truncate(largest(s, "opt"), 0), r"opt\.[a-z0-9.]+: cannot be read"),
    "data file deleted": (lambda s: largest(s, "params").unlink(), r"params\.[a-z.]+: cannot be read"),
    "data file renamed": (
        lambda s: largest(s, "params").rename(s / "params" / "d" / "0000"),
        r"params\.[a-z.]+: cannot be read",
    ),
    "params deleted": (lambda s: shutil.rmtree(s / "params"), r"params: the item is missing"),
    "opt deleted": (lambda s: shutil.rmtree(s / "opt"), r"opt: the item is missing"),
    "cursor deleted": (lambda s: shutil.rmtree(s / "cursor"), r"cursor: the item is missing"),
    "meta deleted": (lambda s: shutil.rmtree(s / "meta"), r"meta: the item is missing"),
    "opt renamed": (lambda s: (s / "opt").rename(s / "optimizer"), r"opt: the item is missing"),
    "items swapped": (
        lambda s: ((s / "params").rename(s / "x"), (s / "opt").rename(s / "params"), (s / "x").rename(s / "opt")),
        r"(params|opt)",
    ),
    "_METADATA deleted": (lambda s: (s / "params" / "_METADATA").unlink(), r"params: _METADATA is missing"),
    "_METADATA emptied": (lambda s: truncate(s / "params" / "_METADATA", 0), r"params: _METADATA is empty"),
    "_METADATA truncated": (lambda s: truncate(s / "params" / "_METADATA", 0.5), r"params: cannot be restored"),
    "ocdbt manifest deleted": (lambda s: (s / "opt" / "manifest.ocdbt").unlink(), r"opt: manifest.ocdbt is missing"),
    "ocdbt manifest flipped": (lambda s: flip_bit(s / "opt" / "manifest.ocdbt"), r"opt\.[a-z0-9.]+: cannot be read"),
    "meta is no JSON": (lambda s: (s / "meta" / "metadata").write_text("{"), r"meta: cannot be read as JSON"),
    "meta truncated": (lambda s: truncate(s / "meta" / "metadata", 0.9), r"meta: cannot be read as JSON"),
    "meta is a list": (lambda s: (s / "meta" / "metadata").write_text("[]"), r"meta: not a sealed manifest"),
    "meta edited": (edit_meta(lambda m: m.update(tokens=m["tokens"] + 1)), r"meta: its sha256 does not match"),
    "cursor edited": (lambda s: (s / "cursor" / "metadata").write_text('{"step": 21}'), r"cursor: its sha256"),
    "cursor is no JSON": (lambda s: (s / "cursor" / "metadata").write_bytes(b"\xff"), r"cursor: cannot be read"),
    "cursor of another step": (lambda s: borrow(s, "cursor/metadata"), r"cursor: its sha256"),
    "params of another step": (
        lambda s: borrow(s, "params"),
        r"params\.blocks\.attention\.q: its digest is \w{16}, saved was \w{16} \(4 of 13 arrays differ\)",
    ),
    "another step under this name": (lambda s: borrow(s, "."), r"meta: it is the manifest of step 10"),
    "folder emptied": (both(shutil.rmtree, lambda s: s.mkdir()), r"cursor: the item is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_the_step_before_is_used(folder: Path, kind: str) -> None:
    damage, reason = DAMAGE[kind]
    damage(step_folder(folder, 20))
    wanted, bad = abstract(make_items(20)), []
    with CheckpointStore(folder, KEEP_ALL) as store:
        with pytest.raises(DamagedCheckpointError, match=f"checkpoint 20 is damaged: {reason}") as caught:
            store.restore(20, wanted, digest)
        assert "\n" not in str(caught.value)
        restored = store.restore_latest(wanted, digest, lambda step, why: bad.append((step, why)))
        assert restored is not None and restored.step == 10 and equal(restored.items, make_items(10))
        assert restored.cursor["step"] == 10
        assert len(bad) == 1 and bad[0][0] == 20 and re.match(reason, bad[0][1])
        assert store.steps() == [10] and layout.quarantined(folder) == ["00000020-1"]
        assert (folder / "quarantine" / "00000020-1" / "why.txt").read_text() == bad[0][1] + "\n"
        save(store, 20)  # the step can be saved again
        again = store.restore_latest(wanted, digest)
        assert again is not None and equal(again.items, make_items(20))


def test_without_the_digest_a_flipped_bit_would_pass(folder: Path) -> None:
    """The mutation: a digest that looks at nothing lets most flipped bits through, into another state."""
    path, items = largest(step_folder(folder, 20), "params"), make_items(20)
    whole, passed, tried = path.read_bytes(), 0, 12
    with CheckpointStore(folder, KEEP_ALL) as store:
        for n in range(tried):
            path.write_bytes(whole)
            flip_bit(path, len(whole) * n // tried)
            try:
                restored = store.restore(20, abstract(items), believing(store, 20))
            except DamagedCheckpointError:
                continue
            if not equal(restored.items, items):
                passed += 1
                with pytest.raises(DamagedCheckpointError, match=r"params\.[a-z.]+: its digest is"):
                    store.restore(20, abstract(items), digest)
    assert passed > tried // 2


def test_no_single_bit_of_any_file_changes_what_is_restored(folder: Path) -> None:
    """Flip one bit somewhere in each file in turn: the restore fails as damaged, or gives exactly what was saved."""
    rng, found = np.random.default_rng(0), 0
    reader, items = CheckpointReader(folder), make_items(20)
    files = sorted(p for p in step_folder(folder, 20).rglob("*") if p.is_file() and p.stat().st_size)
    assert len(files) > 20
    for path in files:
        whole = path.read_bytes()
        for at in rng.integers(0, len(whole), 2):
            data = bytearray(whole)
            data[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(data))
            try:
                restored = reader.restore(20, abstract(items), digest)
            except DamagedCheckpointError:
                found += 1
            else:
                assert equal(restored.items, items) and restored.cursor["step"] == 20
        path.write_bytes(whole)
    assert found > 5
    assert equal(reader.restore(20, abstract(items), digest).items, items)


def test_when_all_are_bad_it_raises_and_moves_nothing(folder: Path) -> None:
    shutil.rmtree(step_folder(folder, 20) / "opt")
    flip_bit(step_folder(folder, 10) / "cursor" / "metadata")
    called = []
    with CheckpointStore(folder, KEEP_ALL) as store:
        with pytest.raises(CheckpointError, match=r"step 20: opt: the item is missing; step 10: cursor"):
            store.restore_latest(abstract(make_items(20)), digest, lambda *event: called.append(event))
        assert store.steps() == [10, 20] and not called and not layout.quarantined(folder)


def test_an_empty_folder_is_a_new_run_and_a_quarantined_one_is_not(folder: Path, tmp_path: Path) -> None:
    wanted = abstract(make_items(20))
    with CheckpointStore(tmp_path / "new", KEEP_ALL) as store:
        assert store.restore_latest(wanted, digest) is None
    with CheckpointStore(folder, KEEP_ALL) as store:
        store.quarantine(20, "a test")
        store.quarantine(10, "a test")
        with pytest.raises(CheckpointError, match=r"only checkpoints are in quarantine/ \(00000010-1, 00000020-1\)"):
            store.restore_latest(wanted, digest)
        with pytest.raises(CheckpointError, match="no checkpoint of step 20 to move aside"):
            store.quarantine(20, "again")
        save(store, 20)
        assert store.quarantine(20, "once more").name == "00000020-2"


def test_a_step_that_is_not_there(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of step 15; there are: 10, 20") as caught:
        CheckpointReader(folder).restore(15, abstract(make_items(1)), digest)
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_newer_schema_is_not_damage(folder: Path) -> None:
    edit_meta(lambda m: m.update(schema=99), resealed=True)(step_folder(folder, 20))
    with CheckpointStore(folder, KEEP_ALL) as store:
        with pytest.raises(CheckpointError, match=r"meta.schema=99: this jaxllm reads schemas 1 to 1; update jaxllm"):
            store.restore_latest(abstract(make_items(20)), digest)
        assert store.steps() == [10, 20]


def test_lack_of_memory_is_not_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxllm.checkpoint import reader

    def restore(self: object, *args: object, **kwargs: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 1 byte")

    monkeypatch.setattr(reader.ocp.Checkpointer, "restore", restore)
    with CheckpointStore(folder, KEEP_ALL) as store:
        with pytest.raises(CheckpointError, match="RESOURCE_EXHAUSTED") as caught:
            store.restore_latest(abstract(make_items(20)), digest)
        assert not isinstance(caught.value, DamagedCheckpointError) and store.steps() == [10, 20]


def test_a_damaged_file_is_one_line_to_the_user(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    DAMAGE["params truncated"][0](step_folder(folder, 20))
    code = (
        "import sys; from tests.checkpoint.states import *; from jaxllm.core.errors import CheckpointError\n"
        "try: CheckpointStore(sys.argv[1], KEEP_ALL).restore(20, abstract(make_items(20)), digest)\n"
        "except CheckpointError as err: print(err)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, env=simulated_env(1), check=True)
    out, err = capfd.readouterr()
    assert out.startswith(f"{folder}: checkpoint 20 is damaged: params.") and out.count("\n") == 1
    assert err == ""


def test_parameters_alone_are_checked_too(folder: Path) -> None:
    reader, wanted = CheckpointReader(folder), abstract(make_items(20))["params"]
    flip_bit(largest(step_folder(folder, 20), "opt"))
    assert equal(reader.restore_params(20, wanted, digest).items["params"], make_items(20)["params"])
    flip_bit(largest(step_folder(folder, 20), "params"))
    with pytest.raises(DamagedCheckpointError, match="params"):
        reader.restore_params(20, wanted, digest)
