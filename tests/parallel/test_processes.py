"""Two processes of four devices: the same digests as one process, and rows that cover the batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.core import mixing
from jaxllm.parallel import processes
from jaxllm.parallel.config import Mesh
from jaxllm.parallel.digest import digest_strings, make_digest
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.owners import owned_rows
from jaxllm.parallel.shard import batch_sharding, process_rows
from jaxllm.train.signals import StopRequest
from jaxllm.train.tally import Tally
from tests.simulated import run_processes

MESHES = [(8, 1, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]
ROWS, WIDTH = 16, 5


def a_matrix() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)


def a_batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 9_000, (ROWS, WIDTH + 1), np.int32), rng.integers(0, 9, (ROWS, WIDTH), np.int32)


def what_a_process_sees() -> list[dict[str, Any]]:
    seen = []
    tokens, flags = a_batch()
    for dp, fsdp, tp in MESHES:
        mesh = make_mesh(Mesh(dp=dp, fsdp=fsdp, tp=tp))
        layout = {"w": NamedSharding(mesh, P("tp", ("dp", "fsdp"))), "one": NamedSharding(mesh, P())}
        state = jax.jit(lambda w: {"w": w, "one": jnp.int32(3)}, out_shardings=layout)(a_matrix())
        mine = process_rows(mesh, ROWS)
        rows = jax.make_array_from_process_local_data(batch_sharding(mesh), tokens[mine])
        total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, P()))(rows)
        seen.append(
            {
                "digests": digest_strings(state, make_digest(state, layout, mesh)(state)),
                "rows": [mine.start, mine.stop],
                "lanes": mixing.batch_digest(tokens[mine], flags[mine], mine.start),
                "owned": [[s.start, s.stop] for s in owned_rows(mesh, ROWS)],
                "shape": list(rows.shape),
                "sum": int(total),
            }
        )
    return [*seen, what_processes_agree_on()]


def what_processes_agree_on() -> dict[str, Any]:
    me = jax.process_index()
    stop = StopRequest()
    stop.name = "SIGTERM" if me else None
    looks = iter([False, True, False])  # at the start, with the first step, with the second
    tally = Tally(stop, make_mesh(Mesh(tp=2)), lambda: next(looks) if me == 0 else True)
    before, told = tally.asked, tally.told((2**32 - 1, 5 + me))
    called = [tally.called]
    return {
        "gather": processes.gather(["from", me]),
        "share": processes.share(["from", me]),
        "first": processes.first(lambda: me + 10),
        "anywhere": [processes.anywhere(None), processes.anywhere("broken" if me else None)],
        "lanes": tally.heard(told),
        "asked": [before, tally.asked],
        "called": [*called, tally.called, _called_after_attending(tally)],
    }


def _called_after_attending(tally: Tally) -> bool:
    tally.attended()
    tally.heard(tally.told((0, 0)))
    return tally.called


@pytest.mark.slow
def test_two_processes() -> None:
    (*first, agreed), (*second, agreed_too) = run_processes(what_a_process_sees, processes=2, devices=4)
    expected = mixing.tree_digest({"w": a_matrix(), "one": np.array(3, np.int32)})
    tokens, flags = a_batch()
    for sizes, a, b in zip(MESHES, first, second, strict=True):
        assert a["digests"] == b["digests"] == expected, sizes
        assert a["sum"] == b["sum"] == tokens.sum() and a["shape"] == b["shape"] == [ROWS, WIDTH + 1], sizes
        if sizes == (1, 1, 8):  # tp across hosts: both feed every row
            assert a["rows"] == b["rows"] == [0, ROWS]
            assert tuple(a["lanes"]) == mixing.batch_digest(tokens, flags, 0)
            assert [a["owned"], b["owned"]] == [[[0, ROWS]], []]
        else:
            assert [a["rows"], b["rows"]] == [[0, 8], [8, 16]] == [*a["owned"], *b["owned"]], sizes
            assert mixing.add_lanes(a["lanes"], b["lanes"]) == mixing.batch_digest(tokens, flags, 0), sizes
    assert (agreed.pop("gather"), agreed_too.pop("gather")) == ([["from", 0], ["from", 1]], None)
    assert agreed == agreed_too
    assert (agreed["share"], agreed["first"], agreed["anywhere"]) == (["from", 0], 10, [None, "process 1: broken"])
    assert agreed["lanes"] == [2**32 - 2, 11] and agreed["asked"] == [None, "SIGTERM at process 1"]
    assert agreed["called"] == [False, True, False]  # by process 0 alone, once both know it
