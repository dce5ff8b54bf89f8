"""Small states with known contents, and their manifests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.checkpoint.config import Checkpoints
from jaxllm.checkpoint.fingerprint import Fingerprint
from jaxllm.checkpoint.layout import step_folder
from jaxllm.checkpoint.manifest import Manifest, Rng, state_digest
from jaxllm.checkpoint.names import array_records, named_leaves
from jaxllm.checkpoint.revision import Revision
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.core.mixing import array_digest

Tree = Any
KEEP_ALL = Checkpoints(every_steps=1, keep_latest=1000)
SHAPES = {"embed": (40, 16), "blocks": {"attention": {"q": (2, 16, 16)}, "norm": (2, 16)}, "final_norm": (16,)}


def make_items(step: int, ema: bool = False) -> dict[str, Tree]:
    """A state that is a function of `step`: float32 parameters, optax's AdamW state (int32, float32, bfloat16)."""
    rng = np.random.default_rng(step)
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32)), SHAPES, is_leaf=lambda x: type(x) is tuple
    )
    tx = optax.adamw(1e-3, mu_dtype=jnp.bfloat16)
    _, opt = tx.update(jax.tree.map(jnp.sin, params), tx.init(params), params)
    items = {"params": params, "opt": opt}
    return items | {"ema": jax.tree.map(lambda x: x * 0.5, params)} if ema else items


def digest(items: Mapping[str, Tree]) -> dict[str, str]:
    """On the host, array by array."""
    return {name: array_digest(np.asarray(leaf)) for name, leaf in named_leaves(items).items()}


def believing(store: CheckpointStore, step: int) -> Any:
    """A digest that looks at nothing and always agrees with the manifest of `step`."""
    return lambda items: {n: store.manifest(step).digests[n] for n in named_leaves(items)}


FINGERPRINT = Fingerprint(
    versions={"jax": "0"},
    platform="cpu",
    device_kind="cpu",
    runtime="cpu",
    devices=1,
    processes=1,
    cpu_isa="avx2",
    cpu_model="test",
    threads=2,
    mesh={"dp": 1, "fsdp": 1, "tp": 1},
    compute={"remat": "none", "micro_batch": None},
    jax_options={},
    xla_flags=(),
)


def manifest_of(step: int, items: Mapping[str, Tree], digests: Mapping[str, str] | None = None) -> Manifest:
    arrays = array_records(items, digest(items) if digests is None else digests)
    return Manifest(
        step=step,
        lineage=0,
        tokens=step * 128,
        identity="ab" * 32,
        data_manifest="cd" * 32,
        tokenizer="ef" * 32,
        arrays=arrays,
        state_digest=state_digest(arrays),
        journal_head=None,
        steps_head=None,
        fingerprint=FINGERPRINT,
        source=Revision(commit=None, dirty=False),
        jaxllm="0",
        rng=Rng(seed=1),
    )


def save(store: CheckpointStore, step: int, items: Mapping[str, Tree] | None = None, *, wait: bool = True) -> None:
    """Save the state of `step` with a cursor that names it."""
    items = make_items(step) if items is None else items
    store.save(step, **items, cursor={"step": step, "grain": {"next_index": step}}, meta=manifest_of(step, items))
    if wait:
        store.wait()


def abstract(items: Mapping[str, Tree], sharding: jax.sharding.Sharding | None = None) -> dict[str, Tree]:
    """What to restore, on the default device unless said otherwise."""
    place = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), dict(items))


def equal(a: Tree, b: Tree) -> bool:
    """Same containers, names and bits."""
    layouts: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    if layouts[0] != layouts[1]:
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def data_files(folder: Path, step: int, item: str) -> list[Path]:
    """Files with array data of an item, the largest first."""
    files = [p for p in (step_folder(folder, step) / item).rglob("d/*") if p.is_file()]
    return sorted(files, key=lambda p: -p.stat().st_size)


def flip_bit(path: Path, at: int | None = None) -> None:
    """Change one bit of a file, in the middle by default."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(bytes(data))
