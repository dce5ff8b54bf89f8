"""Runs that start from another run's checkpoint."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxllm import app
from jaxllm.assembly import assemble
from jaxllm.checkpoint.manifest import state_digest
from jaxllm.checkpoint.names import array_records
from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.core.errors import CheckpointError, JaxllmError, RunError
from jaxllm.exporting import export_run
from jaxllm.importing import import_folder
from jaxllm.ledger.fold import story
from jaxllm.ledger.journal import read_journal
from jaxllm.origin import first_state, inherit, pin_start
from jaxllm.run import RunConfig, identity_hash
from jaxllm.train.config import FromRun
from jaxllm.workspace import open_config, open_run

pytestmark = pytest.mark.slow

CONFIG = "tests/golden/config.py:golden"
QUIET = ["evaluation.every_steps=null", "evaluation.windows=4", "logging.tensorboard=false"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that stopped after step 9, with an average of its parameters."""
    root = tmp_path_factory.mktemp("root")
    run, folder = opened(root, "optimizer.ema.decay=0.9")
    assert app.train(run, folder, stop_at=9, profile=None, as_json=False) == 0
    return root


def opened(root: Path, *more: str) -> tuple[RunConfig, Path]:
    place = [f"io.root={root}", f"io.data_cache={root / 'data'}", f"io.compilation_cache={root / 'xla'}"]
    return open_config(CONFIG, [*QUIET, *place, *more])


def child(root: Path, *more: str, **start: Any) -> tuple[RunConfig, Path]:
    value = json.dumps({"kind": "FromRun", "folder": "golden"} | start)
    return opened(root, "name=child", "seed=5", f"start={value}", *more)


def digests(run: RunConfig) -> tuple[dict[str, str], str]:
    """(digest of every array of the first state, of the whole)."""
    parts = assemble(run)
    items = first_state(pin_start(run), parts).items()
    found = parts.digest(items)
    return found, state_digest(array_records(items, found))


def test_the_state_is_the_one_that_was_saved(root: Path) -> None:
    saved = CheckpointReader(root / "golden" / "checkpoints").manifest(9)
    _, whole = digests(child(root, "optimizer.ema.decay=0.9", optimizer="keep")[0])
    assert whole == saved.state_digest
    fresh, whole = digests(child(root, optimizer="fresh")[0])
    assert whole != saved.state_digest
    assert {n: d for n, d in fresh.items() if n.startswith("params.")} == {
        n: d for n, d in saved.digests.items() if n.startswith("params.")
    }
    moments = {d for n, d in fresh.items() if n.startswith(("opt.mu", "opt.nu"))}
    assert not moments & set(saved.digests.values())


def test_an_average_that_was_not_kept_begins_with_the_parameters(root: Path) -> None:
    run, _ = child(root, "optimizer.ema.decay=0.9", optimizer="fresh")
    state = first_state(pin_start(run), assemble(run))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_child_pins_its_origin_and_then_needs_it_no_more(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "golden", tmp_path / "golden")
    run, folder = child(tmp_path, optimizer="fresh", step=8)
    assert app.train(run, folder, stop_at=2, profile=None, as_json=False) == 0
    start = open_run(folder).start
    saved = CheckpointReader(tmp_path / "golden" / "checkpoints").manifest(8)
    assert start == FromRun(folder="golden", step=8, optimizer="fresh", digest=saved.state_digest)
    events = read_journal(folder / "journal.jsonl")
    assert events[0]["origin"] == {"run": "golden", "step": 8, "digest": saved.state_digest, "optimizer": "fresh"}
    assert f"from step 8 of golden (state {saved.state_digest[:12]}, optimizer fresh)" in story(events)[0]
    shutil.rmtree(tmp_path / "golden")
    assert app.train(run, folder, stop_at=3, profile=None, as_json=False) == 0  # the command of before, unpinned
    with pytest.raises(RunError, match=r"start\.step: 8 -> 9"):
        app.train(child(tmp_path, optimizer="fresh", step=9)[0], folder, stop_at=4, profile=None, as_json=False)


def test_training_goes_on_from_an_import_as_from_the_run_itself(root: Path, tmp_path: Path) -> None:
    export_run(root / "golden", tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "published")
    digests = []
    for name, parent in (("straight", "golden"), ("around", str(tmp_path / "published"))):
        start = json.dumps({"kind": "FromRun", "folder": parent})
        run, folder = opened(root, f"name={name}", "seed=5", f"start={start}")
        assert app.train(run, folder, stop_at=2, profile=None, as_json=False) == 0
        digests.append(CheckpointReader(folder / "checkpoints").manifest(2).state_digest)
    assert digests[0] == digests[1]
    run, _ = child(root, folder=str(tmp_path / "published"), optimizer="keep")
    with pytest.raises(RunError, match=r"holds params and no optimizer, .*; use start\.optimizer=fresh"):
        pin_start(run)


@pytest.mark.parametrize("same", [True, False])
def test_a_chat_template_is_inherited_with_the_tokenizer(same: bool, root: Path, tmp_path: Path) -> None:
    parent = Path(shutil.copytree(root / "golden", tmp_path / "golden"))
    (parent / "chat_template.jinja").write_text("{{ messages }}")
    (parent / "hf").mkdir()
    (parent / "hf" / "tokenizer_config.json").write_text("{}")
    folder = tmp_path / "child"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((parent / "tokenizer.json").read_bytes() + b" " * (not same))
    inherit(child(tmp_path)[0], folder)
    assert (folder / "chat_template.jinja").exists() == same
    assert (folder / "hf" / "tokenizer_config.json").exists() == same
    if same:
        (folder / "chat_template.jinja").write_text("mine")
        inherit(child(tmp_path)[0], folder)
        assert (folder / "chat_template.jinja").read_text() == "mine"


@pytest.mark.parametrize(
    ("start", "more", "words"),
    [
        ({"step": 7}, (), "no checkpoint 7; it has 8, 9"),
        ({"folder": "nowhere"}, (), "no run folder"),
        ({}, ("model.layers=3",), "trained another model; layers: 2 -> 3"),
        ({"step": 8, "digest": "ab" * 32}, (), "this run was started from abababababab"),
    ],
)
def test_what_cannot_be_started_from(root: Path, start: dict[str, Any], more: tuple[str, ...], words: str) -> None:
    run, folder = child(root, *more, **start)
    with pytest.raises(JaxllmError, match=words) as caught:
        app.train(run, folder, stop_at=2, profile=None, as_json=False)
    assert isinstance(caught.value, (RunError, CheckpointError))
    journal = folder / "journal.jsonl"
    assert not (folder / "run.json").exists() and not (journal.exists() and journal.read_bytes())


def test_identity(root: Path) -> None:
    """Another origin is another run; the same one in another place is not."""
    run, _ = child(root, step=8, digest="a" * 64)
    moved = dataclasses.replace(run, start=FromRun(folder="/elsewhere", step=8, digest="a" * 64))
    other = dataclasses.replace(run, start=FromRun(folder="golden", step=8, digest="b" * 64))
    assert identity_hash(run) == identity_hash(moved) != identity_hash(other)
    assert identity_hash(run) != identity_hash(opened(root, "name=child", "seed=5")[0])
