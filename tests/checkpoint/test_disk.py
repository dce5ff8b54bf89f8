"""Estimates of what checkpoints take."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxllm.checkpoint import disk
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.checkpoint.layout import step_folder
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.core.errors import CheckpointError
from tests.checkpoint.states import KEEP_ALL, digest, make_items, manifest_of


@pytest.mark.parametrize("kind", ["small", "incompressible"])
def test_a_save_never_takes_more_than_estimated(tmp_path: Path, kind: str) -> None:
    items = make_items(1)
    if kind == "incompressible":
        noise = np.random.default_rng(0).integers(0, 2**32, (1024, 1024), np.uint32).view(np.int32)
        items = {"params": {"w": jax.numpy.asarray(noise)}, "opt": {"count": jax.numpy.int32(0)}}
    estimate = disk.save_bytes(x.nbytes for x in jax.tree.leaves(items))
    with CheckpointStore(tmp_path, KEEP_ALL) as store:
        store.save(1, **items, cursor={}, meta=manifest_of(1, items, digest(items)))
    used = disk.used_bytes(step_folder(tmp_path, 1))
    assert used <= estimate
    if kind == "incompressible":
        assert estimate < 1.05 * used


def test_a_run_that_cannot_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Checkpoints(every_steps=10, keep_latest=2, keep_every=50)
    assert disk.run_bytes(config, 100, one_save=1000) == 5000  # 50 for ever, two newest, a stop, one new
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 5000)
    disk.require_for_run(tmp_path / "new", config, 100, one_save=1000)
    with pytest.raises(CheckpointError, match=r"5 checkpoints of 1.1 kB .* 5.0 kB are free"):
        disk.require_for_run(tmp_path / "new", config, 100, one_save=1100)
    with pytest.raises(CheckpointError, match="7 checkpoints"):  # which also may go back once and leave two behind
        disk.require_for_run(tmp_path / "new", config, 100, one_save=1000, rollbacks=1)
    step_folder(tmp_path, 10).mkdir()
    (step_folder(tmp_path, 10) / "data").write_bytes(b"x" * 600)
    disk.require_for_run(tmp_path, config, 100, one_save=1100)  # what is there already counts


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert disk.free_bytes(tmp_path / "a" / "b") > 0


def test_bytes_for_people() -> None:
    assert [disk.readable(n) for n in (0, 999, 1000, 1.5e9, 2e15)] == ["0 B", "999 B", "1.0 kB", "1.5 GB", "2000.0 TB"]
