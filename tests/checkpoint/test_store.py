"""Saving, reporting, retention, restoring on one device."""

import concurrent.futures
import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxllm.checkpoint import disk, layout
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.checkpoint.layout import DamagedCheckpointError, step_folder
from jaxllm.checkpoint.manifest import encode
from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.core.errors import EXIT_SAVED_START_AGAIN, CheckpointError
from tests.checkpoint.states import KEEP_ALL, abstract, digest, equal, make_items, manifest_of, save
from tests.simulated import ROOT, simulated_env


@contextmanager
def commits_held(store: CheckpointStore) -> Iterator[None]:
    """Inside, saves are started and not committed."""
    release = threading.Event()
    store._background.submit(release.wait)
    try:
        yield
    finally:
        release.set()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(tmp_path / "checkpoints", KEEP_ALL) as opened:
        yield opened


def test_what_is_saved_comes_back(store: CheckpointStore) -> None:
    items = make_items(7, ema=True)
    save(store, 7, items)
    restored = store.restore(7, abstract(items), digest)
    assert equal(restored.items, items)
    assert restored.cursor == {"step": 7, "grain": {"next_index": 7}}
    assert restored.manifest == manifest_of(7, items)
    assert type(restored.items["opt"][0]).__name__ == "ScaleByAdamState"


def test_equal_notices_a_single_bit() -> None:
    a, b = make_items(1), make_items(1)
    assert equal(a, b)
    b["params"]["final_norm"] = jnp.asarray(np.asarray(b["params"]["final_norm"]).view(np.int32) ^ 1).view(jnp.float32)
    assert not equal(a, b)


def test_parameters_alone(store: CheckpointStore) -> None:
    items = make_items(3, ema=True)
    save(store, 3, items)
    reader = CheckpointReader(store.folder)
    assert equal(reader.restore_params(3, abstract(items)["params"], digest).items["params"], items["params"])
    assert equal(reader.restore_params(3, abstract(items)["ema"], digest, item="ema").items["ema"], items["ema"])


def test_no_average_kept(store: CheckpointStore) -> None:
    items = make_items(3)
    save(store, 3, items)
    with pytest.raises(CheckpointError, match="holds no 'ema'"):
        store.restore_params(3, abstract(items)["params"], digest, item="ema")
    with pytest.raises(CheckpointError, match="'ema' is asked for only"):
        store.restore(3, abstract(items) | {"ema": abstract(items)["params"]}, digest)


def large_items() -> dict[str, Any]:
    params = {f"w{i}": jax.random.normal(jax.random.key(i), (512, 1024)) for i in range(8)}
    return {"params": params, "opt": {"count": jnp.int32(1)}}


def test_the_state_may_be_donated_as_soon_as_save_returns(store: CheckpointStore) -> None:
    """The train step donates its state; writing goes on behind it. On CPU a donated buffer that is being written stays
    alive and the step takes a new one; on accelerators the state was copied to the host."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: (x * 0 - 7).astype(x.dtype), tree), donate_argnums=0)
    items = large_items()
    kept, manifest = jax.tree.map(np.array, items), manifest_of(1, items)
    for step in range(3):  # the second and third hit memory that the first gave back
        if step == 0:
            store.save(1, **items, cursor={}, meta=manifest)
        items = overwrite(items)
        jax.block_until_ready(items)
    assert not equal(jax.tree.map(np.asarray, items), kept)
    store.wait()
    assert equal(jax.tree.map(np.asarray, store.restore(1, abstract(items), digest).items), kept)


def test_a_state_overwritten_before_it_was_copied_is_noticed(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation of the test above: the same check goes red when the buffers change under the writer."""
    items = large_items()
    real = store._writer.save

    def too_late(*args: Any, **kwargs: Any) -> None:
        buffer = items["params"]["w3"].unsafe_buffer_pointer()
        ctypes.memset(buffer, 0, 4096)
        real(*args, **kwargs)

    monkeypatch.setattr(store._writer, "save", too_late)
    store.save(1, **items, cursor={}, meta=manifest_of(1, items))
    store.wait()
    with pytest.raises(DamagedCheckpointError, match=r"params\.w3: its digest is"):
        store.restore(1, abstract(items), digest)


def test_cursor_is_copied_at_save(store: CheckpointStore) -> None:
    items = make_items(1)
    cursor: dict[str, Any] = {"step": 1, "deep": {"next": 1}}
    store.save(1, **items, cursor=cursor, meta=manifest_of(1, items))
    cursor["deep"]["next"] = 999
    store.wait()
    assert store.restore(1, abstract(items), digest).cursor == {"step": 1, "deep": {"next": 1}}


def test_finished_reports_each_step_once_and_only_when_named(store: CheckpointStore) -> None:
    with commits_held(store):
        assert store.finished() == []
        save(store, 1, wait=False)
        assert store.finished() == []
    store.wait()
    assert step_folder(store.folder, 1).is_dir()
    assert store.finished() == [1]
    assert store.finished() == []
    save(store, 2, wait=False)
    save(store, 3)  # waits for 2
    assert store.finished() == [2, 3]


