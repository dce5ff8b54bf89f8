"""Arrays of a checkpoint, a layer at a time: the bits that were saved, each of them digested, little in memory."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.checkpoint.layout import DamagedCheckpointError
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.convert.saved import SavedArrays
from jaxllm.core.errors import CheckpointError
from tests.checkpoint.states import KEEP_ALL, save

DICE = np.random.default_rng(9)
ARRAYS = {
    "large": DICE.standard_normal((24, 1024, 512)).astype(np.float32),  # layers of 2 MB
    "experts": DICE.standard_normal((2, 3, 512, 400)).astype(np.float32),
    "small": DICE.standard_normal((24, 8)).astype(np.float32),
}
TABLE = DICE.standard_normal((50, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    params = {"blocks": {n: jnp.asarray(x) for n, x in ARRAYS.items()}, "embed": {"table": jnp.asarray(TABLE)}}
    with CheckpointStore(path, KEEP_ALL) as store:
        save(store, 1, {"params": params, "opt": {}})
    return path


def everything(saved: SavedArrays, *, experts: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(what was read, what was saved), in the order of an export."""
    yield saved.read("embed.table", ()), TABLE
    for layer in range(24):
        for name in ("large", "small"):
            yield saved.read(f"blocks.{name}", (layer,)), ARRAYS[name][layer]
        if layer < 2:
            for expert in range(3):
                if experts:
                    yield saved.read("blocks.experts", (layer, expert)), ARRAYS["experts"][layer, expert]
            if not experts:
                yield saved.read("blocks.experts", (layer,)), ARRAYS["experts"][layer]


@pytest.mark.parametrize("experts", [True, False])
def test_every_layer_is_what_was_saved(folder: Path, experts: bool) -> None:
    saved = SavedArrays(folder, 1)
    for found, wanted in everything(saved, experts=experts):
        np.testing.assert_array_equal(found, wanted)
    saved.check()
    assert saved._held == {}


def test_large_layers_are_stored_apart_and_small_ones_together(folder: Path) -> None:
    saved = SavedArrays(folder, 1)
    depths = {path: saved._depth(path) for path in saved.records}
    assert depths == {"blocks.large": 1, "blocks.experts": 1, "blocks.small": 0, "embed.table": 0}
    assert saved.by_layer


def test_what_was_not_read_is_not_vouched_for(folder: Path) -> None:
    saved = SavedArrays(folder, 1)
    for found, _ in everything(saved):
        if found.shape == TABLE.shape:
            break
    with pytest.raises(AssertionError, match="elements of"):
        saved.check()


def test_another_digest_names_the_array(folder: Path) -> None:
    saved = SavedArrays(folder, 1)
    for _ in everything(saved):
        pass
    saved._lanes["blocks.large"] = (saved._lanes["blocks.large"][0] ^ 1, saved._lanes["blocks.large"][1])
    with pytest.raises(DamagedCheckpointError, match=r"params\.blocks\.large: its digest is"):
        saved.check()


def test_steps_and_items_that_are_not_there(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no 'ema'"):
        SavedArrays(folder, 1, "ema")
    with pytest.raises(CheckpointError):
        SavedArrays(folder, 2)


# An export's way through a checkpoint of 50 MB in layers of 2 MB, into files of 10 MB.
MEMORY = """
import resource, sys
from pathlib import Path
from jaxllm.convert.saved import SavedArrays
from jaxllm.convert.shards import Out, write_shards
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
saved = SavedArrays(Path(sys.argv[1]), 1)
saved.read("embed.table", ())
out = [Out(f"t{i}", (1024, 512), lambda i=i: saved.read("blocks.large", (i,))) for i in range(24)]
before = peak()
write_shards(Path(sys.argv[2]), out, "float32", exact=True, shard_bytes=10_000_000)
print(peak() - before)
"""


def test_memory_is_that_of_a_few_layers(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 30, "MB beyond the start, for 50 MB of layers"
