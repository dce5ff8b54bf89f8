"""The digest on devices equals the numpy one under every layout, and mutations show."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh as DeviceMesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.core import mixing
from jaxllm.parallel.config import Mesh
from jaxllm.parallel.digest import array_lanes, digest_strings, leaf_paths, make_digest
from jaxllm.parallel.mesh import make_mesh
from tests.simulated import run_simulated

MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (4, 2, 1), (2, 2, 2), (1, 2, 4), (2, 1, 4))


def some_state() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(16, 24)).astype(np.float32)
    return {
        "params": {"blocks": {"q": rng.normal(size=(3, 16, 8, 4)).astype(np.float32), "norm": np.ones((3, 16), "f4")}},
        "opt": {"count": np.int32(7), "mu": table, "bf16": table.astype(jnp.bfloat16), "f16": table.astype(np.float16)},
        "ints": {
            "i8": rng.integers(-128, 127, (16, 8), np.int8),
            "u8": rng.integers(0, 255, (16, 8), np.uint8),
            "i32": rng.integers(-(2**31), 2**31 - 1, (8, 16), np.int32),
            "u32": rng.integers(0, 2**32 - 1, (8, 16), np.uint32),
            "flags": rng.integers(0, 2, (8, 16)).astype(bool),
            "vector": np.arange(16, dtype=np.int32),
        },
    }


def some_specs() -> dict[str, Any]:
    """Layouts of the state: every kind of entry, mesh axes left to replication, specs shorter than the rank."""
    return {
        "params": {"blocks": {"q": P(None, "fsdp", "tp"), "norm": P()}},
        "opt": {"count": P(), "mu": P("tp", "fsdp"), "bf16": P(("fsdp", "tp")), "f16": P(("tp", "dp"), "fsdp")},
        "ints": {
            "i8": P("dp", "tp"),
            "u8": P(("dp", "fsdp"), "tp"),
            "i32": P(None, ("dp", "tp")),
            "u32": P(("dp", "fsdp", "tp")),
            "flags": P("fsdp"),
            "vector": P(("tp", "fsdp", "dp")),
        },
    }


def digests_on(mesh: DeviceMesh, state: Any = None) -> dict[str, str]:
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), some_specs(), is_leaf=lambda s: isinstance(s, P))
    state = jax.device_put(some_state() if state is None else state, shardings)
    return digest_strings(state, make_digest(state, shardings, mesh)(state))


def digests_on_all_meshes() -> list[dict[str, str]]:
    return [digests_on(make_mesh(Mesh(dp=dp, fsdp=fsdp, tp=tp))) for dp, fsdp, tp in MESHES]


def arrays_that_change_with_a_bit() -> list[str]:
    """Flip the lowest bit of the last element of one array: whose digest changes on eight devices?"""
    mesh, state = make_mesh(Mesh(fsdp=2, tp=2)), some_state()
    before = digests_on(mesh, state)
    state["params"]["blocks"]["q"].view(np.uint32)[-1, -1, -1, -1] ^= 1
    after = digests_on(mesh, state)
    return [path for path in before if before[path] != after[path]]


@pytest.mark.slow
def test_a_flipped_bit_names_its_array() -> None:
    assert run_simulated(arrays_that_change_with_a_bit) == ["params.blocks.q"]


def numpy_digests() -> dict[str, str]:
    state = some_state()
    return mixing.tree_digest(dict(zip(leaf_paths(state), map(np.asarray, jax.tree.leaves(state)), strict=True)))


@pytest.mark.slow
def test_equals_numpy_on_every_mesh() -> None:
    found = run_simulated(digests_on_all_meshes)
    assert len(found) == len(MESHES)
    for sizes, digests in zip(MESHES, found, strict=True):
        assert digests == numpy_digests(), sizes


def test_one_device_and_names() -> None:
    digests = digests_on(make_mesh(Mesh(), jax.devices()[:1]))
    assert digests == numpy_digests()
    assert "params.blocks.q" in digests and "opt.count" in digests


def lanes_of(x: Any, first_index: int = 0) -> tuple[int, int]:
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    a, b = jax.jit(lambda y: array_lanes(y, mesh, P(), first_index))(x)
    return int(a), int(b)


def test_mutations_show() -> None:
    x = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    flipped, swapped = x.copy(), x.copy()
    flipped.view(np.uint32)[3, 4] ^= 1
    swapped[[1, 2], [3, 3]] = swapped[[2, 1], [3, 3]]
    assert len({lanes_of(y) for y in (x, x.T, flipped, swapped, x[::-1], -x)}) == 6


@pytest.mark.parametrize("first_index", [0, 1, 2**32 - 60, 2**32 - 1, 2**32, 7 * 2**32 - 20, 2**61 + 2**31])
def test_index_carries_into_the_high_half(first_index: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    assert lanes_of(x, first_index) == mixing.array_lanes(x, first_index)


def test_allocates_nothing_of_the_size_of_the_state() -> None:
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    abstract = {
        "w": jax.ShapeDtypeStruct((64, 256, 256), jnp.float32),
        "h": jax.ShapeDtypeStruct((2**20,), jnp.bfloat16),
    }
    layout = jax.tree.map(lambda _: NamedSharding(mesh, P()), abstract)
    compiled = make_digest(abstract, layout, mesh).lower(abstract).compile()
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 2**16


def test_eight_byte_elements_are_refused() -> None:
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    abstract = {"w": jax.ShapeDtypeStruct((4,), np.dtype(np.float64))}
    with pytest.raises(TypeError, match="1, 2 or 4 bytes"):
        make_digest(abstract, {"w": NamedSharding(mesh, P())}, mesh)
