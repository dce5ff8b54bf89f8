"""Saved on one mesh, restored on another: same bits, same digests. On 8 simulated devices."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.checkpoint import layout
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.checkpoint.layout import DamagedCheckpointError, step_folder
from jaxllm.checkpoint.reader import Digest, Items
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.parallel.config import Mesh
from jaxllm.parallel.digest import digest_strings, make_digest
from jaxllm.parallel.mesh import make_mesh
from tests.checkpoint.states import KEEP_ALL, abstract, data_files, digest, equal, flip_bit, make_items, manifest_of
from tests.simulated import run_processes, run_simulated

LAYOUTS = {"fsdp": Mesh(dp=1, fsdp=8), "tp": Mesh(dp=2, fsdp=2, tp=2), "dp": Mesh(dp=8)}


def laid_out(items: Items, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Shardings: the first axis that divides goes to fsdp, the last to tp."""

    def of(x: Any) -> NamedSharding:
        spec: list[str | None] = [None] * x.ndim
        if x.ndim and x.shape[0] % mesh.shape["fsdp"] == 0:
            spec[0] = "fsdp"
        if x.ndim > 1 and x.shape[-1] % mesh.shape["tp"] == 0:
            spec[-1] = "tp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(of, dict(items))


def on_devices(items: Items, shardings: Any, mesh: jax.sharding.Mesh) -> Digest:
    """The digest as a run computes it."""
    compiled = make_digest(items, shardings, mesh)
    return lambda tree: digest_strings(tree, compiled(tree))


def save_and_restore(folder: str, saved: str, restored: str) -> dict[str, Any]:
    """Save step 5 on one layout; restore it on another, on one device, and parameters alone."""
    source, target = make_mesh(LAYOUTS[saved]), make_mesh(LAYOUTS[restored])
    plain = make_items(5, ema=True)
    shardings = laid_out(plain, source)
    items = jax.device_put(make_items(5, ema=True), shardings)  # donated below; may share memory with its source
    found = on_devices(items, shardings, source)(items)
    with CheckpointStore(folder, KEEP_ALL) as store:
        store.save(5, **items, cursor={"step": 5}, meta=manifest_of(5, items, found))
        overwrite = jax.jit(lambda t: jax.tree.map(lambda x: (x * 0).astype(x.dtype), t), donate_argnums=0)
        jax.block_until_ready(overwrite(items))
        store.wait()
        wanted_shardings = laid_out(plain, target)
        wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), plain, wanted_shardings)
        out = store.restore(5, wanted, on_devices(wanted, wanted_shardings, target))
        placed = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), out.items, wanted_shardings)
        one = store.restore_params(5, abstract(plain)["params"], digest)
        return {
            "equal": equal(jax.tree.map(np.asarray, out.items), jax.tree.map(np.asarray, plain)),
            "placed": all(jax.tree.leaves(placed)),
            "one device": equal(one.items["params"], plain["params"]),
            "host digest": found == digest(plain),
            "devices": jax.device_count(),
        }


def damage_a_shard(folder: str) -> str:
    """What is said about a flipped bit in one shard of a checkpoint of 8 devices."""
    mesh = make_mesh(LAYOUTS["fsdp"])
    plain = make_items(5, ema=True)
    shardings = laid_out(plain, mesh)
    wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), plain, shardings)
    flip_bit(data_files(Path(folder), 5, "opt")[0])
    with CheckpointStore(folder, KEEP_ALL) as store:
        try:
            store.restore(5, wanted, on_devices(wanted, shardings, mesh))
        except DamagedCheckpointError as err:
            return str(err)
    return ""


def two_hosts(folder: str) -> dict[str, Any]:
    """Both processes save two steps, lose an item of the newer one, go back, and save it again; twice, and the second
    time it is only process 1 that cannot read it."""
    mesh = make_mesh(LAYOUTS["tp"])
    shardings = laid_out(make_items(0, ema=True), mesh)
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), make_items(0, ema=True), shardings
    )
    found = on_devices(wanted, shardings, mesh)
    bad: list[int] = []
    whys: list[str] = []

    def state(step: int) -> dict[str, Any]:
        plain = jax.tree.map(np.asarray, make_items(step, ema=True))
        return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]), plain, shardings)

    with CheckpointStore(folder, Checkpoints(every_steps=1, keep_latest=2)) as store:

        def save(step: int) -> None:
            items = state(step)
            store.save(step, **items, cursor={"step": step}, meta=manifest_of(step, items, found(items)))

        for step in (1, 2, 3):
            save(step)
        store.wait()
        committed = store.finished()
        multihost_utils.sync_global_devices("saved")
        steps = store.steps()
        if jax.process_index() == 0:
            shutil.rmtree(step_folder(Path(folder), 3) / "opt")
        multihost_utils.sync_global_devices("damaged")
        restored = store.restore_latest(wanted, found, lambda step, why: bad.append(step))
        assert restored is not None
        same = found(restored.items) == found(state(2))
        save(3)
        store.wait()
        if jax.process_index() == 1:
            with unreadable_step_3(store):
                again = store.restore_latest(wanted, found, lambda step, why: whys.append(why))
        else:
            again = store.restore_latest(wanted, found, lambda step, why: whys.append(why))
        assert again is not None and again.step == 2
        save(3)
        store.wait()
        multihost_utils.sync_global_devices("saved again")
        return {"committed": committed, "steps": steps, "used": restored.step, "same": same, "bad": bad, "whys": whys}


@contextmanager
def unreadable_step_3(store: CheckpointStore) -> Iterator[None]:
    """Inside, this process cannot read step 3."""
    real = store._read_all

    def read(step: int, wanted: Any) -> Any:
        if step == 3:
            raise DamagedCheckpointError(store.folder, 3, "opt.count: cannot be read")
        return real(step, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_read_all", read)
        yield


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    results = run_processes(two_hosts, folder=str(tmp_path))
    said = ["process 1: opt.count: cannot be read"]
    assert results == [{"committed": [1, 2, 3], "steps": [2, 3], "used": 2, "same": True, "bad": [3], "whys": said}] * 2
    with CheckpointStore(tmp_path, KEEP_ALL) as store:
        assert store.steps() == [2, 3] and layout.quarantined(tmp_path) == ["00000003-1", "00000003-2"]
        plain = make_items(3, ema=True)
        assert equal(store.restore(3, abstract(plain), digest).items, plain)


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "restored"), [("fsdp", "tp"), ("tp", "dp")])
def test_another_mesh(tmp_path: Path, saved: str, restored: str) -> None:
    result = run_simulated(save_and_restore, folder=str(tmp_path), saved=saved, restored=restored)
    assert result.pop("devices") == 8
    assert all(result.values()), result
    # This process has one device: a pod's checkpoint opens on a laptop.
    with CheckpointStore(tmp_path, KEEP_ALL) as store:
        plain = make_items(5, ema=True)
        assert equal(store.restore(5, abstract(plain), digest).items, plain)
    if saved == "fsdp":
        assert "checkpoint 5 is damaged: opt." in run_simulated(damage_a_shard, folder=str(tmp_path))
    assert step_folder(tmp_path, 5).is_dir()