def test_manifest_may_come_encoded(store: CheckpointStore) -> None:
    items = make_items(1)
    store.save(1, **items, cursor={}, meta=encode(manifest_of(1, items)))
    store.wait()
    assert store.manifest(1) == manifest_of(1, items)


def test_save_refuses_what_cannot_be_right(store: CheckpointStore) -> None:
    items = make_items(5)
    manifest = manifest_of(5, items)
    with pytest.raises(CheckpointError, match="its manifest says step 5"):
        store.save(6, **items, cursor={}, meta=manifest)
    with pytest.raises(CheckpointError, match="only one of state and digests has this array"):
        store.save(5, params=items["params"], opt={"count": jnp.int32(0)}, cursor={}, meta=manifest)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), items)
    with pytest.raises(CheckpointError, match="shapes or types"):
        store.save(5, **wide, cursor={}, meta=manifest)
    with pytest.raises(CheckpointError, match=r"opt\.0\.count is a ndarray, not a jax.Array"):
        store.save(5, **jax.tree.map(np.asarray, items), cursor={}, meta=manifest)
    with pytest.raises(CheckpointError, match="cursor is not JSON"):
        store.save(5, **items, cursor={"x": float("nan")}, meta=manifest)
    assert store.steps() == [] and store.finished() == []
    save(store, 5)
    for step in (5, 4):  # Orbax's manager would return False for both, and write nothing
        with pytest.raises(CheckpointError, match=f"checkpoint 5 exists, so {step} cannot be saved"):
            save(store, step)


def test_bad_names_are_refused(store: CheckpointStore) -> None:
    x = jnp.zeros(3)
    for tree in ({"a b": x}, {"a/b": x}, {"": x}):
        with pytest.raises(CheckpointError, match="no name for an array"):
            store.save(1, params=tree, opt={}, cursor={}, meta=manifest_of(1, make_items(1)))


def test_asking_for_another_state_is_not_damage(store: CheckpointStore) -> None:
    items = make_items(2)
    save(store, 1)
    save(store, 2)
    other = abstract(items)
    other["params"]["embed"] = jax.ShapeDtypeStruct((41, 16), jnp.float32, sharding=other["params"]["embed"].sharding)
    with pytest.raises(
        CheckpointError, match=r"params\.embed is float32\[40, 16\] in the checkpoint and float32\[41, 16\]"
    ):
        store.restore_latest(other, digest)
    cast = abstract(items)
    cast["params"]["embed"] = jax.ShapeDtypeStruct((40, 16), jnp.bfloat16, sharding=cast["params"]["embed"].sharding)
    with pytest.raises(CheckpointError, match=r"bfloat16\[40, 16\] in this run"):
        store.restore_latest(cast, digest)
    bare = abstract(items)
    bare["params"]["embed"] = jax.ShapeDtypeStruct((40, 16), jnp.float32)
    with pytest.raises(CheckpointError, match="without a sharding"):
        store.restore_latest(bare, digest)
    assert store.steps() == [1, 2] and not layout.quarantined(store.folder)


def test_retention(tmp_path: Path) -> None:
    config = Checkpoints(every_steps=1, keep_latest=2, keep_every=4, keep_steps=(3,))
    with CheckpointStore(tmp_path, config) as store:
        for step in range(1, 12):
            save(store, step)
        assert store.steps() == [3, 4, 8, 10, 11]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{s:08d}" for s in (3, 4, 8, 10, 11)]


def test_an_old_step_goes_only_after_the_new_one_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], layout.retire

    def retire(folder: Path, step: int) -> None:
        seen.append((step, layout.list_steps(folder)))
        real(folder, step)

    monkeypatch.setattr(layout, "retire", retire)
    with CheckpointStore(tmp_path, Checkpoints(every_steps=1, keep_latest=1)) as opened:
        for step in (1, 2, 3):
            save(opened, step)
    assert seen == [(1, [1, 2]), (2, [2, 3])]


def test_a_kill_while_an_old_step_is_deleted_leaves_no_half_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointStore(tmp_path, KEEP_ALL) as store:
        save(store, 1)
        save(store, 2)

    def killed_halfway(path: Path, **_: object) -> None:
        if path.exists():
            (path / "opt" / "manifest.ocdbt").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(layout.shutil, "rmtree", killed_halfway)
        with pytest.raises(KeyboardInterrupt):
            layout.retire(tmp_path, 1)
    assert layout.list_steps(tmp_path) == [2] and len(list(tmp_path.iterdir())) == 2
    with CheckpointStore(tmp_path, KEEP_ALL):
        assert [p.name for p in tmp_path.iterdir()] == ["00000002"]


