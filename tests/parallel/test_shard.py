"""Shardings derive from declarations; what does not divide is refused by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import Mesh
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.rules import activation_rules
from jaxllm.parallel.shard import (
    Sharder,
    batch_sharding,
    check_batch,
    mirrored_shardings,
    param_shardings,
    process_rows,
)
from tests.simulated import run_simulated


@dataclass(frozen=True)
class Leaf:
    path: str
    axes: tuple[str | None, ...]
    shape: tuple[int, ...]


class Declared:
    """What models/declare.py offers, by hand."""

    def __init__(self, nested: Any) -> None:
        self.nested = nested
        self.leaves: list[Leaf] = jax.tree.leaves(nested)

    def tree(self, fn: Callable[[Leaf], Any]) -> Any:
        return jax.tree.map(fn, self.nested)


def declared(kv_heads: int = 2) -> Declared:
    return Declared(
        {
            "embedding": Leaf("embedding", ("vocab", "embed"), (64, 16)),
            "blocks": {
                "k": Leaf("blocks.k", ("layers", "embed", "kv_heads", "head"), (3, 16, kv_heads, 4)),
                "norm": Leaf("blocks.norm", ("layers", "norm"), (3, 16)),
            },
        }
    )


def texts(tree: Any) -> Any:
    return jax.tree.map(lambda s: str(s.spec), tree)


def layouts(dp: int, fsdp: int, tp: int) -> dict[str, Any]:
    """What eight devices say about parameters, optimizer state and batches."""
    mesh = make_mesh(Mesh(dp=dp, fsdp=fsdp, tp=tp))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), declared().nested)
    by_name = param_shardings(declared(), mesh)
    state = {"count": jnp.zeros((), jnp.int32), "mu": params, "nu": params}
    mirrored = mirrored_shardings(jax.eval_shape(lambda: state), by_name, mesh)
    placed = jax.device_put(state, mirrored)
    rows = jax.device_put(np.zeros((16, 8), np.int32), batch_sharding(mesh))
    return {
        "params": texts(by_name),
        "mirrored": texts(mirrored),
        "k": list(placed["mu"]["blocks"]["k"].addressable_shards[0].data.shape),
        "count": placed["count"].sharding.is_fully_replicated,
        "rows": list(rows.addressable_shards[0].data.shape),
        "mine": [process_rows(mesh, 16).start, process_rows(mesh, 16).stop],
    }


def test_layouts_of_eight_devices() -> None:
    got = run_simulated(layouts, dp=2, fsdp=2, tp=2)
    expected = {
        "embedding": str(P("tp", ("fsdp", "ep", "cp"))),
        "blocks": {"k": str(P("pp", ("fsdp", "ep", "cp"), "tp", None)), "norm": str(P("pp", None))},
    }
    assert got["params"] == expected
    assert got["mirrored"] == {"count": str(P()), "mu": expected, "nu": expected}
    assert got["k"] == [3, 8, 1, 4] and got["count"] and got["rows"] == [4, 8] and got["mine"] == [0, 16]


def refusals() -> list[str]:
    mesh = make_mesh(Mesh(dp=1, fsdp=2, tp=4))
    sequence = Sharder(mesh, activation_rules(Mesh(sequence_parallel=True)))
    attempts: list[Callable[[], Any]] = [
        lambda: param_shardings(declared(kv_heads=2), mesh),
        lambda: check_batch(7, mesh),
        lambda: Sharder(mesh)(jnp.zeros((4, 8, 6, 4)), "batch", "seq", "heads", "head"),
        lambda: sequence(jnp.zeros((4, 10, 16)), "batch", "resid_seq", "embed"),
        lambda: Sharder(mesh)(jnp.zeros((4, 8)), "batch", "seq", "embed"),
        lambda: param_shardings(Declared({"w": Leaf("w", ("embed",), (4, 4))}), mesh),
    ]
    said = []
    for attempt in attempts:
        try:
            attempt()
            said.append("accepted")
        except LayoutError as err:
            said.append(str(err))
    return said


def test_what_does_not_divide_is_named() -> None:
    assert run_simulated(refusals) == [
        "blocks.k: axis 'kv_heads' of size 2 is not divisible by tp=4; use tp in 1, 2",
        "a batch of 7 sequences: axis 'batch' of size 7 is not divisible by dp*fsdp*ep=1*2*1; use dp*fsdp*ep in 1",
        "activation (4, 8, 6, 4): axis 'heads' of size 6 is not divisible by tp=4; use tp in 1, 2",
        "activation (4, 10, 16): axis 'resid_seq' of size 10 is not divisible by cp*tp=1*4; use cp*tp in 1, 2",
        "activation (4, 8): 3 axes named (batch, seq, embed) for 2 dimensions",
        "w: 1 axes declared for shape (4, 4); name one per dimension",
    ]


def constrained(sequence_parallel: bool) -> list[str]:
    """Layouts after a constraint inside jit."""
    mesh = make_mesh(Mesh(dp=2, fsdp=2, tp=2))
    shard = Sharder(mesh, activation_rules(Mesh(sequence_parallel=sequence_parallel)))
    x_BSD = jnp.zeros((8, 4, 16))
    resid = jax.jit(lambda x: shard(x * 2, "batch", "resid_seq", "embed"))(x_BSD)
    heads = jax.jit(lambda x: shard(x.reshape(8, 4, 4, 4), "batch", "seq", "heads", "head"))(x_BSD)
    return [str(resid.addressable_shards[0].data.shape), str(heads.addressable_shards[0].data.shape)]


@pytest.mark.slow
def test_constraints_inside_jit() -> None:
    assert run_simulated(constrained, sequence_parallel=False) == ["(2, 4, 16)", "(2, 4, 2, 4)"]
    assert run_simulated(constrained, sequence_parallel=True) == ["(2, 2, 16)", "(2, 4, 2, 4)"]


def test_one_device_adds_no_constraint_but_still_checks_names() -> None:
    shard = Sharder(make_mesh(Mesh(), jax.devices()[:1]))
    text = jax.jit(lambda x: shard(x, "batch", "seq", "embed")).lower(jnp.zeros((2, 3, 4))).as_text()
    assert "sharding_constraint" not in text and "custom_call" not in text
    with pytest.raises(LayoutError, match="did you mean 'batch'"):
        shard(jnp.zeros((2, 3)), "bacth", "seq")