def test_a_damaged_step_does_not_push_a_good_one_out(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, Checkpoints(every_steps=1, keep_latest=2)) as store:
        save(store, 1)
        save(store, 2)
        (step_folder(tmp_path, 2) / "opt" / "manifest.ocdbt").unlink()
        save(store, 3)
        assert store.steps() == [1, 2, 3]
        save(store, 4)
        assert store.steps() == [3, 4]


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, KEEP_ALL) as store:
        save(store, 1)
    (tmp_path / "00000002.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (tmp_path / "00000000.retired" / "params").mkdir(parents=True)
    assert CheckpointReader(tmp_path).steps() == [1]  # a reader leaves them alone: the save may be alive
    assert len(list(tmp_path.iterdir())) == 3
    with CheckpointStore(tmp_path, KEEP_ALL) as store:
        assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
        save(store, 2)
        assert store.steps() == [1, 2]


def test_a_failing_background_save_is_said_once_and_leaves_nothing(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)

    def full(folder: Path) -> None:
        raise RuntimeError("the cable was pulled")

    with monkeypatch.context() as broken:
        broken.setattr(layout, "sync_tree", full)
        save(store, 2, wait=False)
        with pytest.raises(CheckpointError, match="checkpoint 2 could not be written: RuntimeError: the cable"):
            store.wait()
        save(store, 2, wait=False)
        with pytest.raises(CheckpointError, match="checkpoint 2 could not be written"):
            save(store, 3)
    assert store.steps() == [1] and [p.name for p in store.folder.iterdir()] == ["00000001"]
    assert store.finished() == [1]
    save(store, 2)
    assert store.finished() == [2]
    assert equal(store.restore(2, abstract(make_items(2)), digest).items, make_items(2))


def test_a_failure_surfaces_at_finished_and_at_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layout, "sync_tree", fail)
    store = CheckpointStore(tmp_path, KEEP_ALL)
    save(store, 1, wait=False)
    assert store._pending is not None
    concurrent.futures.wait([store._pending[1]])
    with pytest.raises(disk.DiskFullError, match="filled up in checkpoint 1") as caught:
        store.finished()
    assert caught.value.exit_code == EXIT_SAVED_START_AGAIN
    save(store, 1, wait=False)
    with pytest.raises(CheckpointError):
        store.close()
    assert list(tmp_path.iterdir()) == []


WRITE_ERROR = """
import resource, sys
from tests.checkpoint.states import *
from jaxllm.core.errors import CheckpointError
noise = np.random.default_rng(0).integers(0, 2**31, (512, 512), np.int32)
items = {"params": {f"w{i}": jnp.asarray(noise + i) for i in range(4)}, "opt": {"count": jnp.int32(0)}}
with CheckpointStore(sys.argv[1], KEEP_ALL) as store:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    save(store, 1, items, wait=False)
    try:
        store.wait()
    except CheckpointError as err:
        print(err)
    assert list(store.folder.iterdir()) == []
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    save(store, 1, items)
    assert equal(store.restore(1, abstract(items), digest).items, items)
"""


@pytest.mark.slow
def test_an_error_of_the_system_while_writing_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run([sys.executable, "-c", WRITE_ERROR, str(tmp_path)], cwd=ROOT, env=simulated_env(1), check=True)
    out, err = capfd.readouterr()
    assert out.startswith(f"{tmp_path}: checkpoint 1 could not be written: ") and out.count("\n") == 1
    assert "File too large" in out or "os_error_code='27'" in out
    assert err == ""


def test_a_full_disk_is_refused_before_anything_is_written(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    with pytest.raises(disk.DiskFullError, match=r"checkpoint 1 needs .* and 1.0 kB are free; nothing was written"):
        save(store, 1)
    assert list(store.folder.iterdir()) == []


def test_other_tools_read_it(store: CheckpointStore) -> None:
    """The layout is Orbax's own: its manager and plain tensorstore find everything under dotted names."""
    import tensorstore as ts

    items = make_items(9)
    save(store, 9, items)
    options = ocp.CheckpointManagerOptions(step_format_fixed_length=8, read_only=True)
    with ocp.CheckpointManager(store.folder, options=options) as manager:
        assert manager.latest_step() == 9
        out = manager.restore(
            9, args=ocp.args.Composite(params=ocp.args.PyTreeRestore(), cursor=ocp.args.JsonRestore())
        )
    assert equal(jax.tree.map(jnp.asarray, out.params), items["params"]) and out.cursor["step"] == 9
    base = f"file://{step_folder(store.folder, 9)}/opt/"
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": "0.mu.blocks.attention.q/"}}
    array = ts.open(spec).result()
    assert np.array_equal(array.read().result(), np.asarray(items["opt"][0].mu["blocks"]["attention"]["q"]))


def test_remote_folders_are_refused() -> None:
    with pytest.raises(CheckpointError, match="gs://bucket/run"):
        CheckpointReader("gs://bucket/run")


def test_what_the_system_said_survives_in_the_middle_of_a_long_error() -> None:
    from jaxllm.checkpoint.quiet import one_line

    for spelled in ("[OS error 27: EFBIG File too large]", "os_error_code='27'", "os_error_code=\\'27\\'"):
        line = one_line(ValueError(f"{'a' * 500} {spelled} {'b' * 500}"))
        assert line.endswith(" (File too large)") and len(line) < 340
    assert one_line(ValueError("short: [OS error 27: EFBIG File too large]")).endswith("large]")
